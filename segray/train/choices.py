"""Names for losses, optimisers, schedules and splits in settings, so that reading them needs no torch."""

from typing import Literal

LossName = Literal["ce", "weighted_ce", "dice", "focal", "bce", "bce_dice", "ce_dice"]
OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "poly", "step", "plateau", "constant"]
