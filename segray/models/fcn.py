"""torchvision's FCN (Long, Shelhamer and Darrell, 2015, https://arxiv.org/abs/1411.4038) for any bands."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from segray.models.any_size import any_size
from segray.models.encoder_weights import for_bands
from segray.models.imports import import_torchvision
from segray.models.pretrained import with_weights

_STRIDE = 8


def build_fcn(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build torchvision's network without its auxiliary classifier; see `build_semantic`.

    pretrained: the ResNet starts with torchvision's IMAGENET1K_V1. Raises SettingsError if it cannot be
    fetched.
    """
    import_torchvision()
    from torchvision.models import segmentation

    weights = "IMAGENET1K_V1" if pretrained else None
    build = partial(
        getattr(segmentation, arch.replace(":", "_")),
        num_classes=outputs, aux_loss=False, weights_backbone=weights,
    )  # fmt: skip
    cache = "TORCH_HOME, by default ~/.cache/torch"
    network = with_weights(arch, build, "download.pytorch.org", cache) if pretrained else build()
    if bands != 3:
        backbone: Any = network.backbone
        backbone["conv1"] = _first_convolution(backbone["conv1"].weight.detach(), bands, pretrained)
    return any_size(network, _STRIDE)


def _first_convolution(three: Tensor, bands: int, pretrained: bool) -> nn.Conv2d:
    """Return ResNet's first convolution for `bands` instead of three: new weights, or `for_bands`."""
    fitted = nn.Conv2d(bands, len(three), kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(fitted.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNet
    if pretrained:
        fitted.weight = nn.Parameter(for_bands(three, bands))
    return fitted
