"""COCO examples -> what an instance model learns from and is scored by; no Ray, no model.

To train: a crop, augmented, with boxes, labels and masks of its instances; crowds are left out. To score: the
whole picture and its annotations as they are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from segray.data.pair_reader import CocoExample
from segray.masks.types import Rle
from segray.train.transforms.instances import (
    CropSettings,
    augmented,
    pasted_boxes,
    target_of,
    training_transform,
)
from segray.train.transforms.strength import AugmentSettings


@dataclass(frozen=True)
class InstancePicture:
    """One picture of a batch."""

    name: str
    pixels: Tensor
    """uint8 (3, height, width)."""
    target: dict[str, Tensor] = field(default_factory=dict)
    """To train: `boxes`, `labels` and `masks` as torchvision's detectors take them."""
    truth: list[dict[str, Any]] = field(default_factory=list)
    """To score: for each instance `counts` (compressed run lengths), `category`, `crowd` and `area`."""

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True)
class InstanceBatch:
    """One process's part of a global batch; may be empty."""

    pictures: list[InstancePicture]

    @property
    def names(self) -> list[str]:
        """Of the pictures."""
        return [picture.name for picture in self.pictures]


@dataclass(frozen=True)
class InstanceFraming:
    """What a picture becomes on its way to the model."""

    crop: CropSettings
    augment: AugmentSettings
    categories: tuple[int, ...]
    """Ascending; label i of the network (1 is the first) is the i-th."""
    seed: int

    columns = pa.schema(
        [("name", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
         ("pixels", pa.large_binary()),  # (3, height, width)
         ("boxes", pa.binary()),  # float32 (n, 4)
         ("labels", pa.binary()),  # int64 (n,)
         ("masks", pa.large_binary()),  # bits of (n, height, width)
         ("truth", pa.large_string()),  # JSON, see InstancePicture
         ("error_type", pa.string()), ("error", pa.string())]
    )  # fmt: skip
    """Of a table a batch."""

    def row(self, example: CocoExample, epoch: int | None, item: str) -> dict[str, Any]:
        """The columns of a picture but its name: a function of seed, epoch and item; epoch None: to score."""
        if epoch is None:
            truth = [
                {
                    "counts": _text(each.mask),
                    "category": each.category,
                    "crowd": each.crowd,
                    "area": each.area,
                }
                for each in example.instances
            ]
            return _pixel_columns(_chw(example.pixels)) | {"truth": json.dumps(truth)}
        pixels, target = self.training(example, epoch, item)
        return _pixel_columns(pixels) | {
            "boxes": target["boxes"].numpy().tobytes(),
            "labels": target["labels"].numpy().tobytes(),
            "masks": np.packbits(target["masks"].numpy()).tobytes(),
        }

    def training(self, example: CocoExample, epoch: int, item: str) -> tuple[Tensor, dict[str, Tensor]]:
        """uint8 pixels (3, crop, crop) and their target."""
        kept = [each for each in example.instances if not each.crowd]
        maps, places = layered(
            [each.mask for each in kept if each.mask is not None], example.pixels.shape[:2]
        )
        labels = torch.tensor([self.categories.index(each.category) + 1 for each in kept], dtype=torch.int64)
        transform = training_transform(self.crop, self.augment)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_drawn(self.seed, epoch, item))
            pixels, layers = augmented(_chw(example.pixels), torch.from_numpy(maps), transform)
        target = target_of(layers, labels, self.crop.smallest_area, torch.from_numpy(places))
        pixel = self.crop.resize_to / min(example.pixels.shape[:2])
        return pixels, target | {"boxes": pasted_boxes(target["boxes"], pixel=pixel)}

    def batch(self, table: pa.Table) -> InstanceBatch:
        """The pictures of a table of `columns`."""
        return InstanceBatch([_picture(row) for row in table.to_pylist()])


def layered(masks: Sequence[Rle], size: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Masks as few maps of their numbers: (layers, height, width), and the layer of each.

    The i-th mask is where its layer is i + 1. Masks of one layer do not overlap: a picture of hundreds of
    instances takes a map or two, not hundreds.
    """
    layers = [np.zeros(size, np.int32)]
    places = np.zeros(len(masks), np.int64)
    for number, mask in enumerate(masks):
        x, y, width, height = map(int, coco_mask.toBbox(mask))
        window = (slice(y, y + height), slice(x, x + width))
        inside = coco_mask.decode(mask)[window] > 0
        place = next((n for n, layer in enumerate(layers) if not layer[window][inside].any()), len(layers))
        if place == len(layers):
            layers.append(np.zeros(size, np.int32))
        layers[place][window][inside] = number + 1
        places[number] = place
    return np.stack(layers), places


def _chw(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _pixel_columns(pixels: Tensor) -> dict[str, Any]:
    return {"height": pixels.shape[1], "width": pixels.shape[2], "pixels": pixels.numpy().tobytes()}


def _picture(row: dict[str, Any]) -> InstancePicture:
    size = row["height"], row["width"]
    pixels = torch.from_numpy(np.frombuffer(row["pixels"], np.uint8).reshape(3, *size).copy())
    if row["truth"] is not None:
        return InstancePicture(row["name"], pixels, truth=json.loads(row["truth"]))
    labels = np.frombuffer(row["labels"], np.int64).copy()
    shape = len(labels), *size
    masks = np.unpackbits(np.frombuffer(row["masks"], np.uint8), count=int(np.prod(shape))).reshape(shape)
    target = {
        "boxes": torch.from_numpy(np.frombuffer(row["boxes"], np.float32).reshape(-1, 4).copy()),
        "labels": torch.from_numpy(labels),
        "masks": torch.from_numpy(masks),
    }
    return InstancePicture(row["name"], pixels, target)


def _text(mask: Rle | None) -> str:
    assert mask is not None
    counts = mask["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def _drawn(seed: int, epoch: int, item: str) -> int:
    digest = hashlib.sha256(f"{seed}:{epoch}:{item}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
