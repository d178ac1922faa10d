"""The networks of segmentation-models-pytorch and their encoders.

The library is imported inside the functions: with timm, and torch's compiler, which timm imports, it takes 5
s.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from segray.errors import SettingsError
from segray.models.any_size import any_size
from segray.models.pretrained import in_words, with_weights
from segray.models.smp_names import SMP_CLASSES, TIMM

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
    build = partial(kind, encoder_name=encoder, in_channels=bands, classes=outputs, **settings, **any_grid)
    try:
        network = build(encoder_weights=None)
    except Exception as error:
        reason = in_words(error)
        raise SettingsError(f"{arch} cannot be built with these settings: {reason}") from error
    stride = _stride(arch, network, bands)
    if pretrained:
        cache = "HF_HOME, by default ~/.cache/huggingface"
        build = partial(build, encoder_weights=_weights(arch, encoder))
        network = with_weights(arch, build, "huggingface.co", cache)
    return any_size(network, stride)


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
