"""What tests of networks against a second, plainly written implementation share."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


def lively(model: nn.Module) -> nn.Module:
    """Make every number matter, in place: biases, scales and statistics that are no longer 0 and 1."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.copy_(torch.randn(tensor.shape, generator=draw) / 4)
        if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return model


def image(height: int, width: int, bands: int = 3, items: int = 2) -> Tensor:
    """Float pixels (items, bands, height, width), always the same."""
    return torch.randn(items, bands, height, width, generator=torch.Generator().manual_seed(2))


def untouched(model: nn.Module) -> list[str]:
    """The parameters that no gradient reached."""
    reached = {n for n, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    return [name for name, _ in model.named_parameters() if name not in reached]


class Weights:
    """A state dict, and the layers that read it by name, in evaluation mode."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)
        self.read: set[str] = set()

    def __call__(self, name: str) -> Tensor | None:
        """The tensor of that name, or None."""
        self.read.add(name)
        return self.state.get(name)

    def convolution(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        """A convolution."""
        return functional.conv2d(x, self.state[f"{name}.weight"], self._bias(name), stride, padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch normalisation by the running statistics, written out."""
        mean, var, scale, shift = (
            self._kept(f"{name}.{part}")[:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A matrix product."""
        return x @ self._kept(f"{name}.weight").T + self._kept(f"{name}.bias")

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Normalisation over the last dimension, written out."""
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-6).sqrt() * self._kept(f"{name}.weight") + self._kept(f"{name}.bias")

    def _bias(self, name: str) -> Tensor | None:
        self.read |= {f"{name}.weight", f"{name}.bias"}
        return self.state.get(f"{name}.bias")

    def _kept(self, name: str) -> Tensor:
        self.read.add(name)
        return self.state[name]

    def unread(self) -> list[str]:
        """What was never read, but the counters of the norms."""
        return [
            name for name in self.state if name not in self.read and not name.endswith("num_batches_tracked")
        ]
