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
from segray.train.lr_schedule import (
    ScheduleSettings,
    check_schedule,
    load_plateau_state,
    plateau_factor,
    plateau_of,
    plateau_state,
    rate,
)

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
    return [rate(settings, step, total) for step in range(steps)]


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
    settings = ScheduleSettings(name, floor=0.02, warmup_steps=10)
    falling = [rate(settings, step, 50) for step in range(9, 51)]
    assert falling[0] == falling[1] == 1
    assert all(later < earlier for earlier, later in pairwise(falling[1:]))
    assert rate(settings, 50, 50) == rate(settings, 70, 50) == pytest.approx(0.02)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    found = rates(ScheduleSettings("cosine", warmup_steps=10), steps=5, total=5)
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


PLATEAUS = [
    ScheduleSettings("plateau", mode="max", gamma=0.5, patience=2, threshold=0.0),
    ScheduleSettings("plateau", mode="max", gamma=0.1, patience=0, threshold=0.02, cooldown=3, floor=0.004),
    ScheduleSettings("plateau", mode="min", gamma=0.3, patience=1, threshold=0.05, cooldown=1),
]


def old_plateau(settings: ScheduleSettings, metrics: list[float]) -> list[dict[str, float]]:
    """The states that checkpoints of older versions hold after each metric: the loop that they had."""
    factor, best, bad, cooling, states = 1.0, None, 0, 0, []
    sign = 1 if settings.mode == "max" else -1
    for metric in metrics:
        if not math.isnan(metric) and (best is None or sign * metric > sign * best + settings.threshold):
            best, bad = metric, 0
        else:
            bad += 1
        if cooling > 0:
            cooling, bad = cooling - 1, 0
        if bad > settings.patience:
            factor = max(factor * settings.gamma, settings.floor)
            bad, cooling = 0, settings.cooldown
        state = {"factor": factor, "bad": bad, "cooling": cooling}
        states.append(state if best is None else state | {"best": best})
    return states


@pytest.mark.parametrize("settings", PLATEAUS)
@pytest.mark.parametrize("seed", range(4))
def test_plateau_goes_on_from_checkpoints_of_older_versions(settings: ScheduleSettings, seed: int) -> None:
    """On a metric that first improves and then only trembles: the same states, to the last bit, from any."""
    random = np.random.default_rng(seed)
    course = 1 - np.exp(-np.arange(60) / 12) + random.normal(0, 0.04, 60)
    metrics = (course if settings.mode == "max" else 1 - course) - 5 * (seed % 2)  # some below 0
    metrics[[0, 20]] = math.nan
    expected = old_plateau(settings, metrics.tolist())
    assert len({state["factor"] for state in expected}) > 2
    assert "best" not in expected[0]
    for start in (0, 1, 7, 30, 45):
        plateau = plateau_of(settings)
        assert plateau is not None
        if start:
            load_plateau_state(plateau, json.loads(json.dumps(expected[start - 1], allow_nan=False)))
        for metric, state in zip(metrics[start:].tolist(), expected[start:], strict=True):
            plateau.step(metric)
            assert plateau_state(plateau) == state
            assert plateau_factor(plateau) == state["factor"]


def test_plateau_warms_up_too() -> None:
    settings = ScheduleSettings("plateau", gamma=0.5, patience=0, warmup_steps=4)
    plateau = plateau_of(settings)
    assert plateau is not None
    for metric in (0.5, 0.5):
        plateau.step(metric)
    found = [rate(settings, step, 10) * plateau_factor(plateau) for step in range(5)]
    assert found == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("name", ["cosine", "poly", "constant"])
def test_the_others_do_not_listen(name: str) -> None:
    plateau = plateau_of(ScheduleSettings(name))
    assert plateau is None
    assert plateau_state(plateau) == {}
    load_plateau_state(plateau, {})
    assert plateau_factor(plateau) == 1


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (ScheduleSettings("linear"), "linear: is not one of cosine"),
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
        check_schedule(settings)
