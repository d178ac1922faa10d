"""TransUNet (Chen et al. 2021), https://arxiv.org/abs/2102.04306: a ResNet, a vision transformer, a decoder.

As the paper's R50-ViT-B/16: three stages of a ResNet, whose maps at 1/16 are the transformer's tokens, and a
cascaded upsampler with the ResNet's maps at 1/8, 1/4 and 1/2 as skips. Here the ResNet is torchvision's
(batch normalisation, 3-4-6 blocks), the paper's is Google's (group normalisation, 3-4-9 blocks).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from segray.errors import SettingsError
from segray.models.any_size import any_size
from segray.models.encoder_weights import for_bands
from segray.models.imports import import_torchvision
from segray.models.pretrained import with_weights
from segray.models.recompute import recomputed

ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
_STRIDE = 16


@dataclass(frozen=True)
class TransUNetSettings:
    """Settings of the architecture in plain values; a model file stores every one of them."""

    encoder: ResNet = "resnet50"
    width: int = 768
    """Channels of a token."""
    layers: int = 12
    """Layers of the transformer."""
    heads: int = 12
    """Heads of its attention; divide `width`."""
    mlp: int = 3072
    """Hidden channels of its layers."""
    dropout: float = 0.1
    grid: int = 14
    """Side of the grid of position embeddings that is learnt, in tokens of 16 pixels; other sizes interpolate
    it."""
    decoder_channels: tuple[int, ...] = (256, 128, 64, 16)
    """Of the four blocks that each double the maps."""

    def __post_init__(self) -> None:
        """Raise SettingsError, one line, for an invalid value."""
        if self.encoder not in get_args(ResNet):
            raise SettingsError(
                f"transunet: encoder must be one of {', '.join(get_args(ResNet))}, not {self.encoder!r}"
            )
        for name in ("width", "layers", "heads", "mlp", "grid"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise SettingsError(f"transunet: {name} must be a whole number from 1, not {value!r}")
        if self.width % self.heads:
            raise SettingsError(
                f"transunet: heads must divide width; {self.heads} does not divide {self.width}"
            )
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise SettingsError(
                f"transunet: dropout must be a number from 0 to below 1, not {self.dropout!r}"
            )
        channels = self.decoder_channels
        if not isinstance(channels, list | tuple) or len(channels) != 4 or not all(map(_is_count, channels)):
            raise SettingsError(
                f"transunet: decoder_channels must be four whole numbers from 1, not {channels!r}"
            )


class TransUNet(nn.Module):
    """A network from float (n, bands, h, w), h and w multiples of 16, to logits (n, outputs, h, w)."""

    def __init__(self, bands: int, outputs: int, settings: TransUNetSettings) -> None:
        super().__init__()
        self.checkpointing = False
        """Whether layers and blocks are computed again in the backward pass, see `recompute_blocks`."""
        self.encoder: Any = _resnet(settings.encoder)
        del self.encoder.layer4, self.encoder.avgpool, self.encoder.fc
        root = self.encoder.conv1
        if bands != 3:
            root = nn.Conv2d(bands, root.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(root.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
            self.encoder.conv1 = root
        wide = self.encoder.layer1[-1]
        first = wide.conv3.out_channels if hasattr(wide, "conv3") else wide.conv2.out_channels
        self.transformer = Transformer(4 * first, settings)
        self.neck = _convolution(settings.width, 2 * settings.decoder_channels[0])
        channels = [2 * settings.decoder_channels[0], *settings.decoder_channels]
        skips = [2 * first, first, root.out_channels, 0]
        self.decoder = nn.ModuleList(
            nn.Sequential(_convolution(width + skip, width_out), _convolution(width_out, width_out))
            for (width, width_out), skip in zip(pairwise(channels), skips, strict=True)
        )
        self.head = nn.Conv2d(channels[-1], outputs, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, outputs, h, w) of images (n, bands, h, w)."""
        encoder = self.encoder
        maps = encoder.relu(encoder.bn1(encoder.conv1(images)))
        skips = [maps]
        maps = encoder.maxpool(maps)
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3):
            for block in stage:
                maps = self._through(block, maps)
            skips.append(maps)
        maps = self.transformer(skips.pop(), self.checkpointing)
        maps = self.neck(maps)
        for block in self.decoder:
            maps = functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
            if skips:
                maps = torch.cat([maps, skips.pop()], dim=1)
            maps = self._through(block, maps)
        logits: Tensor = self.head(maps)
        return logits

    def _through(self, block: nn.Module, maps: Tensor) -> Tensor:
        result: Tensor = recomputed(block, block, maps) if self.checkpointing else block(maps)
        return result


class Transformer(nn.Module):
    """A vision transformer over the pixels of a map (Dosovitskiy 2020, https://arxiv.org/abs/2010.11929)."""

    def __init__(self, width_in: int, settings: TransUNetSettings) -> None:
        super().__init__()
        width = settings.width
        self.embed = nn.Conv2d(width_in, width, kernel_size=1)
        self.positions = nn.Parameter(torch.zeros(1, width, settings.grid, settings.grid))
        nn.init.trunc_normal_(self.positions, std=0.02)  # as timm's, and BERT's before it
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, settings.heads, settings.mlp, settings.dropout, "gelu",
                layer_norm_eps=1e-6, batch_first=True, norm_first=True,
            )
            for _ in range(settings.layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, maps: Tensor, checkpointing: bool = False) -> Tensor:
        """Return maps (n, width, h, w) of maps (n, width_in, h, w)."""
        height, width = maps.shape[-2:]
        tokens = (self.embed(maps) + self._positions(height, width)).flatten(2).transpose(1, 2)
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = recomputed(layer, layer, tokens) if checkpointing else layer(tokens)
        result: Tensor = self.norm(tokens).transpose(1, 2).unflatten(2, (height, width))
        return result

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the position embeddings (1, width, h, w), interpolated where the grid is another."""
        if self.positions.shape[-2:] == (height, width):
            return self.positions
        return functional.interpolate(self.positions, (height, width), mode="bilinear", antialias=True)


def build_transunet(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build TransUNet, see `build_semantic`.

    pretrained: the ResNet starts with torchvision's IMAGENET1K_V1, the transformer with random weights.
    Raises SettingsError if they cannot be fetched.
    """
    own = TransUNetSettings(**settings)
    network = TransUNet(bands, outputs, own)
    if pretrained:
        cache = "TORCH_HOME, by default ~/.cache/torch"
        begin = partial(_begin_with_resnet, network, own.encoder, bands)
        with_weights(arch, begin, "download.pytorch.org", cache)
    return any_size(network, _STRIDE)


def _begin_with_resnet(network: TransUNet, name: str, bands: int) -> nn.Module:
    """Load the weights of torchvision's ResNet, in place."""
    theirs: Mapping[str, Tensor] = _resnet(name, weights="IMAGENET1K_V1").state_dict()
    state = {key: theirs[key] for key in network.encoder.state_dict()}
    state["conv1.weight"] = for_bands(state["conv1.weight"], bands)
    network.encoder.load_state_dict(state)
    return network


def _resnet(name: str, **how: Any) -> Any:
    import_torchvision()
    from torchvision import models

    return getattr(models, name)(**how)


def _convolution(width_in: int, width_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1
