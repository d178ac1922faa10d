"""A pair -> the pixels of its picture and the class of each, in memory."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray.data.labels import LabelRules, fit_to, read_label
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.scenes.scene import Tiling
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode_step import decode_picture
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings


@dataclass(frozen=True, slots=True)
class Example:
    """One pair in memory."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    classes: NDArray[np.uint8]
    """(height, width); 255 is void."""
    digest: str
    """sha256 of the image's bytes, hex."""
    label_digest: str
    """sha256 of the label's bytes, hex."""


class Reader:
    """Reads pairs; pictures and labels are decoded in a child process that a hostile file may kill."""

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
            if isinstance(image, ItemError):
                raise image
            if isinstance(label, ItemError):
                raise ItemError(label.error_type, f"label: {label.reason}")
            digest = digest_of(image)
            file = MemoryRanges(digest, memoryview(image))
            pixels = decode_picture(self._sandbox, file, self.max_pixels, Tiling()).pixels
            try:
                stored = read_label(label, self.rules, self.max_pixels, self._sandbox.stored)
                classes = fit_to(stored, *pixels.shape[:2])
            except ItemError as error:
                raise ItemError(error.error_type, f"label: {error.reason}") from error
        except ItemError as error:
            return error
        return Example(pixels, classes, digest, digest_of(label))


def digest_of(content: bytes) -> str:
    """sha256 of a file's bytes, hex."""
    return hashlib.sha256(content).hexdigest()
