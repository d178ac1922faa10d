"""HRNetV2 (Wang et al. 2019), https://arxiv.org/abs/1908.07919: maps at 1/4 all the way, with coarser ones.

The backbone is timm's; the head is the paper's (its section 3.2, figure 4 b): the maps of all four
resolutions at 1/4, one after the other, through a 1 x 1 convolution to the classes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segray.models.any_size import any_size
from segray.models.pretrained import HUB, with_weights

_STRIDE = 32


class HRNet(nn.Module):
    """A network from float (n, bands, h, w), h and w multiples of 32, to logits (n, outputs, h, w)."""

    def __init__(self, encoder: nn.Module, widths: list[int], outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = sum(widths)
        self.head = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, kernel_size=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, outputs, h, w) of images (n, bands, h, w)."""
        maps = self.encoder(images)
        size = maps[0].shape[-2:]
        coarse = [functional.interpolate(each, size, mode="bilinear") for each in maps[1:]]
        logits = self.head(torch.cat([maps[0], *coarse], dim=1))
        return functional.interpolate(logits, images.shape[-2:], mode="bilinear")


def build_hrnet(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build HRNetV2, see `build_semantic`.

    pretrained: the backbone starts with timm's weights. Raises SettingsError if they cannot be fetched.
    """
    import timm

    build = partial(
        timm.create_model, f"hrnet_{arch.partition(':')[2]}", pretrained=pretrained, in_chans=bands,
        features_only=True, feature_location="", out_indices=(1, 2, 3, 4),
    )  # fmt: skip
    cache = "HF_HOME, by default ~/.cache/huggingface"
    encoder: Any = with_weights(arch, build, HUB, cache) if pretrained else build()
    return any_size(HRNet(encoder, encoder.feature_info.channels(), outputs), _STRIDE)
