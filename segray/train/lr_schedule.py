"""Learning-rate schedules: the factor on the highest rate as a function of the optimiser step.

Only `plateau` has state, in torch's `ReduceLROnPlateau`; every other rate follows from the step alone, so
a run that resumes from a checkpoint continues with the same rates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from segray.errors import SettingsError
from segray.train.choices import ScheduleName

SCHEDULES: tuple[str, ...] = get_args(ScheduleName)


@dataclass(frozen=True)
class ScheduleSettings:
    """Which schedule, and its constants; `check_schedule` checks them. Steps are optimiser steps."""

    name: str = "cosine"
    """One of `SCHEDULES`."""
    warmup_steps: int = 0
    """Steps of linear warm-up: 1/n, 2/n, … 1 times the rate. 0 for none."""
    floor: float = 0.0
    """Lowest factor after the warm-up: where `cosine` and `poly` end, and where `step` and `plateau` stop."""
    power: float = 0.9
    """Exponent of `poly`."""
    milestones: tuple[int, ...] = ()
    """`step`: the rate falls when these steps, counted from the run's start, are reached."""
    every: int = 0
    """`step`: the rate falls every so many steps instead."""
    gamma: float = 0.1
    """`step` and `plateau`: factor at each fall."""
    mode: Literal["max", "min"] = "max"
    """`plateau`: whether a higher or a lower metric is better."""
    patience: int = 10
    """`plateau`: the rate falls after more than this many validations in a row without an improvement."""
    threshold: float = 1e-4
    """`plateau`: minimum change of the metric that is an improvement, in the metric's unit."""
    cooldown: int = 0
    """`plateau`: validations after a fall that are not counted."""


class LearningRate:
    """The learning rate of each optimiser step; sets it, and can be resumed."""

    def __init__(self, settings: ScheduleSettings, highest: float, total_steps: int) -> None:
        """Store the schedule; highest: the rate that its factor multiplies."""
        self._settings, self._highest, self._total_steps = settings, highest, total_steps
        self._plateau = plateau_of(settings)

    def set(self, optimizer: Optimizer, step: int) -> None:
        """Set the rate of a step, counted from 0, in all groups of parameters."""
        factor = rate(self._settings, step, self._total_steps) * plateau_factor(self._plateau)
        for group in optimizer.param_groups:
            group["lr"] = self._highest * factor * group.get("scale", 1.0)

    def observe(self, metric: Any) -> None:
        """Record the metric of a validation, the same in each process; only `plateau` steps by it."""
        if self._plateau is not None:
            self._plateau.step(metric)

    def state_dict(self) -> dict[str, float]:
        """Return the state as plain numbers; see `plateau_state`."""
        return plateau_state(self._plateau)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Load what `state_dict` returned, now or in an older version."""
        load_plateau_state(self._plateau, state)


def check_schedule(settings: ScheduleSettings) -> None:
    """Raise SettingsError with everything that is out of range."""
    if problems := list(_problems(settings)):
        raise SettingsError(*problems)


def rate(settings: ScheduleSettings, step: int, total_steps: int) -> float:
    """Return the factor on the highest rate at a step in 0..total_steps - 1; for `plateau` the warm-up alone.

    `cosine` and `poly` fall over the steps after the warm-up and reach the floor at `total_steps`, just
    past the last step; a run that is no longer than its warm-up ends within it.
    """
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    after = max(1, total_steps - settings.warmup_steps)
    progress = min(1.0, max(0, step - settings.warmup_steps) / after)
    return warmup * _shape(settings, step, progress)


def _shape(settings: ScheduleSettings, step: int, progress: float) -> float:
    if settings.name == "cosine":
        return cosine(progress, settings.floor)
    if settings.name == "poly":
        return poly(progress, settings.power, settings.floor)
    if settings.name == "step":
        return max(settings.floor, settings.gamma ** falls(step, settings.milestones, settings.every))
    return 1.0


def plateau_of(settings: ScheduleSettings) -> ReduceLROnPlateau | None:
    """Return torch's scheduler of a rate of 1, stepped by validation metrics; None unless `plateau`.

    The metric is the same on every worker. `threshold_mode="abs"`: a relative threshold has the wrong sign
    for a metric below 0.
    """
    if settings.name != "plateau":
        return None
    return ReduceLROnPlateau(
        SGD([torch.zeros(1)], lr=1.0),
        settings.mode,
        settings.gamma,
        settings.patience,
        settings.threshold,
        threshold_mode="abs",
        cooldown=settings.cooldown,
        min_lr=settings.floor,
        eps=0,
    )


def plateau_factor(plateau: ReduceLROnPlateau | None) -> float:
    """Return the factor after the validations so far; 1 without `plateau`."""
    return 1.0 if plateau is None else float(plateau.optimizer.param_groups[0]["lr"])


def plateau_state(plateau: ReduceLROnPlateau | None) -> dict[str, float]:
    """Return the state as plain numbers; {} without `plateau`, and no `best` before the first validation."""
    if plateau is None:
        return {}
    state = {
        "factor": plateau_factor(plateau),
        "bad": plateau.num_bad_epochs,
        "cooling": plateau.cooldown_counter,
    }
    return state | ({"best": plateau.best} if math.isfinite(plateau.best) else {})


def load_plateau_state(plateau: ReduceLROnPlateau | None, state: dict[str, float]) -> None:
    """Load what `plateau_state` returned, now or in an older version."""
    if plateau is None:
        return
    plateau.optimizer.param_groups[0]["lr"] = state["factor"]
    plateau.best = state.get("best", plateau.best)
    plateau.num_bad_epochs, plateau.cooldown_counter = int(state["bad"]), int(state["cooling"])


def cosine(progress: float, floor: float = 0.0) -> float:
    """Return half a cosine from 1 to the floor, progress in 0..1 (Loshchilov and Hutter 2017, SGDR)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def poly(progress: float, power: float = 0.9, floor: float = 0.0) -> float:
    """Return a power of what is left, from 1 to the floor (Chen et al. 2018, DeepLab, section 4.1)."""
    return floor + float((1 - floor) * (1 - progress) ** power)


def falls(step: int, milestones: tuple[int, ...], every: int) -> int:
    """Return how many milestones, or multiples of `every`, a step has reached."""
    return step // every if every else sum(step >= milestone for milestone in milestones)


def _problems(settings: ScheduleSettings) -> Iterator[str]:
    if settings.name not in SCHEDULES:
        yield f"schedule {settings.name}: is not one of {', '.join(SCHEDULES)}"
    for name in ("warmup_steps", "every", "patience", "cooldown", "threshold"):
        if not getattr(settings, name) >= 0:
            yield f"schedule: {name} is {getattr(settings, name)}, but must be 0 or more"
    if not 0 <= settings.floor <= 1:
        yield f"schedule: floor is {settings.floor}, but must be 0 to 1, a share of the highest rate"
    if not 0 < settings.power < math.inf:
        yield f"schedule: power is {settings.power}, but must be above 0"
    if not 0 < settings.gamma < 1:
        yield f"schedule: gamma is {settings.gamma}, but must be above 0 and below 1"
    if settings.mode not in ("max", "min"):
        yield f"schedule: mode is {settings.mode}, but must be max or min"
    if settings.name == "step" and bool(settings.milestones) == bool(settings.every):
        yield "schedule step: set either milestones or every"
