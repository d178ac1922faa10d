"""Semantic segmentation networks by name; each gives logits of the height and width of its images.

unet              our own (`segray.models.unet`), random weights only
FAMILY:ENCODER    unet, unetplusplus, deeplabv3, deeplabv3plus, pspnet or fpn of
                  segmentation-models-pytorch, with its encoders (resnet34, efficientnet-b0, ...) or
                  timm's with tu- in front (tu-hrnet_w18)
fcn:ENCODER       torchvision's FCN, with resnet50 or resnet101
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from torch import nn

from segray.errors import SettingsError
from segray.models import fcn, smp_networks
from segray.models.batchnorm import tolerate_single_values
from segray.models.recompute import recomputed
from segray.models.samesize import SameSize, to_multiple
from segray.models.unet import UNet, UNetSettings, valid_input_size, valid_margin

FAMILIES = (*smp_networks.CLASSES, "fcn")
_RESIDUAL = ("resnet", "resnext")
"""How the names of encoders begin whose blocks stand in `layer1` to `layer4`."""


def build_semantic(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool = False
) -> nn.Module:
    """Return the network, float32, in training mode: float (n, bands, h, w) to logits (n, outputs, h, w).

    Any h and w from 1. Where a side is no multiple of the network's stride, the image is mirrored to the
    right and below and the logits cut; others pass as they are. `settings`: see `complete_settings`.
    `pretrained`: the encoder starts with weights from ImageNet (or what its authors offer), its first
    convolution fitted to `bands`. A single item whose pooled map is 1 x 1 can be trained on (see
    `tolerate_single_values`). Raises SettingsError for names, settings and encoders that do not go together,
    and where pretrained weights do not exist or cannot be had.
    """
    family, encoder = _parsed(arch)
    values = complete_settings(arch, settings)
    if bands < 1 or outputs < 1:
        raise SettingsError(f"{arch}: bands and outputs must be at least 1, not {bands} and {outputs}")
    if not encoder:
        return _own_unet(bands, outputs, UNetSettings(**values), pretrained)
    if family == "fcn":
        network, stride = fcn.build_fcn(encoder, bands, outputs, pretrained), fcn.STRIDE
    else:
        network, stride = smp_networks.build_smp(family, encoder, bands, outputs, values, pretrained)
    tolerate_single_values(network)
    return SameSize(network, partial(to_multiple, stride))


def complete_settings(arch: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the network as plain values, for the model file: the given ones over the defaults.

    "unet" has those of `UNetSettings`, the families of segmentation-models-pytorch the keyword arguments of
    their classes (`encoder_depth`, `decoder_channels`, ...), "fcn" none.
    Raises SettingsError for an unknown name, encoder or setting, and for one that is not plain.
    """
    family, encoder = _parsed(arch)
    known = _defaults(family, encoder)
    for name, value in settings.items():
        if name not in known:
            raise SettingsError(f"{arch} has no setting {name}{_near(name, known)}")
        if not _is_plain(value):
            raise SettingsError(f"{arch}: {name} must be numbers, text, or lists or tables of them")
    values = {**known, **settings}
    return values if encoder else asdict(UNetSettings(**values))


def check_recomputing(arch: str) -> None:
    """Raise SettingsError for an architecture that `recompute_blocks` does not know."""
    encoder = arch.partition(":")[2]
    if encoder and not encoder.startswith(_RESIDUAL):
        raise SettingsError(
            f"activation_checkpointing: {arch} cannot do it; unet can, and FAMILY:ENCODER with an encoder "
            "whose name begins with resnet or resnext"
        )


def recompute_blocks(network: nn.Module) -> None:
    """Let the blocks of a network from `build_semantic` be computed again in the backward pass, in place.

    Our own U-Net: the double convolutions. ResNets: each residual block, and the decoder blocks of the
    families that have some. Values, gradients, statistics and the names of the weights stay as they are.
    """
    inner: Any = network.network if isinstance(network, SameSize) else network
    if isinstance(inner, UNet):
        inner.checkpointing = True
        return
    for block in _blocks(inner):
        block.forward = partial(recomputed, block, block.forward)


def parameters_of(model: nn.Module) -> int:
    """How many numbers are learnt, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def _parsed(arch: str) -> tuple[str, str]:
    """Family and encoder, both known; our own U-Net has none."""
    if arch == "unet":
        return arch, ""
    family, _, encoder = arch.partition(":")
    if family not in FAMILIES:
        known = ", ".join(f"{each}:ENCODER" for each in FAMILIES)
        raise SettingsError(f"unknown architecture {arch}{_near(family, FAMILIES)}; known: unet, {known}")
    if not encoder:
        raise SettingsError(f"architecture {arch} needs an encoder, such as {family}:resnet50")
    encoders = fcn.ENCODERS if family == "fcn" else smp_networks.encoder_names(encoder)
    if encoder not in encoders:
        raise SettingsError(f"{family} has no encoder {encoder}{_near(encoder, encoders)}")
    return family, encoder


def _defaults(family: str, encoder: str) -> dict[str, Any]:
    if not encoder:
        return {each.name: each.default for each in fields(UNetSettings)}
    return {} if family == "fcn" else smp_networks.defaults(family)


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _blocks(network: Any) -> list[nn.Module]:
    encoder = network.backbone if hasattr(network, "backbone") else network.encoder
    stages = [stage for name, stage in encoder.named_children() if name.startswith("layer")]
    decoder = getattr(getattr(network, "decoder", None), "blocks", nn.ModuleList())
    return [block for stage in stages for block in stage.children()] + list(decoder.children())


def _own_unet(bands: int, outputs: int, settings: UNetSettings, pretrained: bool) -> nn.Module:
    if pretrained:
        raise SettingsError("unet has no pretrained weights; take unet:ENCODER, or train without pretrained")
    network = UNet(bands, outputs, settings)
    return SameSize(network, partial(_to_valid, settings)) if settings.padding == "valid" else network


def _to_valid(settings: UNetSettings, size: int) -> tuple[int, int]:
    """The border that a "valid" network loses, and behind the side what makes its size one that fits."""
    margin = valid_margin(settings)
    return margin, valid_input_size(size, settings) - size - margin
