"""The U-Net of Ronneberger, Fischer and Brox (2015), https://arxiv.org/abs/1505.04597.

Padding "same" is what most code means by U-Net: zeros around every 3 x 3 convolution, logits as large as the
image. Padding "valid" is the paper's: no zeros, each level loses 4 pixels, 572 x 572 becomes 388 x 388, so a
large image needs a mirrored border (`any_size`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from segray.errors import SettingsError
from segray.models.any_size import SameSize
from segray.models.batchnorm import tolerate_single_values
from segray.models.recompute import recomputed

Padding = Literal["same", "valid"]
Up = Literal["transposed", "bilinear"]
Norm = Literal["batch", "group", "sync", "none"]
_CHOICES = {"padding": get_args(Padding), "up": get_args(Up), "norm": get_args(Norm)}


@dataclass(frozen=True)
class UNetSettings:
    """Settings of the architecture in plain values; a model file stores every one of them."""

    width: int = 64
    """Channels of the first level; each level below has twice as many."""
    depth: int = 4
    """Number of times the maps are halved."""
    padding: Padding = "same"
    up: Up = "transposed"
    """Upsampling: a transposed 2 x 2 convolution, or a 1 x 1 convolution and interpolation."""
    norm: Norm = "batch"
    """"sync" is "batch" over all workers; training it needs GPUs, even with one worker."""
    bias: bool = True
    """Whether the 3 x 3 convolutions have a bias; before a normalisation it has no effect."""
    groups: int = 8
    """Groups of "group" normalisation; divides `width`."""
    checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its maps: less memory, more time."""
    arch: ClassVar[str] = "unet"

    def __post_init__(self) -> None:
        """Raise SettingsError, one line, for an invalid value."""
        for name, value in asdict(self).items():
            if name in ("width", "depth", "groups") and (type(value) is not int or value < 1):
                raise SettingsError(f"{self.arch}: {name} must be a whole number from 1, not {value!r}")
            if name in _CHOICES and value not in _CHOICES[name]:
                raise SettingsError(
                    f"{self.arch}: {name} must be one of {', '.join(_CHOICES[name])}, not {value!r}"
                )
            if name in ("bias", "checkpointing") and type(value) is not bool:
                raise SettingsError(f"{self.arch}: {name} must be true or false, not {value!r}")
        if self.norm == "group" and self.width % self.groups:
            raise SettingsError(
                f"{self.arch}: groups must divide width; {self.groups} does not divide {self.width}"
            )


