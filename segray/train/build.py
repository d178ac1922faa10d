"""Loss, optimiser and schedule as the settings name them, with the constants they are given."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from segray.errors import SettingsError
from segray.palette import VOID
from segray.train.losses import (
    LossSettings,
    build_loss,
    inverse_frequency,
    outputs_for,
)
from segray.train.lr_schedule import ScheduleSettings, check_schedule
from segray.train.optim import OptimizerSettings, check_optimizer
from segray.train.settings import TrainSettings

T = TypeVar("T", LossSettings, OptimizerSettings, ScheduleSettings)

POWERS = {"inverse": 1.0, "root": 0.5}
"""Of the frequency that a class is divided by."""
_DICE = ("smooth", "dice_classes")
TAKEN: dict[str, tuple[str, ...]] = {
    "ce": (),
    "weighted_ce": (),
    "dice": _DICE,
    "focal": ("gamma",),
    "bce": ("positive_weight",),
    "bce_dice": ("smooth", "dice_weight", "positive_weight"),
    "ce_dice": (*_DICE, "dice_weight"),
    "adamw": ("betas", "eps"),
    "adam": ("betas", "eps"),
    "sgd": ("momentum", "nesterov"),
    "cosine": ("floor",),
    "poly": ("power", "floor"),
    "step": ("milestones", "every", "gamma", "floor"),
    "plateau": ("gamma", "patience", "threshold", "cooldown", "floor"),
    "constant": (),
}
"""Constants that each loss, optimiser and schedule looks at, of those that settings may give."""


def check_constants(settings: TrainSettings, loss: str | None = None, classes: int = 0) -> None:
    """Raise SettingsError with all that is wrong with loss, optimiser and schedule.

    loss: None where the network brings its own.
    """
    problems: list[str] = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except SettingsError as error:
            problems.extend(error.lines)

    if loss is not None:
        attempt(lambda: build_loss(loss_of(settings, loss, [1] * classes), outputs_for(loss, classes)))
    attempt(lambda: check_schedule(schedule_of(settings)))
    attempt(lambda: check_optimizer(optimizer_of(settings)))
    if problems:
        raise SettingsError(*problems)


def optimizer_of(settings: TrainSettings) -> OptimizerSettings:
    """Raises SettingsError, as the others here, for constants that it does not take, or not of this type."""
    fixed = {"name": settings.optimizer, "lr": settings.lr, "weight_decay": settings.weight_decay}
    return _made(OptimizerSettings, "optimizer_settings", settings.optimizer_settings, fixed)


def schedule_of(settings: TrainSettings) -> ScheduleSettings:
    """The schedule, its warm-up included."""
    fixed = {"name": settings.schedule, "warmup_steps": settings.warmup_steps, "mode": "max"}
    return _made(ScheduleSettings, "schedule_settings", settings.schedule_settings, fixed)


def loss_of(settings: TrainSettings, loss: str, counts: Sequence[int]) -> LossSettings:
    """The loss, weighted by the pixels of each class where the settings or the loss ask for it."""
    wanted = settings.class_weights
    if wanted == "auto":
        wanted = "inverse" if loss == "weighted_ce" else "none"
    weights: tuple[float, ...] | None = None
    if wanted in POWERS:
        weights = inverse_frequency(counts, POWERS[wanted])
    elif wanted != "none":
        weights = tuple(map(float, wanted.split(",")))
    fixed = {"name": loss, "class_weights": weights, "ignore_index": VOID}
    return _made(LossSettings, "loss_settings", settings.loss_settings, fixed)


def recipe_fields(settings: TrainSettings, trained: int, precision: str) -> dict[str, Any]:
    """Return the fields of every `Recipe`, but its weights to begin with; trained: images of an epoch."""
    return {
        "optimizer": optimizer_of(settings),
        "schedule": schedule_of(settings),
        "epochs": settings.epochs,
        "steps_per_epoch": -(-trained // settings.batch_size),
        "seed": settings.seed,
        "precision": precision,
        "clip": settings.clip,
        "ema": settings.ema,
        "pretrained": settings.pretrained,
        "accumulate": settings.accumulate,
        "frozen": tuple(settings.freeze),
        "frozen_epochs": settings.freeze_epochs,
    }


def _made(kind: type[T], setting: str, given: dict[str, Any], fixed: dict[str, Any]) -> T:
    taken = TAKEN[fixed["name"]]
    if others := sorted(given.keys() - set(taken)):
        known = f"it takes {', '.join(taken)}" if taken else "it has none"
        raise SettingsError(f"{setting}: {fixed['name']} takes no {', '.join(others)}; {known}")
    try:
        return TypeAdapter(kind).validate_python(fixed | given)
    except ValidationError as error:
        raise SettingsError(*(_told(setting, each) for each in error.errors())) from None


def _told(setting: str, problem: Any) -> str:
    return f"{'.'.join(map(str, (setting, *problem['loc'])))}: {problem['msg']}"
