"""Pairs -> what a model learns from: pixels and classes, read, decoded and augmented; no Ray, no model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.errors import ItemError
from segray.sources.fetch import read_all
from segray.sources.labels import LabelRules, fit_to, read_label
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings
from segray.train.pairs import Pair
from segray.train.splits import digest_of, perceptual_hash
from segray.train.strength import AugmentSettings
from segray.train.transforms import augmented, fitted


@dataclass(frozen=True, slots=True)
class Example:
    """One pair in memory."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    classes: NDArray[np.uint8]
    """(height, width); 255 is void."""
    digest: str
    """sha256 of the image's bytes, hex."""


class Reader:
    """Reads pairs; pictures are decoded in a child process that a hostile file may kill."""

    def __init__(self, rules: LabelRules, max_pixels: int, storage: StorageSettings) -> None:
        self.rules, self.max_pixels, self.storage = rules, max_pixels, storage
        self._sandbox = DecodeSandbox()

    def read(self, pairs: Sequence[Pair]) -> list[Example | ItemError]:
        """Each pair, or why it cannot be used."""
        files = [source for pair in pairs for source in (pair.image, pair.label)]
        data = read_all(files, self.storage)
        return [self._example(data[2 * row], data[2 * row + 1]) for row in range(len(pairs))]

    def _example(self, image: bytes | ItemError, label: bytes | ItemError) -> Example | ItemError:
        try:
            if isinstance(image, ItemError) or isinstance(label, ItemError):
                raise image if isinstance(image, ItemError) else label  # type: ignore[misc]
            pixels = self._sandbox.decode(image, self.max_pixels).pixels
            try:
                classes = fit_to(read_label(label, self.rules, self.max_pixels), *pixels.shape[:2])
            except ItemError as error:
                raise ItemError(error.error_type, f"label: {error.reason}") from error
        except ItemError as error:
            return error
        return Example(pixels, classes, digest_of(image))


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What one pass over the data says of a pair."""

    digest: str
    likeness: int
    """`perceptual_hash` of the picture."""
    counts: tuple[int, ...]
    """Pixels of each class."""
    pixels: int
    sums: tuple[float, ...]
    """Of each band, with pixels in 0..1."""
    squares: tuple[float, ...]


def surveyed(example: Example, classes: int) -> Surveyed:
    """The figures of a pair that could be read."""
    levels = np.arange(256) / 255
    counts = [np.bincount(example.pixels[..., band].ravel(), minlength=256) for band in range(3)]
    return Surveyed(
        example.digest,
        perceptual_hash(example.pixels),
        tuple(np.bincount(example.classes.ravel(), minlength=256)[:classes].tolist()),
        example.pixels.shape[0] * example.pixels.shape[1],
        tuple(float(count @ levels) for count in counts),
        tuple(float(count @ levels**2) for count in counts),
    )


def mean_and_deviation(rows: Sequence[Surveyed]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each band over all pixels, which are in 0..1."""
    pixels = sum(row.pixels for row in rows)
    mean = np.sum([row.sums for row in rows], axis=0) / pixels
    deviation = np.sqrt(np.maximum(np.sum([row.squares for row in rows], axis=0) / pixels - mean**2, 1e-8))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(deviation, 4).tolist())


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


def order_of(items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch shows them: another one each epoch, the same in every process."""
    draw = hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()
    return np.random.default_rng(np.frombuffer(draw, np.uint64)).permutation(items)


def share_of(order: NDArray[np.int64], batch_size: int, rank: int, workers: int) -> list[NDArray[np.int64]]:
    """One worker's part of each global batch: the same batches whatever the number of workers.

    All workers have equally many; of the last batch a worker may have none.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batch[rank::workers] for batch in batches]
