"""A pair -> the pixels of its image and its label, in memory: the class of each pixel, or instances."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from segray.data.coco_file import TrueInstance
from segray.data.coco_listing import AnnotatedPair, instances_of
from segray.data.labels import LabelRules, fit_to, read_label
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.scenes.scene import Tiling
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode_step import decode_image
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One pair in memory."""

    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8, RGB."""
    classes: NDArray[np.uint8]
    """(height, width) uint8; 255 is void."""
    digest: str
    """sha256 of the image's bytes, hex."""
    label_digest: str
    """sha256 of the label's bytes, hex."""


@dataclass(frozen=True, slots=True)
class CocoExample:
    """One image of a COCO file in memory."""

    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8, RGB."""
    instances: list[TrueInstance]
    """Instances, crowds included."""
    digest: str
    """sha256 of the image's bytes, hex."""
    label_digest: str
    """sha256 of its annotations, hex."""


class LabelReading(Protocol):
    """How pairs of one kind of label are read, in any process; what is read has pixels and two digests."""

    def reader(self) -> Any:
        """Return an object whose `read` takes pairs and returns, for each, its content or an ItemError."""

    def counts(self, example: Any) -> list[int]:
        """Return the pixels of each class, or the instances of each category."""


class _Reader(ABC, Generic[T]):
    """Reads pairs; images and labels are decoded in a child process that a hostile file may kill."""

    def __init__(self, max_pixels: int, storage: StorageSettings) -> None:
        self.max_pixels, self.storage = max_pixels, storage
        self._sandbox = DecodeSandbox()

    def read(self, pairs: Sequence[Pair]) -> list[T | ItemError]:
        """Return each pair's content, or the ItemError why it cannot be used."""
        files = [source for pair in pairs for source in self._files(pair)]
        data = iter(read_all(files, self.storage))
        return [self._example(pair, [next(data) for _ in self._files(pair)]) for pair in pairs]

    def _files(self, pair: Pair) -> list[Any]:
        """Return the files of a pair that are opened, the image first."""
        return [pair.image]

    def _example(self, pair: Pair, data: list[bytes | ItemError]) -> T | ItemError:
        try:
            if isinstance(data[0], ItemError):
                raise data[0]
            digest = digest_of(data[0])
            if len(data) > 1 and isinstance(data[1], ItemError):
                raise ItemError(data[1].error_type, f"label: {data[1].reason}")
            file = MemoryRanges(digest, memoryview(data[0]))
            pixels = decode_image(self._sandbox, file, self.max_pixels, Tiling()).pixels
            return self._labelled(pair, pixels, digest, *data[1:])
        except ItemError as error:
            return error

    @abstractmethod
    def _labelled(self, pair: Pair, pixels: NDArray[np.uint8], digest: str, *label: Any) -> T:
        """Return the example. Raises ItemError for a label that cannot be used."""


class Reader(_Reader[Example]):
    """Reads pairs of an image and a label image."""

    def __init__(self, rules: LabelRules, max_pixels: int, storage: StorageSettings) -> None:
        super().__init__(max_pixels, storage)
        self.rules = rules

    def _files(self, pair: Pair) -> list[Any]:
        return [pair.image, pair.label]

    def _labelled(self, pair: Pair, pixels: NDArray[np.uint8], digest: str, *label: Any) -> Example:
        (content,) = label
        try:
            stored = read_label(content, self.rules, self.max_pixels, self._sandbox.stored)
            classes = fit_to(stored, *pixels.shape[:2])
        except ItemError as error:
            raise ItemError(error.error_type, f"label: {error.reason}") from error
        return Example(pixels, classes, digest, digest_of(content))


class CocoReader(_Reader[CocoExample]):
    """Reads images of a COCO file, whose pairs carry their annotations."""

    def __init__(self, categories: dict[int, str], max_pixels: int, storage: StorageSettings) -> None:
        super().__init__(max_pixels, storage)
        self.categories = categories

    def _labelled(self, pair: Pair, pixels: NDArray[np.uint8], digest: str, *label: Any) -> CocoExample:
        assert isinstance(pair, AnnotatedPair)
        size, instances = instances_of(pair.annotations, self.categories)
        if pixels.shape[:2] != size:
            there = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise ItemError("unsupported", f"the image is {there}, its COCO entry {size[1]} x {size[0]}")
        return CocoExample(pixels, instances, digest, digest_of(pair.annotations.encode()))


@dataclass(frozen=True)
class Reading:
    """How pairs of an image and a label image are read, in any process."""

    rules: LabelRules
    max_pixels: int
    storage: StorageSettings

    def reader(self) -> Any:
        """Return a reader for this process."""
        return Reader(self.rules, self.max_pixels, self.storage)

    def counts(self, example: Example) -> list[int]:
        """Return the pixels of each class."""
        found: list[int] = np.bincount(example.classes.ravel(), minlength=256)[: self.rules.classes].tolist()
        return found


@dataclass(frozen=True)
class CocoReading:
    """How images and annotations of a COCO file are read, in any process."""

    categories: dict[int, str]
    max_pixels: int
    storage: StorageSettings

    def reader(self) -> CocoReader:
        """Return a reader for this process."""
        return CocoReader(self.categories, self.max_pixels, self.storage)

    def counts(self, example: CocoExample) -> list[int]:
        """Return the instances of each category, crowds left out, in the order of the ids."""
        found = [each.category for each in example.instances if not each.crowd]
        return [found.count(category) for category in sorted(self.categories)]


def digest_of(content: bytes) -> str:
    """Return the sha256 of a file's bytes, hex."""
    return hashlib.sha256(content).hexdigest()
