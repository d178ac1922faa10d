"""Encoders of timm as the body of a feature pyramid: four maps, at strides 4, 8, 16 and 32."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.pretrained import HUB, PACKAGES, in_words, packaged_file, packaged_state, with_weights

Norm = Literal["batch", "frozen"]
STRIDES = (4, 8, 16, 32)
_PROBE = (1, 3, 96, 64)
"""Shape of the image by which an encoder is tried; no side is divisible by 64."""


def timm_encoder(name: str, norm: Norm = "batch", *, pretrained: bool = False) -> Any:
    """Return an encoder in training mode: (n, 3, h, w) to a list of maps at strides 4, 8, 16 and 32.

    name: of timm, or of `PACKAGES`. Its `feature_info.channels()` are the maps' channels. norm: frozen turns
    batch norms into fixed maps. Raises ValueError for another norm, SettingsError for an encoder without such
    maps and for weights that are not to be had.
    """
    timm: Any = import_module("timm")
    if norm not in ("batch", "frozen"):
        raise ValueError(f"norm is {norm!r}, but must be batch or frozen")
    known = PACKAGES[name].encoder if name in PACKAGES else name
    build = partial(timm.create_model, known, features_only=True, out_indices=_levels(name, known))
    encoder: Any = _fetched(name, known, build) if pretrained else build()
    if norm == "frozen":
        encoder = timm.layers.freeze_batch_norm_2d(encoder)
    return encoder


def _levels(name: str, known: str) -> tuple[int, ...]:
    """Return which of the encoder's maps have the strides of the pyramid."""
    timm: Any = import_module("timm")
    try:
        with torch.device("meta"):
            strides = list(timm.create_model(known, features_only=True).feature_info.reduction())
            levels = tuple(strides.index(stride) for stride in STRIDES)
            encoder = timm.create_model(known, features_only=True, out_indices=levels).eval()
            with torch.no_grad():
                shapes = [tuple(each.shape) for each in encoder(torch.zeros(_PROBE))]
        expected = [
            (1, channels, _PROBE[2] // stride, _PROBE[3] // stride)
            for channels, stride in zip(encoder.feature_info.channels(), STRIDES, strict=True)
        ]
        if shapes != expected:
            raise ValueError(f"it gives {shapes}")
    except Exception as error:  # whatever a network of timm raises that has no such maps
        raise SettingsError(
            f"encoder {name}: gives no maps of any size at strides 4, 8, 16 and 32 ({in_words(error)})"
        ) from error
    return levels


def _fetched(name: str, known: str, build: Any) -> nn.Module:
    """Return the encoder with its pretrained weights, from their package or from timm's hub."""
    import timm

    if packaged_file(name):
        encoder: nn.Module = build()
        _load(name, encoder, packaged_state(name).state)
        return encoder
    if not timm.models.is_model_pretrained(known):
        raise SettingsError(f"encoder {name}: timm has no pretrained weights; train without pretrained")
    cache = "HF_HOME, by default ~/.cache/huggingface"
    return with_weights(f"encoder {name}", partial(build, pretrained=True), HUB, cache)


def _load(name: str, encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the tensors that the encoder has; it lacks the head of the classifier."""
    own = encoder.state_dict()
    if missing := [each for each in own if each not in state or state[each].shape != own[each].shape]:
        raise SettingsError(f"encoder {name}: its pretrained weights do not fit, as {missing[0]}")
    encoder.load_state_dict({each: state[each] for each in own})
