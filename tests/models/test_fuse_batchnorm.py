"""Batch norms folded into convolutions against the networks as they were."""

import copy
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.misc import FrozenBatchNorm2d

from segray.models.fuse_activation import ActivatedConv2d, fuse_activations
from segray.models.fuse_batchnorm import fold_batch_norms

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


def test_activations_join_their_convolutions_bit_by_bit() -> None:
    """An encoder with TensorFlow's padding and ReLU6, in both precisions; a map without images too."""
    torch.manual_seed(0)
    network = with_statistics(timm.create_model("tf_efficientnet_lite0", features_only=True))
    fold_batch_norms(network)
    for dtype in (torch.float32, torch.bfloat16):
        plain = copy.deepcopy(network).to(dtype).to(memory_format=torch.channels_last)
        fused = copy.deepcopy(plain)
        fuse_activations(fused)
        kinds = Counter(type(module) for module in fused.modules())
        assert kinds[ActivatedConv2d] == 32
        assert kinds[nn.ReLU6] == 32  # each inside one
        image = torch.rand(2, 3, 64, 96, dtype=dtype).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            for one, other in zip(plain(image), fused(image), strict=True):
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
            assert [each.shape for each in fused(image[:0])] == [each.shape for each in plain(image[:0])]


def test_only_activations_that_alone_get_a_convolution() -> None:
    shared = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(shared, nn.ReLU()),
        nn.Sequential(shared, nn.Sigmoid()),
        nn.Sequential(nn.Conv2d(3, 3, 1, padding="same"), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU()),
        BasicBlock(3, 3),
    ).eval()
    fold_batch_norms(network)
    fused = copy.deepcopy(network)
    fuse_activations(fused)
    joined = [name for name, module in fused.named_modules() if isinstance(module, ActivatedConv2d)]
    assert joined == ["0.0"]
    image = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fused(image), network(image))
        half = image.half()  # oneDNN has it on few CPUs
        torch.testing.assert_close(fused[0].half()(half), network[0].half()(half))
