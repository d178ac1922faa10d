"""Convolution and activation in one pass over memory, on a CPU.

oneDNN clamps the numbers of a convolution before it stores them, by the operator that torch's own compiler
uses: the same numbers bit by bit, and no second pass, which took 15 % of a MobileNet-like encoder.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from segray.models.fuse_batchnorm import followers, is_convolution, runs_in_order

_CLAMPS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class ActivatedConv2d(nn.Module):
    """A convolution and the activation after it, (n, c, h, w) to (n, d, h, w); for inference on a CPU."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        self._name, self._constants = _CLAMPS[type(activation)]
        self._pads_before = type(conv) is not nn.Conv2d  # timm's that pads as TensorFlow does

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated map, in the weights' dtype."""
        conv: Any = self.conv
        x, padding = x.to(conv.weight.dtype), conv.padding
        if x.numel() == 0 or not _is_supported(x.dtype):
            result: Tensor = self.activation(conv(x))
            return result
        if self._pads_before:
            from timm.layers.padding import pad_same

            x, padding = pad_same(x, conv.kernel_size, conv.stride, conv.dilation), (0, 0)
        joined: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups,
            self._name, self._constants, "",
        )  # fmt: skip
        return joined


def fuse_activations(network: nn.Module) -> None:
    """Join, in place, each convolution with the ReLU or ReLU6 that alone gets its output.

    network: in evaluation mode on a CPU, after `fold_batch_norms`. Where torch lacks the operator nothing is
    changed.
    """
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return
    uses = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    for owner in list(network.modules()):
        for conv_name, next_name in _pairs(owner):
            conv, activation = getattr(owner, conv_name), getattr(owner, next_name)
            if _is_plain(conv) and type(activation) in _CLAMPS and uses[id(conv)] == 1:
                setattr(owner, conv_name, ActivatedConv2d(conv, activation))
                setattr(owner, next_name, nn.Identity())


@cache
def _is_supported(dtype: torch.dtype) -> bool:
    """Return whether the operator has it on this CPU: torch itself emulates what oneDNN does not have."""
    if dtype == torch.float32:
        return True
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    ask: Any = getattr(torch.ops.mkldnn, asked.get(dtype, "_"), None)
    return ask is not None and bool(ask())


def _is_plain(conv: Any) -> bool:
    return is_convolution(conv) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _pairs(owner: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield names of children of which the second alone gets the output of the first, folded norms apart."""
    yield from followers(owner)
    if runs_in_order(owner):
        names = [name for name, child in owner.named_children() if type(child) is not nn.Identity]
        yield from itertools.pairwise(names)
