"""Prepare a network's weights for inference: fuse batch norms into convolutions, cast numbers once.

In inference a batch norm is y = (x - mean) * gain / sqrt(variance + eps) + bias, an affine map of each
channel, as the convolution before it is: the two are one convolution with other weights (Jacob et al.,
https://arxiv.org/abs/1712.05877, section 3.2). The same up to rounding, with one pass over memory less.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import FrozenBatchNorm2d

TIMM_BLOCKS = frozenset(
    {
        *("BasicBlock", "Bottleneck", "ConvBnAct", "DepthwiseSeparableConv", "InvertedResidual"),
        *("ConvNormAct", "EdgeResidual", "EfficientNetFeatures", "MobileNetV3Features"),
    }
)
"""Classes of timm whose children run in their order where a norm follows a convolution."""


def fold_batch_norms(network: nn.Module) -> None:
    """Fuse, in place, each batch norm that is known to follow a convolution directly.

    network: in evaluation mode. Known: neighbours in a `Sequential`, the blocks of torchvision's ResNet, and
    blocks and stems of timm's ResNets, EfficientNets and MobileNets, whose norms may include an activation.
    Others are not changed, nor are modules that are used twice.
    """
    uses = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    for owner in list(network.modules()):
        for conv_name, norm_name in followers(owner):
            conv, norm = getattr(owner, conv_name), getattr(owner, norm_name)
            if is_convolution(conv) and _is_affine(norm) and uses[id(conv)] == uses[id(norm)] == 1:
                _fold(conv, norm)
                setattr(owner, norm_name, getattr(norm, "act", nn.Identity()))


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast, in place, what autocast would cast in each call: weights of convolutions and linear maps."""
    for module in network.modules():
        if is_convolution(module) or type(module) in (nn.ConvTranspose2d, nn.Linear):
            module.to(dtype)


def followers(owner: Any) -> Iterator[tuple[str, str]]:
    """Yield names of children of which the second alone gets the output of the first."""
    names = [name for name, _ in owner.named_children()]
    if isinstance(owner, IntermediateLayerGetter) or _is_feature_list(owner):
        # runs its children in order, and returns some outputs
        yield from (pair for pair in pairwise(names) if pair[0] not in owner.return_layers)
    elif runs_in_order(owner):
        yield from pairwise(names)
    elif type(owner) in (BasicBlock, Bottleneck):
        yield from ((name, name.replace("conv", "bn")) for name in names if name.startswith("conv"))
    elif _is_of_timm(owner) and type(owner).__name__ in TIMM_BLOCKS:
        yield from pairwise(names)


def runs_in_order(owner: nn.Module) -> bool:
    """Return whether it is a `Sequential`, whose children have no other use of their outputs."""
    return type(owner).forward is nn.Sequential.forward


def _is_affine(norm: nn.Module) -> bool:
    """Return whether it is the affine map above: a batch norm that uses batch statistics is not."""
    if type(norm) is FrozenBatchNorm2d or (type(norm) is nn.BatchNorm2d and norm.running_mean is not None):
        return True
    known = type(norm).__name__ in ("BatchNormAct2d", "FrozenBatchNormAct2d", "FrozenBatchNorm2d")
    return _is_of_timm(norm) and known and norm.running_mean is not None


def is_convolution(module: nn.Module) -> bool:
    """Return whether it is a convolution, perhaps timm's that pads as TensorFlow does before it."""
    same = type(module).__name__ == "Conv2dSame" and _is_of_timm(module)
    return type(module) is nn.Conv2d or same


def _is_feature_list(module: nn.Module) -> bool:
    return type(module).__name__ == "FeatureListNet" and _is_of_timm(module)


def _is_of_timm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.")


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Fuse in float64, rounded once."""
    weight, mean, variance = conv.weight.double(), norm.running_mean.double(), norm.running_var.double()
    bias, gain, shift = (
        None if each is None else each.double() for each in (conv.bias, norm.weight, norm.bias)
    )
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, gain, shift)
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
