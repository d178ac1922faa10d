"""A pair of volumes -> voxels and the class of each, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.data.labels import LabelRules, by_number
from segray.data.pair_reader import digest_of
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.palette import VOID
from segray.sources.label_image import Stored
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox
from segray.sources.volume import Volume, unpacked
from segray.storage import StorageSettings

_NEAR_MM = 1e-2
"""Maximum difference between the affines of a volume and its label; programs write them as float32."""

_MOST = 1 << 24
"""Whole numbers up to this are exact in float32."""


@dataclass(frozen=True, slots=True)
class VolumeExample:
    """One pair in memory."""

    pixels: NDArray[np.float32]
    """Voxels, (depth, height, width)."""
    classes: NDArray[np.uint8]
    """(depth, height, width); 255 is void."""
    digest: str
    """sha256 of the volume's file, hex."""
    label_digest: str
    """sha256 of the label's file, hex."""

    def measured(self) -> dict[str, Any]:
        """Return the columns of a scan that depend on the voxels.

        Scans of one organ look alike without being copies: only the same bytes count as look-alikes.
        """
        wide = self.pixels.astype(np.float64)
        return {
            "likeness": int(self.digest[:16], 16),
            "pixels": self.pixels.size,
            "sums": [float(wide.sum())],
            "squares": [float(np.square(wide, out=wide).sum())],
        }


class VolumeReader:
    """Reads pairs of volumes, in a child process that a hostile file may kill."""

    def __init__(self, rules: LabelRules, max_voxels: int, storage: StorageSettings) -> None:
        self.rules, self.max_voxels, self.storage = rules, max_voxels, storage
        self._sandbox = DecodeSandbox(timeout_s=120.0)

    def read(self, pairs: Sequence[Pair]) -> list[VolumeExample | ItemError]:
        """Return each pair's content, or the ItemError why it cannot be used."""
        return [self._one(pair) for pair in pairs]

    def _one(self, pair: Pair) -> VolumeExample | ItemError:
        image, label = read_all([pair.image, pair.label], self.storage)
        try:
            return self._example(image, label)
        except ItemError as error:
            return error

    def _example(self, image: bytes | ItemError, label: bytes | ItemError) -> VolumeExample:
        if isinstance(image, ItemError):
            raise image
        volume = unpacked(self._sandbox.volume(image, self.max_voxels))
        try:
            if isinstance(label, ItemError):
                raise label
            truth = unpacked(self._sandbox.volume(label, self.max_voxels))
            classes = classes_of(truth, volume, self.rules)
        except ItemError as error:
            raise ItemError(error.error_type, f"label: {error.reason}") from error
        return VolumeExample(volume.voxels, classes, digest_of(image), digest_of(label))


def classes_of(label: Volume, volume: Volume, rules: LabelRules) -> NDArray[np.uint8]:
    """Return the classes (depth, height, width) uint8 in a label volume.

    Raises ItemError for one of another shape or another place than its image, and for unknown values.
    """
    here, there = volume.place, label.place
    if here.shape != there.shape:
        shapes = (" x ".join(map(str, each.shape)) for each in (there, here))
        raise ItemError("unsupported", "it has {} voxels, its image {}".format(*shapes))
    is_placed = here.form == there.form == "nifti"
    if is_placed and not np.allclose(here.affine, there.affine, rtol=0, atol=_NEAR_MM):
        raise ItemError("unsupported", "its affine is not its image's: resample or turn it to the image")
    return by_number(stored_of(label), rules)


def stored_of(label: Volume) -> Stored:
    """Return the numbers of a label volume, int32 (depth, height, width). Raises ItemError for others."""
    voxels = label.voxels
    if (voxels != np.floor(voxels)).any() or np.abs(voxels).max() > _MOST:
        raise ItemError("unsupported", "its values are not whole numbers, so not classes")
    return Stored(voxels.astype(np.int32), VOID, False, label.place.form)


@dataclass(frozen=True)
class VolumeReading:
    """How pairs of volumes are read, in any process."""

    rules: LabelRules
    max_voxels: int
    storage: StorageSettings

    def reader(self) -> VolumeReader:
        """Return a reader for this process."""
        return VolumeReader(self.rules, self.max_voxels, self.storage)

    def counts(self, example: VolumeExample) -> list[int]:
        """Return the voxels of each class."""
        found: list[int] = np.bincount(example.classes.ravel(), minlength=256)[: self.rules.classes].tolist()
        return found
