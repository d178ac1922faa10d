"""Schedules against the sequences of torch's own schedulers."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from segray.errors import SettingsError
from segray.train.lr_schedule import Schedule, ScheduleSettings

TOTAL = 40
Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def torch_rates(make: Make, steps: int = TOTAL) -> list[float]:
    """The oracle: a rate of 1 under a scheduler of torch, stepped after every optimiser step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls itself in a way that torch advises against
        scheduler, rates = make(optimizer), []
        for _ in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    return rates


def rates(settings: ScheduleSettings, steps: int = TOTAL, total: int = TOTAL) -> list[float]:
    schedule = Schedule(settings)
    return [schedule.rate(step, total) for step in range(steps)]


SHAPES: dict[str, tuple[ScheduleSettings, Callable[[torch.optim.Optimizer, int], lr_scheduler.LRScheduler]]]
SHAPES = {
    "cosine": (
        ScheduleSettings("cosine"),
        lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    ),
    "cosine-floor": (
        ScheduleSettings("cosine", floor=0.05),
        lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.05),
    ),
    "poly": (
        ScheduleSettings("poly"),
        lambda optimizer, steps: lr_scheduler.PolynomialLR(optimizer, steps, power=0.9),
    ),
    "poly-square": (
        ScheduleSettings("poly", power=2.0),
        lambda optimizer, steps: lr_scheduler.PolynomialLR(optimizer, steps, power=2.0),
    ),
    "constant": (
        ScheduleSettings("constant"),
        lambda optimizer, steps: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_warmed_up_as_torch_does(name: str, warmup: int) -> None:
    """LinearLR from 1/n to 1 for n steps, then the shape over the steps that are left."""
    settings, make = SHAPES[name]

    def sequence(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        if not warmup:
            return make(optimizer, TOTAL)
        rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=max(1, warmup - 1))
        return lr_scheduler.SequentialLR(optimizer, [rise, make(optimizer, TOTAL - warmup)], [warmup])

    assert rates(replace(settings, warmup_steps=warmup)) == pytest.approx(torch_rates(sequence), abs=1e-12)


def test_steps_as_torch_does() -> None:
    milestones = lr_scheduler.MultiStepLR
    expected = torch_rates(lambda optimizer: milestones(optimizer, [5, 6, 30], gamma=0.3))
    assert rates(ScheduleSettings("step", milestones=(30, 5, 6), gamma=0.3)) == pytest.approx(expected)
    expected = torch_rates(lambda optimizer: lr_scheduler.StepLR(optimizer, 9, gamma=0.5))
    assert rates(ScheduleSettings("step", every=9, gamma=0.5)) == pytest.approx(expected)


def test_steps_count_from_the_start_and_stop_at_the_floor() -> None:
    found = rates(ScheduleSettings("step", every=3, gamma=0.1, floor=0.05, warmup_steps=4), steps=8)
    assert found == pytest.approx([0.25, 0.5, 0.75, 0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize("name", ["cosine", "poly"])
def test_ends_at_the_floor_and_stays(name: str) -> None:
    schedule = Schedule(ScheduleSettings(name, floor=0.02, warmup_steps=10))
    falling = [schedule.rate(step, 50) for step in range(9, 51)]
    assert falling[0] == falling[1] == 1
    assert all(later < earlier for earlier, later in pairwise(falling[1:]))
    assert schedule.rate(50, 50) == schedule.rate(70, 50) == pytest.approx(0.02)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    found = rates(ScheduleSettings("cosine", warmup_steps=10), steps=5, total=5)
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


PLATEAUS = [
    ScheduleSettings("plateau", mode="max", gamma=0.5, patience=2, threshold=0.0),
    ScheduleSettings("plateau", mode="max", gamma=0.1, patience=0, threshold=0.02, cooldown=3, floor=0.004),
    ScheduleSettings("plateau", mode="min", gamma=0.3, patience=1, threshold=0.05, cooldown=1),
]


@pytest.mark.parametrize("settings", PLATEAUS)
@pytest.mark.parametrize("seed", range(4))
def test_plateau_as_torch_does(settings: ScheduleSettings, seed: int) -> None:
    """On a metric that first improves and then only trembles; with a stop and a restart in the middle."""
    random = np.random.default_rng(seed)
    course = 1 - np.exp(-np.arange(60) / 12) + random.normal(0, 0.04, 60)
    metrics = course if settings.mode == "max" else 1 - course
    metrics[[0, 20]] = math.nan
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    other = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        settings.mode,
        factor=settings.gamma,
        patience=settings.patience,
        threshold=settings.threshold,
        threshold_mode="abs",
        cooldown=settings.cooldown,
        min_lr=settings.floor,
        eps=0,
    )
    schedule, seen = Schedule(settings), set()
    for metric in metrics.tolist():
        saved = json.dumps(schedule.state_dict(), allow_nan=False)
        schedule = Schedule(settings)
        schedule.load_state_dict(json.loads(saved))
        schedule.observe(metric)
        other.step(metric)
        assert schedule.rate(3, 10) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        seen.add(schedule.rate(3, 10))
    assert len(seen) > 2


def test_plateau_warms_up_too() -> None:
    schedule = Schedule(ScheduleSettings("plateau", gamma=0.5, patience=0, warmup_steps=4))
    for metric in (0.5, 0.5):
        schedule.observe(metric)
    assert [schedule.rate(step, 10) for step in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("name", ["cosine", "poly", "constant"])
def test_the_others_do_not_listen(name: str) -> None:
    schedule, other = Schedule(ScheduleSettings(name)), Schedule(ScheduleSettings(name))
    for _ in range(30):
        schedule.observe(0.0)
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})
    assert schedule.rate(5, 20) == other.rate(5, 20)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (ScheduleSettings("linear"), "linear: is none of cosine"),
        (ScheduleSettings(warmup_steps=-1), "warmup_steps"),
        (ScheduleSettings(floor=1.5), "floor"),
        (ScheduleSettings(power=0.0), "power"),
        (ScheduleSettings(gamma=1.0), "gamma"),
        (ScheduleSettings(mode="mean"), "mode"),  # type: ignore[arg-type]
        (ScheduleSettings(patience=-1), "patience"),
        (ScheduleSettings("step"), "milestones or every"),
        (ScheduleSettings("step", milestones=(5,), every=5), "milestones or every"),
        (ScheduleSettings("step", every=-5), "every"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: ScheduleSettings, names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        Schedule(settings)
