"""A block of a network that is computed again in the backward pass: less memory, more time.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174: only the
inputs of a block are kept, not the maps inside.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segray.models.batchnorm import statistics_kept


def recomputed(block: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Return `forward(*args)`, the block's own; its norms count the batch once, dropout draws the same twice.

    Without gradients, as in scoring, it is called directly.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    result: Tensor
    if torch.compiler.is_compiling():  # takes no contexts, and does not repeat what changes statistics
        result = checkpoint(forward, *args, use_reentrant=False, **kwargs)
    else:
        contexts = partial(_first_and_second, block)
        result = checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
    return result


def _first_and_second(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), statistics_kept(block)
