"""The Attention U-Net of Oktay et al. (2018), https://arxiv.org/abs/1804.03999: our U-Net with gated skips.

The gates are the paper's additive ones (its figure 2, equations 1 and 2), on the grid of the coarser maps;
its section 3.1 leaves out the first skip, whose maps are too low a level to be gated.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segray.errors import SettingsError
from segray.models.unet import UNet, UNetSettings


class AttentionUNetSettings(UNetSettings):
    """Settings of a U-Net; the padding is "same"."""

    arch = "attention_unet"

    def __post_init__(self) -> None:
        """Raise SettingsError, one line, for an invalid value."""
        super().__post_init__()
        if self.padding != "same":
            raise SettingsError(f"{self.arch}: padding must be same: a gate needs the whole skip")


class AdditiveGate(nn.Module):
    """Weights the pixels of a skip by a signal from the level below.

    With skip x and signal g: alpha = sigmoid(psi(relu(W_x x + W_g g + b_g)) + b_psi), the result alpha x. W_x
    is a 2 x 2 convolution of stride 2, which brings x to the grid of g; alpha is interpolated back.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_skip = nn.Conv2d(width, width, kernel_size=2, stride=2, bias=False)
        self.of_signal = nn.Conv2d(2 * width, width, kernel_size=1)
        self.psi = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return the gated skip (n, c, h, w); signal (n, 2 c, h', w'), h' and w' half of h and w, from 1."""
        height, width = skip.shape[-2:]
        whole = functional.pad(skip, (0, int(width == 1), 0, int(height == 1)))  # a side of 1 is not halved
        both = torch.relu(self.of_skip(whole) + self.of_signal(signal))
        alpha = functional.interpolate(self.psi(both).sigmoid(), (height, width), mode="bilinear")
        return skip * alpha


class AttentionUNet(UNet):
    """A network from float (n, bands, h, w), any h and w from 1, to logits (n, outputs, h, w)."""

    def __init__(self, bands: int, outputs: int, settings: UNetSettings) -> None:
        super().__init__(bands, outputs, settings)
        levels = range(settings.depth - 1, 0, -1)
        self.gates = nn.ModuleList(AdditiveGate(settings.width * 2**level) for level in levels)

    def _skip(self, level: int, skip: Tensor, maps: Tensor) -> Tensor:
        if level == len(self.gates):
            return skip
        gated: Tensor = self.gates[level](skip, maps)
        return gated


def build_attention_unet(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build the Attention U-Net, see `build_semantic`.

    Raises SettingsError if pretrained: there are no such weights.
    """
    if pretrained:
        raise SettingsError(f"{arch} has no pretrained weights; train without pretrained")
    return AttentionUNet(bands, outputs, AttentionUNetSettings(**settings))
