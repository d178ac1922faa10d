"""Deterministic models for `--weights python:tests.bulk.models:NAME`: exact, quick, or deadly."""

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

POISON = 7
"""The red value of an image's first pixel that kills or fails the models made for it."""


class Seeded:
    """Up to four instances an image, drawn from a generator seeded with the image's pixels."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.categories = {1: "thing", 3: "other"}
        self.digest = "seeded-1"
        self.seconds = seconds

    def __call__(self, images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        time.sleep(self.seconds * len(images))
        return [self.detect(image) for image in images]

    def detect(self, image: torch.Tensor) -> dict[str, Any]:
        height, width = image.shape[-2:]
        seed = int((image * 255).round().long().sum())
        draw = torch.Generator().manual_seed(seed)
        number = seed % 5
        corner = torch.rand(number, 2, generator=draw) * torch.tensor([width, height]) * 0.8
        size = torch.rand(number, 2, generator=draw) * torch.tensor([width, height]) * 0.3 + 1
        return {
            "boxes": torch.cat([corner, corner + size], 1),
            "labels": torch.randint(0, 2, (number,), generator=draw) * 2 + 1,
            "scores": torch.rand(number, generator=draw) * 0.5 + 0.5,
            "masks": torch.rand(number, 1, 28, 28, generator=draw),
        }


class Deadly(Seeded):
    """Dies with its process on a poisoned image."""

    def detect(self, image: torch.Tensor) -> dict[str, Any]:
        if round(float(image[0, 0, 0]) * 255) == POISON:
            os._exit(9)
        return super().detect(image)


class Failing(Seeded):
    """Raises on a poisoned image."""

    def detect(self, image: torch.Tensor) -> dict[str, Any]:
        if round(float(image[0, 0, 0]) * 255) == POISON:
            raise ValueError("this picture is poisoned")
        return super().detect(image)


def seeded() -> Seeded:
    return Seeded()


def slow() -> Seeded:
    """The same answers and identity as `seeded`, 50 ms an image."""
    return Seeded(0.05)


def slower() -> Seeded:
    """Likewise, a quarter of a second an image."""
    return Seeded(0.25)


def deadly() -> Seeded:
    return Deadly()


def failing() -> Seeded:
    return Failing()


def broken() -> Seeded:
    raise RuntimeError("no such file: weights.bin")


def other_digest() -> Seeded:
    """Another model in everything that an output is made of."""
    model = Seeded()
    model.digest = "seeded-2"
    return model
