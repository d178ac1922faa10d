"""Semantic segmentation networks by name; each gives logits of the height and width of its images."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.any_size import SameSize
from segray.models.architectures import architecture, complete_settings, part_of
from segray.models.recompute import recomputed


def build_semantic(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool = False
) -> nn.Module:
    """Return the network, float32, in training mode: float (n, bands, h, w) to logits (n, outputs, h, w).

    Any h and w from 1. Where a side is not a multiple of the network's stride, the image is mirrored to the
    right and below and the logits cut; others are passed unchanged. `settings`: see `complete_settings`.
    `pretrained`: the encoder starts with weights from ImageNet (or what its authors offer), its first
    convolution adapted to `bands`. A single item whose pooled map is 1 x 1 can be trained on (see
    `tolerate_single_values`). Raises SettingsError for names, settings and encoders that are incompatible,
    and where pretrained weights do not exist or cannot be fetched.
    """
    values, row = complete_settings(arch, settings), architecture(arch)
    if row.task != "semantic":
        raise SettingsError(f"{arch} finds instances, it is not a semantic architecture")
    if bands < 1 or outputs < 1:
        raise SettingsError(f"{arch}: bands and outputs must be at least 1, not {bands} and {outputs}")
    network: nn.Module = part_of(row.build)(arch, bands, outputs, values, pretrained)
    return network


def classes_of(logits: Tensor) -> Tensor:
    """Return the class of the highest probability, uint8 (n, h, w), from logits (n, outputs, h, w)."""
    return (logits[:, 0] > 0).byte() if logits.shape[1] == 1 else logits.argmax(1).byte()


def recompute_blocks(network: nn.Module) -> None:
    """Let the blocks of a network from `build_semantic` be computed again in the backward pass, in place.

    Our own networks: the convolutions of a level, the layers of a transformer. ResNets: each residual block,
    and the decoder blocks of the families that have some. Values, gradients, statistics and the names of the
    weights do not change.
    """
    inner: Any = network.network if isinstance(network, SameSize) else network
    if hasattr(inner, "checkpointing"):
        inner.checkpointing = True
        return
    for block in _blocks(inner):
        block.forward = partial(recomputed, block, block.forward)


def _blocks(network: Any) -> list[nn.Module]:
    encoder = network.backbone if hasattr(network, "backbone") else network.encoder
    stages = [stage for name, stage in encoder.named_children() if name.startswith("layer")]
    decoder = getattr(getattr(network, "decoder", None), "blocks", nn.ModuleList())
    return [block for stage in stages for block in stage.children()] + list(decoder.children())
