"""Deterministic networks for `--weights python:tests.predict.networks:NAME`."""

import time

import torch
from torch import Tensor, nn

NAMES = {0: "background", 1: "road", 2: "house"}
REACH = 4
"""Pixels around one that decide its class."""


class Local(nn.Module):
    """Two convolutions of 5 x 5 with drawn weights: three classes of what lies within `REACH` pixels."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 3, 5, padding=2, bias=False)
        )
        self.categories, self.seconds = NAMES, seconds

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in 0..1 to logits (n, 3, h, w)."""
        time.sleep(self.seconds * len(images))
        logits: Tensor = self.layers(4 * images - 2)
        return logits


def local() -> Local:
    return Local()


def slow() -> Local:
    """Slow enough to be killed in the middle; the same maps as `local`."""
    return Local(0.1)


class NotANumber(Local):
    """What a broken training leaves."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) to NaN (n, 3, h, w)."""
        return super().forward(images) * float("nan")


def nan() -> Local:
    return NotANumber()
