"""Batch norms folded into convolutions against the networks as they were."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.misc import FrozenBatchNorm2d

from segray.annotate.fuse_batchnorm import fold_batch_norms

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def with_statistics(network: nn.Module) -> nn.Module:
    """Norms that do something, each another thing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, NORMS):
                for values, low in (
                    ("weight", 0.2),
                    ("running_var", 0.5),
                    ("bias", -0.5),
                    ("running_mean", -0.5),
                ):
                    tensor: Any = getattr(norm, values)
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return network.eval()


def norms_left(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


@pytest.mark.parametrize("norm_layer", NORMS)
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_resnet(block: Any, norm_layer: Any) -> None:
    torch.manual_seed(0)
    resnet = ResNet(block, [1, 1, 1, 1], norm_layer=norm_layer)
    network = with_statistics(IntermediateLayerGetter(resnet, {"layer1": "0", "layer4": "1"}))
    folded = copy.deepcopy(network)
    fold_batch_norms(folded)
    assert norms_left(network) > 0 == norms_left(folded)
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 96)
        for one, other in zip(network(image).values(), folded(image).values(), strict=True):
            assert (one - other).norm() < 1e-5 * one.norm()


class Shared(nn.Module):
    """One convolution before two norms, and a norm that measures its batch."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        self.one = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
        self.two = nn.Sequential(conv, nn.BatchNorm2d(3))
        self.three = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
        self.four = Conv2dNormActivation(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.four(self.three(self.two(self.one(image))))
        return answer


def test_only_what_is_safe() -> None:
    network = with_statistics(Shared())
    folded = copy.deepcopy(network)
    fold_batch_norms(folded)
    assert norms_left(folded) == norms_left(network) - 1
    image = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(folded(image), network(image))
