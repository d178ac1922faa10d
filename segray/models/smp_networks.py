"""The networks of segmentation-models-pytorch and their encoders.

The library is imported inside the functions: with timm, and torch's compiler that timm brings, it takes 5 s.
"""

import inspect
import json
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from segray.errors import SettingsError
from segray.models.architectures import SMP_CLASSES, SMP_NAMES
from segray.models.pretrained import in_words, with_weights

NOT_SETTINGS = (
    "encoder_name", "encoder_weights", "in_channels", "classes",  # have names of their own here
    "activation", "aux_params",  # would make something else than logits
    "kwargs",
)  # fmt: skip
COARSEST_STRIDE = 32
"""No encoder halves its maps more than five times."""


def offered() -> dict[str, Any]:
    """Return what `smp_names.json` holds: `versions`, `encoders` and the settings of `families`."""
    import segmentation_models_pytorch as smp
    import timm

    return {
        "versions": {each: version(each) for each in ("segmentation-models-pytorch", "timm")},
        "families": {family: defaults(family) for family in SMP_CLASSES},
        "encoders": [*smp.encoders.get_encoder_names(), *(f"tu-{each}" for each in timm.list_models())],
    }


def defaults(family: str) -> dict[str, Any]:
    """The settings of a family and their values: keyword arguments of its class."""
    import segmentation_models_pytorch as smp

    parameters = inspect.signature(getattr(smp, SMP_CLASSES[family])).parameters.values()
    return {each.name: each.default for each in parameters if each.name not in NOT_SETTINGS}


def build_smp(
    family: str, encoder: str, bands: int, outputs: int, values: dict[str, Any], pretrained: bool
) -> tuple[nn.Module, int]:
    """The network in training mode, and its stride: the pixels that sides must be multiples of.

    Raises SettingsError for settings and encoders that do not go together, and for weights that do not exist
    or cannot be had.
    """
    import segmentation_models_pytorch as smp

    arch = f"{family}:{encoder}"
    build = partial(
        getattr(smp, SMP_CLASSES[family]), encoder_name=encoder, in_channels=bands, classes=outputs, **values
    )
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
    return network, stride


def _stride(arch: str, network: Any, bands: int) -> int:
    """The encoder's own word if zeros of such a size go through, else 32: HRNet never takes less."""
    own = int(network.encoder.output_stride)
    reason = _failure(arch, network, own, bands)
    if reason is None:
        return own
    if own < COARSEST_STRIDE and _failure(arch, network, COARSEST_STRIDE, bands) is None:
        return COARSEST_STRIDE
    raise SettingsError(f"{arch}: the encoder does not take images of any size: {reason}")


def _failure(arch: str, network: nn.Module, stride: int, bands: int) -> str | None:
    """Why an image of an odd and an even multiple of `stride` does not go through, or None."""
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
    """What the library calls the encoder's weights: ImageNet's, else the first there are."""
    import segmentation_models_pytorch as smp
    import timm

    if encoder.startswith("tu-"):
        if timm.models.is_model_pretrained(encoder.removeprefix("tu-")):
            return True
    elif offered := list(smp.encoders.encoders[encoder]["pretrained_settings"]):
        return "imagenet" if "imagenet" in offered else str(offered[0])
    raise SettingsError(f"{arch}: the encoder has no pretrained weights; train without pretrained")


if __name__ == "__main__":
    SMP_NAMES.write_text(json.dumps(offered(), indent=1) + "\n", encoding="utf-8")
