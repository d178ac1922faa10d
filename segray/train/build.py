"""Build loss, optimiser and schedule from the settings and their constants."""

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
"""Power of the class frequency by which a class is divided."""
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
"""The constants that each loss, optimiser and schedule uses, of those that settings may give."""


def check_constants(settings: TrainSettings, loss: str | None = None, classes: int = 0) -> None:
    """Raise SettingsError with all invalid settings of loss, optimiser and schedule.

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
    """Return the optimiser's settings. Raises SettingsError for unknown constants or wrong types."""
    fixed = {
        "name": settings.optimizer,
        "lr": settings.lr,
        "encoder_lr_factor": settings.encoder_lr_factor,
        "weight_decay": settings.weight_decay,
    }
    return _made(OptimizerSettings, "optimizer_settings", settings.optimizer_settings, fixed)


def schedule_of(settings: TrainSettings) -> ScheduleSettings:
    """Return the schedule's settings, its warm-up included. Raises SettingsError likewise."""
    fixed = {"name": settings.schedule, "warmup_steps": settings.warmup_steps, "mode": "max"}
    return _made(ScheduleSettings, "schedule_settings", settings.schedule_settings, fixed)


def loss_of(settings: TrainSettings, loss: str, counts: Sequence[int]) -> LossSettings:
    """Return the loss's settings, weighted by the pixels of each class if requested. Raises SettingsError."""
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
    """Return the fields that every `Recipe` has, except its start weights; trained: images of an epoch."""
    return {
        "optimizer": optimizer_of(settings),
        "schedule": schedule_of(settings),
        "epochs": settings.epochs,
        "steps_per_epoch": -(-trained // settings.batch_size),
        "seed": settings.seed,
        "precision": precision,
        "clip": settings.clip,
        "ema": settings.ema,
        "accumulate": settings.accumulate,
        "frozen": tuple(settings.freeze),
        "frozen_epochs": settings.freeze_epochs,
    }


def _made(kind: type[T], setting: str, given: dict[str, Any], fixed: dict[str, Any]) -> T:
    taken = TAKEN[fixed["name"]]
    if others := sorted(given.keys() - set(taken)):
        known = f"it takes {', '.join(taken)}" if taken else "it has none"
        raise SettingsError(f"{setting}: {fixed['name']} does not take {', '.join(others)}; {known}")
    try:
        return TypeAdapter(kind).validate_python(fixed | given)
    except ValidationError as error:
        raise SettingsError(*(_told(setting, each) for each in error.errors())) from None


def _told(setting: str, problem: Any) -> str:
    return f"{'.'.join(map(str, (setting, *problem['loc'])))}: {problem['msg']}"
