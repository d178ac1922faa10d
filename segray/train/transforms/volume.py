"""Training on volumes: patches of a volume and its label, mirrored and changed in intensity; and batches."""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segray.data.volume_reader import VolumeExample
from segray.palette import VOID
from segray.train.collate import Arrays
from segray.train.transforms.semantic import Batch
from segray.train.transforms.strength import AugmentSettings, Strength

_ON_OBJECTS = 0.5
"""Share of the patches around a voxel of another class than 0: the 1:1 of MONAI's
`RandCropByPosNegLabeld`."""


@dataclass(frozen=True, slots=True)
class VolumeTransform:
    """Cuts patches of a volume and its label; see `Transform`."""

    patch: tuple[int, int, int]
    """(depth, height, width)."""
    patches: int
    """How many are cut from a volume in an epoch."""
    augment: AugmentSettings
    seed: int
    mean: float
    """Of the training voxels; also the value around a volume that is smaller than a patch."""
    std: float

    def training(self, example: VolumeExample, epoch: int, item: str) -> Arrays:
        """Return `pixels`, float32 (patches, depth, height, width), and `classes`, uint8, likewise."""
        random = Random(int.from_bytes(hashlib.sha256(f"{self.seed}:{epoch}:{item}".encode()).digest()))
        pixels = padded(example.pixels, self.patch, self.mean)
        classes = padded(example.classes, self.patch, VOID)
        objects = np.flatnonzero((classes != 0) & (classes != VOID))
        cut = [self._patch(pixels, classes, objects, random) for _ in range(self.patches)]
        return {"pixels": np.stack([one for one, _ in cut]), "classes": np.stack([one for _, one in cut])}

    def scoring(self, example: VolumeExample) -> Arrays:
        """Return `pixels` and `classes` of the whole volume, (1, depth, height, width)."""
        return {"pixels": example.pixels[None], "classes": example.classes[None]}

    def collate(self, samples: list[tuple[str, Arrays]]) -> Batch:
        """Return patches (n, 1, depth, height, width) and classes (n, depth x height, width), a flat view.

        For no samples: one fully void patch.
        """
        if not samples:
            pixels = np.full((1, *self.patch), self.mean, np.float32)
            classes = np.full((1, *self.patch), VOID, np.uint8)
        else:
            pixels, classes = (
                np.concatenate([arrays[name] for _, arrays in samples]) for name in ("pixels", "classes")
            )
        flat = torch.from_numpy(classes).flatten(1, 2)
        return Batch(torch.from_numpy(pixels)[:, None], flat, [name for name, _ in samples])

    def _patch(
        self,
        pixels: NDArray[np.float32],
        classes: NDArray[np.uint8],
        objects: NDArray[np.int64],
        random: Random,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        window = self._window(classes.shape, objects, random)
        strength = self.augment.strength
        flips = (False, random.random() < strength.vertical_flip, random.random() < strength.flip)
        step = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
        values = self._changed(pixels[window][step], strength, random)
        return np.ascontiguousarray(values, np.float32), np.ascontiguousarray(classes[window][step])

    def _window(
        self, shape: tuple[int, ...], objects: NDArray[np.int64], random: Random
    ) -> tuple[slice, ...]:
        """Draw where the patch lies, anywhere or around an object's voxel."""
        room = [side - length for side, length in zip(shape, self.patch, strict=True)]
        starts = [random.randint(0, most) for most in room]
        if len(objects) and random.random() < _ON_OBJECTS:
            centre = np.unravel_index(objects[random.randrange(len(objects))], shape)
            wanted = [int(at) - length // 2 for at, length in zip(centre, self.patch, strict=True)]
            starts = [min(max(0, start), most) for start, most in zip(wanted, room, strict=True)]
        return tuple(slice(at, at + length) for at, length in zip(starts, self.patch, strict=True))

    def _changed(
        self, values: NDArray[np.float32], strength: Strength, random: Random
    ) -> NDArray[np.float32]:
        """Scale the distances from the mean by `contrast`, and move all by `brightness` deviations."""
        factor = 1 + random.uniform(-strength.contrast, strength.contrast)
        shift = random.uniform(-strength.brightness, strength.brightness) * self.std
        changed: NDArray[np.float32] = (values - np.float32(self.mean)) * np.float32(factor)
        return changed + np.float32(self.mean + shift)


def padded(values: NDArray[Any], patch: tuple[int, int, int], fill: float) -> NDArray[Any]:
    """Return a volume that is at least as large as the patch, with `fill` at the end of each axis."""
    missing = [max(0, length - side) for side, length in zip(values.shape, patch, strict=True)]
    return np.pad(values, [(0, each) for each in missing], constant_values=fill) if any(missing) else values
