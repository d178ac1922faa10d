"""Examples -> what a model learns from: pixels and classes, augmented, in an order; no Ray, no model."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from segray.data.pair_reader import Example
from segray.train.transforms.paired import augmented, fitted
from segray.train.transforms.strength import AugmentSettings


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch."""

    pixels: Tensor
    """uint8 (n, bands, height, width)."""
    classes: Tensor
    """uint8 (n, height, width); 255 is void."""
    names: list[str]


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

    columns = pa.schema(
        [("name", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
         ("pixels", pa.large_binary()), ("classes", pa.large_binary()),
         ("error_type", pa.string()), ("error", pa.string())]
    )  # fmt: skip
    """Of a table a batch."""

    def row(self, example: Example, epoch: int | None, item: str) -> dict[str, Any]:
        """The columns of a picture but its name; epoch None: to score."""
        found = self.scoring(example) if epoch is None else self.training(example, epoch, item)
        pixels, classes = (part.numpy() for part in found)
        return dict(zip(("height", "width"), classes.shape, strict=True)) | {
            "pixels": pixels.tobytes(),
            "classes": classes.tobytes(),
        }

    def batch(self, table: pa.Table) -> Batch:
        """One without a row is a picture that is void all over: all workers step together."""
        if not table.num_rows:
            pixels = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
            return Batch(pixels, torch.full_like(pixels[:, 0], 255), [])
        height, width = table["height"][0].as_py(), table["width"][0].as_py()
        pixels, classes = (
            torch.from_numpy(np.stack([np.frombuffer(each.as_buffer(), np.uint8) for each in table[name]]))
            for name in ("pixels", "classes")
        )
        shape = (height, width)
        return Batch(pixels.view(-1, 3, *shape), classes.view(-1, *shape), table["name"].to_pylist())


def _tensors(example: Example) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.ascontiguousarray(example.pixels.transpose(2, 0, 1)))
    return pixels, torch.from_numpy(example.classes.copy())
