"""SegNet (Badrinarayanan, Kendall and Cipolla 2015), https://arxiv.org/abs/1511.00561.

The 13 convolutions of VGG16 with batch normalisation, and their mirror image. No map is carried over from
encoder to decoder, only where each 2 x 2 pooling found its maximum: the decoder puts its values back there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from segray.errors import SettingsError
from segray.models.any_size import any_size
from segray.models.first_convolution import for_bands
from segray.models.imports import import_torchvision
from segray.models.pretrained import with_weights
from segray.models.recompute import recomputed

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Of VGG16 (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, table 1, D): channels in multiples
of `width`, and convolutions, before each pooling."""
_VGG_WIDTH = 64
_STRIDE = 2 ** len(_STAGES)


@dataclass(frozen=True)
class SegNetSettings:
    """Settings of the architecture in plain values; a model file stores every one of them."""

    width: int = _VGG_WIDTH
    """Channels of the first stage; VGG16 has 64."""

    def __post_init__(self) -> None:
        """Raise SettingsError, one line, for an invalid value."""
        if type(self.width) is not int or self.width < 1:
            raise SettingsError(f"segnet: width must be a whole number from 1, not {self.width!r}")


class SegNet(nn.Module):
    """A network from float (n, bands, h, w), h and w multiples of 32, to logits (n, outputs, h, w)."""

    def __init__(self, bands: int, outputs: int, settings: SegNetSettings) -> None:
        super().__init__()
        self.checkpointing = False
        """Whether stages are computed again in the backward pass, see `recompute_blocks`."""
        widths = [settings.width * times for times, _ in _STAGES]
        counts = [count for _, count in _STAGES]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for width_in, width, count in zip([bands, *widths], widths, counts, strict=False):
            self.encoder.append(_convolutions([width_in] + [width] * count))
        for width_out, width, count in zip(widths[-2::-1], widths[:0:-1], counts[:0:-1], strict=True):
            self.decoder.append(_convolutions([width] * count + [width_out]))
        self.decoder.append(_convolutions([widths[0]] * counts[0]))
        self.head = nn.Conv2d(widths[0], outputs, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, outputs, h, w) of images (n, bands, h, w); channels_last is kept."""
        maps, maxima = images, []
        for stage in self.encoder:
            maps = self._through(stage, maps)
            size = maps.shape[-2:]
            maps, indices = functional.max_pool2d(maps, 2, return_indices=True)
            maxima.append((indices, size))
        for stage, (indices, size) in zip(self.decoder, reversed(maxima), strict=True):
            maps = self._through(stage, functional.max_unpool2d(maps, indices, [2, 2], output_size=size))
        logits: Tensor = self.head(maps)
        return logits

    def _through(self, stage: nn.Module, maps: Tensor) -> Tensor:
        result: Tensor = recomputed(stage, stage, maps) if self.checkpointing else stage(maps)
        return result


def build_segnet(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build SegNet, see `build_semantic`.

    pretrained: the encoder starts with torchvision's VGG16 (IMAGENET1K_V1). Raises SettingsError if it cannot
    be fetched, and for another width.
    """
    own = SegNetSettings(**settings)
    network = SegNet(bands, outputs, own)
    if pretrained:
        if own.width != _VGG_WIDTH:
            raise SettingsError(f"{arch}: pretrained weights are those of VGG16, whose width is {_VGG_WIDTH}")
        cache = "TORCH_HOME, by default ~/.cache/torch"
        with_weights(arch, lambda: _begin_with_vgg16(network, bands), "download.pytorch.org", cache)
    return any_size(network, _STRIDE)


def _begin_with_vgg16(network: SegNet, bands: int) -> nn.Module:
    """Load the encoder's convolutions and norms, in place; the order of the tensors is the same in both."""
    import_torchvision()
    from torchvision.models import VGG16_BN_Weights

    theirs: Mapping[str, Tensor] = VGG16_BN_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    values = [value for name, value in theirs.items() if name.startswith("features.") and value.dim()]
    values[0] = for_bands(values[0], bands)
    own = network.encoder.state_dict()
    names = [name for name, value in own.items() if value.dim()]  # without the counters of the norms
    network.encoder.load_state_dict(own | dict(zip(names, values, strict=True)))
    return network


def _convolutions(widths: list[int]) -> nn.Sequential:
    """Return 3 x 3 convolutions from each width to the next, with normalisation and ReLU."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        convolution = nn.Conv2d(width_in, width_out, kernel_size=3, padding=1)
        # as in the paper's section 4: He et al. 2015, https://arxiv.org/abs/1502.01852
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
