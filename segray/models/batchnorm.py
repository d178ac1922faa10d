"""Batch normalisation of a single value per channel, and of a block that is computed twice in one step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def tolerate_single_values(model: nn.Module) -> None:
    """Let every batch normalisation in `model` train on one value per channel, in place.

    A pooled branch (DeepLab's) or a small image makes maps of 1 x 1; with one item in the batch there is then
    no variance, and torch raises ValueError. Such a call uses the running statistics, as in evaluation, and
    does not update them. All others are unchanged. Layers that synchronise between several workers are
    left alone: they see the values of all workers, and each worker must take part.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after, always_call=True)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Run batch normalisation on copies of its running statistics within the context.

    For gradient checkpointing: the second computation of a block must not count the batch twice.
    """
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    kept = [(norm, name, tensor) for norm in norms for name, tensor in norm.named_buffers(recurse=False)]
    for norm, name, tensor in kept:
        setattr(norm, name, tensor.clone())
    try:
        yield
    finally:
        for norm, name, tensor in kept:
            setattr(norm, name, tensor)


def _before(norm: nn.Module, args: tuple[Any, ...]) -> None:
    values: Tensor = args[0]
    if norm.training and values.numel() == values.shape[1] and not _synchronises(norm):
        norm.training = False
        norm.single_value = True  # type: ignore[assignment]


def _after(norm: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
    if getattr(norm, "single_value", False):
        norm.training = True
        del norm.single_value


def _synchronises(norm: nn.Module) -> bool:
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1
