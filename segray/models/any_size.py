"""Networks that take only some sizes, behind a mirrored border."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from segray.models.batchnorm import tolerate_single_values


class SameSize(nn.Module):
    """Any size in, logits of that size out; an image that needs no border is passed on unchanged."""

    def __init__(self, network: nn.Module, border: Callable[[int], tuple[int, int]]) -> None:
        super().__init__()
        self.network = network
        self.border = border
        """Side -> pixels to add before and after it; the logits begin at the side's first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        """Map float (n, bands, h, w) to logits (n, outputs, h, w), h and w from 1."""
        height, width = images.shape[-2:]
        for dimension in (-2, -1):
            images = _bordered(images, dimension, *self.border(images.shape[dimension]))
        result = self.network(images)
        logits: Tensor = result["out"] if isinstance(result, Mapping) else result  # torchvision's give a dict
        return logits[..., :height, :width]


def any_size(network: nn.Module, stride: int) -> SameSize:
    """Let a network whose sides must be multiples of `stride` take any, and train on a map of 1 x 1."""
    tolerate_single_values(network)
    return SameSize(network, partial(_to_multiple, stride))


def _to_multiple(stride: int, size: int) -> tuple[int, int]:
    """Return the border after a side that makes it a multiple of `stride`."""
    return 0, -size % stride


def mirrored(start: int, stop: int, size: int) -> Tensor:
    """Return int64 (stop - start): indices of positions start..stop on an endless mirrored line of `size`
    pixels.

    The first and the last pixel are not repeated, as in numpy's `pad` with mode "reflect"; any distance.
    """
    period = max(1, 2 * (size - 1))
    position = torch.arange(start, stop) % period
    return torch.minimum(position, period - position)


def _bordered(images: Tensor, dimension: int, before: int, after: int) -> Tensor:
    if not before and not after:
        return images
    size = images.shape[dimension]
    return images.index_select(dimension, mirrored(-before, size + after, size).to(images.device))
