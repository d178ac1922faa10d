"""Models for `--weights python:tests.scenes.oracle:NAME` that see what is there of a scene from `made`."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

SIDE = 28


class Truth:
    """Each object in a window: its box, and its mask exactly or as a RoI mask allows."""

    image_dtype = torch.uint8

    def __init__(self, frame: Literal["roi", "image"], jitter: int = 0, seconds: float = 0) -> None:
        self.seconds = seconds
        self.band_ranges: tuple[tuple[float, float], ...] | None = None
        self.categories = {1: "odd", 2: "even"}
        self.digest = f"truth-{frame}-{jitter}"
        self.mask_frame = frame
        self.jitter = jitter

    def __call__(self, images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        time.sleep(self.seconds * len(images))
        return [self.detect(image.numpy()) for image in images]

    def detect(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """image: (3, height, width)."""
        numbers = image.astype(np.int64)
        numbers = numbers[0] << 16 | numbers[1] << 8 | numbers[2]
        seen = [int(number) for number in np.unique(numbers) if number]
        random = np.random.default_rng(int(numbers.sum()) % 2**32)
        views = [_view(self._shaken(numbers == number, random), self.mask_frame) for number in seen]
        scores = random.uniform(0.6, 1, len(seen)) if self.jitter else np.full(len(seen), 0.9)
        size = (SIDE, SIDE) if self.mask_frame == "roi" else numbers.shape
        return {
            "boxes": torch.tensor([box for box, _ in views], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([2 - number % 2 for number in seen], dtype=torch.int64),
            "scores": torch.tensor(scores, dtype=torch.float32),
            "masks": torch.from_numpy(
                np.array([mask for _, mask in views], np.float32).reshape(-1, 1, *size)
            ),
        }

    def _shaken(self, mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
        """Moved by up to so many pixels."""
        if not self.jitter:
            return mask
        rows, cols = random.integers(-self.jitter, self.jitter + 1, 2)
        moved = np.zeros_like(mask)
        height, width = mask.shape
        part = mask[max(-rows, 0) : height - max(rows, 0), max(-cols, 0) : width - max(cols, 0)]
        moved[max(rows, 0) : max(rows, 0) + part.shape[0], max(cols, 0) : max(cols, 0) + part.shape[1]] = part
        return moved if moved.any() else mask


def _view(mask: NDArray[np.bool_], frame: str) -> tuple[list[int], NDArray[Any]]:
    """(x0, y0, x1, y1 of what torchvision pastes into just these pixels, the mask in its frame)."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]
    if frame == "image":
        return box, mask
    crop = torch.from_numpy(mask[box[1] : box[3], box[0] : box[2]].astype(np.float32))
    roi = torch.nn.functional.interpolate(crop[None, None], size=(SIDE, SIDE), mode="area")
    return box, roi[0, 0].numpy()


def exact() -> Truth:
    return Truth("image")


def slow() -> Truth:
    return Truth("image", seconds=0.3)


def ranged() -> Truth:
    """Of scenes whose numbers are ten times what `made` has."""
    truth = Truth("image")
    truth.band_ranges = ((0.0, 2550.0),) * 3
    return truth


def roi() -> Truth:
    return Truth("roi")


def jittered() -> Truth:
    return Truth("image", jitter=1)
