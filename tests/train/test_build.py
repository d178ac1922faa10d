"""Loss, optimiser and schedule as settings name them."""

from dataclasses import fields
from typing import Any

import pytest

from segray.errors import SettingsError
from segray.train.build import TAKEN, check_constants, loss_of, optimizer_of, schedule_of
from segray.train.losses import LOSSES, LossSettings
from segray.train.lr_schedule import SCHEDULES, ScheduleSettings
from segray.train.optim import OPTIMIZERS, OptimizerSettings
from segray.train.settings import TrainSettings

COUNTS = [900, 100, 0]


def settings(**given: Any) -> TrainSettings:
    return TrainSettings(data="here", output="there", **given)


def test_constants_are_passed_on() -> None:
    sgd = settings(optimizer="sgd", lr=0.1, optimizer_settings={"momentum": 0.8, "nesterov": True})
    assert optimizer_of(sgd) == OptimizerSettings("sgd", 0.1, 0.01, momentum=0.8, nesterov=True)
    step = settings(schedule="step", warmup_steps=5, schedule_settings={"milestones": [10, 20], "gamma": 0.5})
    assert schedule_of(step) == ScheduleSettings("step", 5, milestones=(10, 20), gamma=0.5)
    dice = settings(loss_settings={"smooth": 2, "dice_weight": 0.5, "positive_weight": 3.0})
    assert loss_of(dice, "bce_dice", COUNTS) == LossSettings(
        "bce_dice", smooth=2.0, dice_weight=0.5, positive_weight=3.0
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"schedule_settings": {"every": 9}},
            "schedule_settings: cosine does not take every; it takes floor",
        ),
        (
            {"schedule": "constant", "schedule_settings": {"floor": 1}},
            "constant does not take floor; it has none",
        ),
        ({"optimizer_settings": {"momentum": 0.5}}, "adamw does not take momentum; it takes betas, eps"),
        ({"optimizer_settings": {"lr": 0.5}}, "optimizer_settings: adamw does not take lr"),
        ({"loss_settings": {"gamma": 1.0}}, "loss_settings: ce_dice does not take gamma"),
        ({"loss_settings": {"smooth": "much"}}, "loss_settings.smooth: "),
    ],
)  # fmt: skip
def test_a_constant_that_would_change_nothing_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_constants(settings(**given), "ce_dice", 3)
    assert len(caught.value.lines) == 1
    assert told in caught.value.lines[0]


def test_loss_optimiser_and_schedule_are_told_of_together() -> None:
    wrong = settings(
        loss_settings={"gamma": 1}, optimizer_settings={"eps": -1.0}, schedule="step", warmup_steps=3
    )
    with pytest.raises(SettingsError) as caught:
        check_constants(wrong, "ce_dice", 3)
    assert [line.split(":")[0] for line in caught.value.lines] == [
        "loss_settings",
        "schedule step",
        "optimizer",
    ]


def test_every_constant_has_someone_who_takes_it() -> None:
    fixed = {
        "name",
        "lr",
        "weight_decay",
        "encoder_lr_factor",
        "warmup_steps",
        "mode",
        "ignore_index",
        "class_weights",
        "alpha",
    }
    known = {
        each.name for kind in (LossSettings, OptimizerSettings, ScheduleSettings) for each in fields(kind)
    }
    assert {each for taken in TAKEN.values() for each in taken} == known - fixed
    assert TAKEN.keys() == {*LOSSES, *OPTIMIZERS, *SCHEDULES}


@pytest.mark.parametrize(
    ("loss", "wanted", "weights"),
    [
        ("ce", "auto", None),
        ("ce_dice", "auto", None),
        ("weighted_ce", "auto", (1000 / 1800, 5.0, 0.0)),  # 1,000 pixels, two classes that occur
        ("ce_dice", "inverse", (1000 / 1800, 5.0, 0.0)),
        ("ce_dice", "root", (1000 / (30 * 40), 1000 / (10 * 40), 0.0)),
        ("focal", [1, 2, 3], (1.0, 2.0, 3.0)),
        ("ce_dice", "none", None),
    ],
)
def test_class_weights(loss: str, wanted: Any, weights: tuple[float, ...] | None) -> None:
    found = loss_of(settings(class_weights=wanted), loss, COUNTS).class_weights
    assert found == (weights and pytest.approx(weights))
