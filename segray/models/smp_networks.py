"""The networks of segmentation-models-pytorch and their encoders.

The library is imported inside the functions: with timm, and torch's compiler, which timm imports, it takes 5
s.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.any_size import any_size
from segray.models.encoder_weights import fit_encoder
from segray.models.pretrained import (
    HUB,
    PACKAGES,
    in_words,
    missing,
    packaged_file,
    packaged_state,
    with_weights,
)
from segray.models.smp_names import SMP_CLASSES, TIMM, library_name

_COARSEST_STRIDE = 32
"""No encoder halves its maps more often than five times."""
_ANY_GRID = {"dpt": {"dynamic_img_size": True}}
"""Family -> what lets its encoder (timm's ViT) interpolate its position embeddings to the image's size."""


def build_smp(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build one of the library's networks, see `build_semantic`.

    Raises SettingsError for incompatible settings and encoders, and for weights that do not exist or cannot
    be fetched.
    """
    import segmentation_models_pytorch as smp

    family, _, encoder = arch.partition(":")
    kind, any_grid = getattr(smp, SMP_CLASSES[family]), _ANY_GRID.get(family, {})
    given = {"encoder_name": library_name(encoder), "in_channels": bands, "classes": outputs}
    build = partial(kind, **given, **settings, **any_grid)
    try:
        network = build(encoder_weights=None)
    except Exception as error:
        reason = in_words(error)
        raise SettingsError(f"{arch} cannot be built with these settings: {reason}") from error
    stride = _stride(arch, network, bands)
    if pretrained:
        network.load_state_dict(_encoder_weights(arch, encoder, network, settings), strict=False)
    return any_size(network, stride)


def _encoder_weights(
    arch: str, encoder: str, network: nn.Module, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the pretrained weights of the network's encoder, by the network's names."""
    if packaged_file(encoder):
        weights: Mapping[str, Tensor] = packaged_state(encoder).state
    else:
        weights = _fetched(arch, encoder, settings).state_dict()
    fitted = fit_encoder(network, weights)
    if fitted.missing:
        raise SettingsError(f"{arch}: its pretrained weights do not fit, as {fitted.missing[0]}")
    return fitted.state


def _fetched(arch: str, encoder: str, settings: Mapping[str, Any]) -> nn.Module:
    """Return the network for red, green and blue with the library's weights, from its cache or its site."""
    import segmentation_models_pytorch as smp

    name = library_name(encoder)
    build = partial(
        getattr(smp, SMP_CLASSES[arch.partition(":")[0]]),
        encoder_name=name, encoder_weights=_weights(arch, name), **settings,
    )  # fmt: skip
    cache = "HF_HOME, by default ~/.cache/huggingface"
    try:
        return with_weights(arch, build, HUB, cache)
    except SettingsError as error:
        raise SettingsError(*([missing(encoder)] if encoder in PACKAGES else []), *error.lines) from error


def _stride(arch: str, network: Any, bands: int) -> int:
    """Return the encoder's stated stride if zeros of that size work, else 32: HRNet never takes less."""
    own = int(network.encoder.output_stride)
    reason = _failure(arch, network, own, bands)
    if reason is None:
        return own
    if own < _COARSEST_STRIDE and _failure(arch, network, _COARSEST_STRIDE, bands) is None:
        return _COARSEST_STRIDE
    raise SettingsError(f"{arch}: the encoder does not take images of any size: {reason}")


def _failure(arch: str, network: nn.Module, stride: int, bands: int) -> str | None:
    """Return why an image of an odd or an even multiple of `stride` fails, or None."""
    image = torch.zeros(1, bands, 3 * stride, 2 * stride)
    network.eval()
    try:
        with torch.no_grad():
            logits = network(image)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        return in_words(error)
    finally:
        network.train()
    if logits.shape[-2:] == image.shape[-2:]:
        return None
    scale = logits.shape[-2] / image.shape[-2]
    raise SettingsError(
        f"{arch}: the logits are {scale:g} times as high as the image; change upsampling or encoder_depth"
    )


def _weights(arch: str, encoder: str) -> str | bool:
    """Return the library's name of the encoder's weights: ImageNet's, else the first that exist."""
    import segmentation_models_pytorch as smp
    import timm

    if encoder.startswith(TIMM):
        if timm.models.is_model_pretrained(encoder.removeprefix(TIMM)):
            return True
    elif offered := list(smp.encoders.encoders[encoder]["pretrained_settings"]):
        return "imagenet" if "imagenet" in offered else str(offered[0])
    raise SettingsError(f"{arch}: the encoder has no pretrained weights; train without pretrained")
