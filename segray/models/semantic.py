"""Semantic segmentation networks by name; each gives logits of the height and width of its images.

Which names there are, `architectures` says.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from segray.errors import SettingsError
from segray.models import fcn, smp_networks
from segray.models.architectures import complete_settings, parsed
from segray.models.batchnorm import tolerate_single_values
from segray.models.recompute import recomputed
from segray.models.samesize import SameSize, to_multiple
from segray.models.unet import UNet, valid_input_size, valid_margin
from segray.models.unet_settings import UNetSettings


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
    family, encoder = parsed(arch)
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
