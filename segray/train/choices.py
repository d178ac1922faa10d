"""What settings may name of losses, optimisers, schedules, splits; torch is not needed to read settings."""

from typing import Literal

LossName = Literal["ce", "weighted_ce", "dice", "focal", "bce", "bce_dice", "ce_dice"]
OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "poly", "step", "plateau", "constant"]
