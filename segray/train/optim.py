"""Optimisers by name; biases and the scales of the norms do not decay."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from segray.errors import SettingsError
from segray.train.choices import OptimizerName

OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimiser, and its constants; `build_optimizer` checks them."""

    name: str = "adamw"
    """One of `OPTIMIZERS`."""
    lr: float = 1e-3
    """Highest learning rate, which the schedule's factor multiplies."""
    weight_decay: float = 0.01
    """`adamw`: share of a weight taken away per step and unit of rate (Loshchilov and Hutter 2019).

    `adam` and `sgd`: factor of the weight that is added to its gradient.
    """
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the mean gradient and of its square, `adamw` and `adam` (Kingma and Ba 2015)."""
    eps: float = 1e-8
    """Added to the root of the mean square, `adamw` and `adam`; too small for gradients in fp16."""
    momentum: float = 0.9
    """Share of the last step that is kept, for `sgd`."""
    nesterov: bool = False
    """Nesterov momentum, for `sgd`."""


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that require a gradient, in two groups: decayed and not.

    Raises SettingsError, with all that is invalid, for settings out of range and for a fully frozen model.
    """
    problems = list(_problems(settings))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("optimizer: every parameter of the model is frozen; unfreeze some of them")
    if problems:
        raise SettingsError(*problems)
    groups = decayed_groups(model, settings.weight_decay)
    if settings.name == "sgd":
        momentum, nesterov = settings.momentum, settings.nesterov
        return torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, nesterov=nesterov)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def decayed_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters: weights decay, biases and the scales of the norms (one axis) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def check_optimizer(settings: OptimizerSettings) -> None:
    """Raise SettingsError with all that is out of range."""
    if problems := list(_problems(settings)):
        raise SettingsError(*problems)


def _problems(settings: OptimizerSettings) -> Iterator[str]:
    if settings.name not in OPTIMIZERS:
        yield f"optimizer {settings.name}: is not one of {', '.join(OPTIMIZERS)}"
    if not 0 < settings.lr < float("inf"):
        yield f"optimizer: lr is {settings.lr}, but must be above 0"
    if not 0 <= settings.weight_decay < float("inf"):
        yield f"optimizer: weight_decay is {settings.weight_decay}, but must be 0 or more"
    if not all(0 <= beta < 1 for beta in settings.betas):
        yield f"optimizer: betas are {settings.betas}, but must be 0 or more and below 1"
    if not settings.eps > 0:
        yield f"optimizer: eps is {settings.eps}, but must be above 0"
    if not 0 <= settings.momentum < 1:
        yield f"optimizer: momentum is {settings.momentum}, but must be 0 or more and below 1"
    if settings.nesterov and settings.name == "sgd" and not settings.momentum > 0:
        yield "optimizer: nesterov needs a momentum above 0"
