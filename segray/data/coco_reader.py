"""A picture of a COCO file -> its pixels and its instances, in memory; and what the survey says of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.data.coco import TrueInstance
from segray.data.coco_listing import AnnotatedPair, instances_of
from segray.data.pair_reader import digest_of
from segray.data.pairs import Pair
from segray.data.scan import picture_figures
from segray.errors import ItemError
from segray.scenes.scene import Tiling
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode_step import decode_picture
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings


@dataclass(frozen=True, slots=True)
class CocoExample:
    """One picture in memory."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    instances: list[TrueInstance]
    """Crowds too."""
    digest: str
    """sha256 of the image's bytes, hex."""
    label_digest: str
    """sha256 of its annotations, hex."""


@dataclass(frozen=True)
class CocoReading:
    """How pictures and annotations are read, in any process."""

    categories: dict[int, str]
    max_pixels: int
    storage: StorageSettings

    def reader(self) -> "CocoReader":
        """One for this process."""
        return CocoReader(self)

    def figures(self, example: CocoExample | ItemError) -> dict[str, Any]:
        """One row of FIGURES; `counts` are the instances of each category, in the order of the ids."""
        if isinstance(example, ItemError):
            return {"error_type": example.error_type, "error": example.reason}
        found = [each.category for each in example.instances if not each.crowd]
        counts = [found.count(category) for category in sorted(self.categories)]
        return picture_figures(example.pixels, example.digest, example.label_digest) | {"counts": counts}


class CocoReader:
    """Reads pictures; they are decoded in a child process that a hostile file may kill."""

    def __init__(self, reading: CocoReading) -> None:
        self._reading = reading
        self._sandbox = DecodeSandbox()

    def read(self, pairs: Sequence[Pair]) -> list[CocoExample | ItemError]:
        """Each picture, or why it cannot be used."""
        data = read_all([pair.image for pair in pairs], self._reading.storage)
        return [self._example(pair, image) for pair, image in zip(pairs, data, strict=True)]

    def _example(self, pair: Pair, image: bytes | ItemError) -> CocoExample | ItemError:
        assert isinstance(pair, AnnotatedPair)
        try:
            if isinstance(image, ItemError):
                raise image
            image_digest = digest_of(image)
            file = MemoryRanges(image_digest, memoryview(image))
            pixels = decode_picture(self._sandbox, file, self._reading.max_pixels, Tiling()).pixels
            size, instances = instances_of(pair.annotations, self._reading.categories)
        except ItemError as error:
            return error
        if pixels.shape[:2] != size:
            there = f"{pixels.shape[1]} x {pixels.shape[0]}"
            return ItemError("unsupported", f"the picture is {there}, its COCO entry {size[1]} x {size[0]}")
        digest = hashlib.sha256(pair.annotations.encode()).hexdigest()
        return CocoExample(pixels, instances, image_digest, digest)
