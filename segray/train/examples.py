"""Examples -> what a model learns from: pixels and classes, augmented, in an order; no Ray, no model."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.sources.pair_reader import Example
from segray.train.repeats import drawn
from segray.train.strength import AugmentSettings
from segray.train.transforms import augmented, fitted


@dataclass(frozen=True, slots=True)
class Framing:
    """What a picture becomes on its way to the model."""

    size: int
    fit: Literal["crop", "resize"]
    augment: AugmentSettings
    seed: int
    fill: tuple[int, ...]
    """The level of each band that stands where there is no picture."""

    def training(self, example: Example, epoch: int, item: str) -> tuple[Tensor, Tensor]:
        """uint8 pixels (3, size, size) and classes (size, size), a function of seed, epoch and item."""
        pixels, classes = _tensors(example)
        found = augmented(
            pixels, classes, settings=self.augment, crop=self.size, seed=self.seed, epoch=epoch, item=item,
            fit=self.fit, fill=self.fill,
        )  # fmt: skip
        return found[0], found[1]

    def scoring(self, example: Example) -> tuple[Tensor, Tensor]:
        """Nothing is drawn: the whole picture, resized where training does."""
        crop = self.size if self.fit == "resize" else None
        pixels, classes = fitted(*_tensors(example), crop=crop, fit=self.fit)
        return pixels, classes


def _tensors(example: Example) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.ascontiguousarray(example.pixels.transpose(2, 0, 1)))
    return pixels, torch.from_numpy(example.classes.copy())


def order_of(
    items: int, seed: int, epoch: int, repeats: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """The order in which an epoch shows them: another one each epoch, the same in every process.

    repeats: how often each is shown in the mean, `items` in all; None: once.
    """
    draw = hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(draw, np.uint64))
    return random.permutation(items if repeats is None else drawn(repeats, random))


def share_of(order: NDArray[np.int64], batch_size: int, rank: int, workers: int) -> list[NDArray[np.int64]]:
    """One worker's part of each global batch: the same batches whatever the number of workers.

    All workers have equally many; of the last batch a worker may have none.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batch[rank::workers] for batch in batches]
