"""Learning-rate schedules: the factor on the highest rate as a function of the optimiser step.

Only `plateau` remembers anything, in a few plain numbers; every other rate follows from the step alone, so a
run that goes on from a checkpoint goes on with the same rates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from segray.errors import SettingsError
from segray.train.choices import ScheduleName

SCHEDULES: tuple[str, ...] = get_args(ScheduleName)


@dataclass(frozen=True)
class ScheduleSettings:
    """Which schedule, and its constants; `Schedule` checks them. Steps are optimiser steps."""

    name: str = "cosine"
    """One of `SCHEDULES`."""
    warmup_steps: int = 0
    """Steps of linear warm-up: 1/n, 2/n, … 1 times the rate. 0 for none."""
    floor: float = 0.0
    """Lowest factor once warm: where `cosine` and `poly` end, and where `step` and `plateau` stop falling."""
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
    """`plateau`: the rate falls after more than so many validations in a row without an improvement."""
    threshold: float = 1e-4
    """`plateau`: least change of the metric that is an improvement, in the metric's unit."""
    cooldown: int = 0
    """`plateau`: validations after a fall that are not held against it."""


class Schedule:
    """The factor at each step; for `plateau` also what was observed."""

    def __init__(self, settings: ScheduleSettings) -> None:
        """Raises SettingsError with everything that is out of range."""
        if problems := list(_problems(settings)):
            raise SettingsError(*problems)
        self.settings = settings
        self.plateau = Plateau(settings)

    def rate(self, step: int, total_steps: int) -> float:
        """Return the factor on the highest rate at a step in 0..total_steps - 1.

        `cosine` and `poly` fall over the steps after the warm-up and reach the floor at `total_steps`, just
        past the last step; a run that is no longer than its warm-up ends within it.
        """
        settings = self.settings
        warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
        after = max(1, total_steps - settings.warmup_steps)
        progress = min(1.0, max(0, step - settings.warmup_steps) / after)
        return warmup * self._shape(step, progress)

    def _shape(self, step: int, progress: float) -> float:
        settings = self.settings
        if settings.name == "cosine":
            return cosine(progress, settings.floor)
        if settings.name == "poly":
            return poly(progress, settings.power, settings.floor)
        if settings.name == "step":
            return max(settings.floor, settings.gamma ** falls(step, settings.milestones, settings.every))
        return self.plateau.factor if settings.name == "plateau" else 1.0

    def observe(self, metric: float) -> None:
        """Tell `plateau` the metric of a validation, the same on every worker; the others do not listen."""
        if self.settings.name == "plateau":
            self.plateau.observe(metric)

    def state_dict(self) -> dict[str, float]:
        """Return what was observed so far, as plain numbers; {} for all but `plateau`."""
        return self.plateau.state_dict() if self.settings.name == "plateau" else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` returned."""
        if self.settings.name == "plateau":
            self.plateau.load_state_dict(state)


class Plateau:
    """Lower the factor when the metric stops improving, as `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    With its `threshold_mode="abs"`: a relative threshold turns round for a metric below 0.
    """

    def __init__(self, settings: ScheduleSettings) -> None:
        self.settings = settings
        self.factor = 1.0
        self.best: float | None = None
        """Best metric so far; None before the first that is a number."""
        self.bad = 0
        """Validations in a row without an improvement."""
        self.cooling = 0
        """Validations that are still not held against the last fall."""

    def observe(self, metric: float) -> None:
        """Take one validation's metric; NaN is no improvement."""
        settings = self.settings
        if self._better(metric):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > settings.patience:
            self.factor = max(self.factor * settings.gamma, settings.floor)
            self.bad, self.cooling = 0, settings.cooldown

    def _better(self, metric: float) -> bool:
        if self.best is None:
            return not math.isnan(metric)
        threshold = self.settings.threshold
        if self.settings.mode == "max":
            return metric > self.best + threshold
        return metric < self.best - threshold

    def state_dict(self) -> dict[str, float]:
        """Return the state; `best` is left out before there is one."""
        state: dict[str, float] = {"factor": self.factor, "bad": self.bad, "cooling": self.cooling}
        return state if self.best is None else state | {"best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state."""
        self.factor, self.best = state["factor"], state.get("best")
        self.bad, self.cooling = int(state["bad"]), int(state["cooling"])


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
        yield f"schedule {settings.name}: is none of {', '.join(SCHEDULES)}"
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
