"""Optimisers by name; biases and the scales of the norms do not decay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from segray.errors import SettingsError
from segray.models.encoder_weights import in_encoder
from segray.train.choices import OptimizerName

OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimiser, and its constants; `build_optimizer` checks them."""

    name: str = "adamw"
    """One of `OPTIMIZERS`."""
    lr: float = 1e-3
    """Highest learning rate, which the schedule's factor multiplies."""
    encoder_lr_factor: float = 1.0
    """Rate of the encoder's weights as a factor of the others' (discriminative fine-tuning, Howard and Ruder
    2018, https://arxiv.org/abs/1801.06146, with two groups of layers)."""
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

    Where the encoder has a rate of its own, two more groups follow, with the factor as `scale`.
    Raises SettingsError, with all that is invalid, for settings out of range and for a fully frozen model.
    """
    problems = list(_problems(settings))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("optimizer: every parameter of the model is frozen; unfreeze some of them")
    if problems:
        raise SettingsError(*problems)
    groups = parameter_groups(model, settings)
    if settings.name == "sgd":
        momentum, nesterov = settings.momentum, settings.nesterov
        return torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, nesterov=nesterov)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the groups of `build_optimizer`: those with the full rate first, which reports show."""
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    if settings.encoder_lr_factor == 1:
        return decayed_groups([each for _, each in named], settings.weight_decay)
    others = decayed_groups([p for name, p in named if not in_encoder(name)], settings.weight_decay)
    encoder = decayed_groups([p for name, p in named if in_encoder(name)], settings.weight_decay)
    return [*others, *({**group, "scale": settings.encoder_lr_factor} for group in encoder)]


def decayed_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters: weights decay, biases and the scales of the norms (one axis) do not."""
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
    if not 0 < settings.encoder_lr_factor < float("inf"):
        yield f"optimizer: encoder_lr_factor is {settings.encoder_lr_factor}, but must be above 0"
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