class UNet(nn.Module):
    """A network from float (n, bands, h, w) to logits (n, outputs, h', w').

    "same": any h and w from 1; h' = h and w' = w. Where a side is odd, pooling leaves its last row or column
    out, and the upsampled map gets zeros there. A side of one pixel is not halved any further; the upsampled
    map is cut to it. "valid": h and w are sizes that `valid_output_size` takes, which also gives h' and w';
    others raise SettingsError.
    """

    def __init__(self, bands: int, outputs: int, settings: UNetSettings) -> None:
        super().__init__()
        self.settings = settings
        self.checkpointing = settings.checkpointing
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        self.down = nn.ModuleList(
            _double_convolution(width_in, width_out, settings)
            for width_in, width_out in zip([bands, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = _double_convolution(widths[-2], widths[-1], settings)
        self.enlarge = nn.ModuleList(_doubling(width, settings.up) for width in widths[:0:-1])
        self.up = nn.ModuleList(_double_convolution(width, width // 2, settings) for width in widths[:0:-1])
        self.head = nn.Conv2d(settings.width, outputs, kernel_size=1)
        tolerate_single_values(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, outputs, h', w') of images (n, bands, h, w); channels_last is kept."""
        if self.settings.padding == "valid":
            for size in images.shape[-2:]:
                valid_output_size(size, self.settings)
        maps, skips = images, []
        for block in self.down:
            maps = self._through(block, maps)
            skips.append(maps)
            maps = _halved(maps)
        maps = self._through(self.bottom, maps)
        for level, (enlarge, block) in enumerate(zip(self.enlarge, self.up, strict=True)):
            skip = self._skip(level, skips.pop(), maps)
            maps = self._through(block, self._joined(skip, enlarge(maps)))
        logits: Tensor = self.head(maps)
        return logits

    def _skip(self, level: int, skip: Tensor, maps: Tensor) -> Tensor:
        """Return what is joined of a skip (n, c, h, w); maps (n, 2 c, h / 2, w / 2): those from below.

        level: 0 for the deepest.
        """
        return skip

    def _joined(self, skip: Tensor, maps: Tensor) -> Tensor:
        """Concatenate, skip first, after the sides are made equal."""
        if self.settings.padding == "same":
            return torch.cat([skip, _cut_or_filled(maps, *skip.shape[-2:])], dim=1)
        lost = _lost_in_doubling(self.settings) // 2
        maps = maps[..., lost : maps.shape[-2] - lost, lost : maps.shape[-1] - lost]
        return torch.cat([_centre(skip, *maps.shape[-2:]), maps], dim=1)

    def _through(self, block: nn.Module, maps: Tensor) -> Tensor:
        result: Tensor = recomputed(block, block, maps) if self.checkpointing else block(maps)
        return result


def build_unet(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build our U-Net, see `build_semantic`.

    Raises SettingsError if pretrained: there are no such weights.
    """
    if pretrained:
        raise SettingsError(
            f"{arch} has no pretrained weights; use unet:ENCODER, or train without pretrained"
        )
    own = UNetSettings(**settings)
    network = UNet(bands, outputs, own)
    return SameSize(network, partial(_to_valid, own)) if own.padding == "valid" else network


def _to_valid(settings: UNetSettings, size: int) -> tuple[int, int]:
    """Return the border that a "valid" network loses, and the pixels after the side that make it fit."""
    margin = valid_margin(settings)
    return margin, valid_input_size(size, settings) - size - margin


def valid_margin(settings: UNetSettings) -> int:
    """Return the pixels that a "valid" network loses on each side: 92 at depth 4.

    With b the side of the map after the lowest block, an image has 2^depth (b + 4) + 4 (2^depth - 1) pixels
    along it and the logits 2^depth b - (4 + l) (2^depth - 1), where l is what a doubling loses: 0 transposed,
    2 bilinear (interpolation reads beyond the last pixel, so that row is dropped). b cancels.
    """
    scale = 1 << settings.depth
    return (4 * scale + (8 + _lost_in_doubling(settings)) * (scale - 1)) // 2


def valid_output_size(image_size: int, settings: UNetSettings) -> int:
    """Return the side of a "valid" network's logits, in pixels, for an image of `image_size`: 388 for 572.

    Raises SettingsError, with the nearest sizes that work, if a map on the way would be odd or empty.
    """
    size = image_size - 2 * valid_margin(settings)
    above = valid_input_size(size, settings)
    if size >= 1 and above == image_size:
        return size
    below = above - 2**settings.depth
    fit = [str(each) for each in (below, above) if each >= valid_input_size(1, settings)]
    raise SettingsError(
        f"unet: padding valid does not take a side of {image_size} pixels at depth {settings.depth}; "
        f"the nearest that fit: {', '.join(fit)}"
    )


def valid_input_size(output_size: int, settings: UNetSettings) -> int:
    """Return the smallest side of an image, in pixels, whose logits have at least `output_size`: 572 for 388.

    Sizes that work are 2^depth pixels apart, as no pooling may leave a pixel out.
    """
    scale = 1 << settings.depth
    lost = (4 + _lost_in_doubling(settings)) * (scale - 1)
    lowest = -(-(max(1, output_size) + lost) // scale)
    return lowest * scale - lost + 2 * valid_margin(settings)


def _double_convolution(width_in: int, width_out: int, settings: UNetSettings) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (width_in, width_out):
        padding = int(settings.padding == "same")
        convolution = nn.Conv2d(width, width_out, kernel_size=3, padding=padding, bias=settings.bias)
        # Standard deviation sqrt(2 / incoming values), the paper's section 3: the variance survives ReLU.
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        layers += [convolution, *_norm(width_out, settings), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _norm(width: int, settings: UNetSettings) -> list[nn.Module]:
    if settings.norm == "batch":
        return [nn.BatchNorm2d(width)]
    if settings.norm == "sync":
        return [nn.SyncBatchNorm(width)]
    return [nn.GroupNorm(settings.groups, width)] if settings.norm == "group" else []


def _doubling(width: int, up: Up) -> nn.Module:
    if up == "transposed":
        return nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
    # A 1 x 1 convolution and interpolation commute; this order has a quarter of the work.
    return nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"))


def _lost_in_doubling(settings: UNetSettings) -> int:
    return 2 if settings.up == "bilinear" else 0


def _halved(maps: Tensor) -> Tensor:
    window = [min(2, side) for side in maps.shape[-2:]]
    return functional.max_pool2d(maps, window)


def _cut_or_filled(maps: Tensor, height: int, width: int) -> Tensor:
    """Pad with zeros to the right and below where the skip is larger; cut where it is smaller."""
    lower, right = height - maps.shape[-2], width - maps.shape[-1]
    return functional.pad(maps, (0, right, 0, lower)) if lower or right else maps


def _centre(maps: Tensor, height: int, width: int) -> Tensor:
    top, left = (maps.shape[-2] - height) // 2, (maps.shape[-1] - width) // 2
    return maps[..., top : top + height, left : left + width]
