"""Windows of scenes -> pixels and labels, read one by one in any process: classes of pixels, or instances.

A window's address is that of its scene with `#xywh=x,y,width,height`, in pixels of the scene as it is read
(as in W3C's Media Fragments). Where only a part of it is labelled, the label's address ends with that part.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from segray.data.coco_file import TrueInstance
from segray.data.footprint_pieces import drawn_spans, pieces_on
from segray.data.footprints import Footprints
from segray.data.pair_reader import CocoExample, CocoReading, Example, Reading, digest_of
from segray.data.pairs import FRAGMENT, Pair
from segray.errors import ItemError
from segray.palette import VOID
from segray.scenes.nodata import nodata_mask
from segray.scenes.scene import Scene, scene_from
from segray.sources.byte_ranges import FileRanges
from segray.sources.item import Source
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings
from segray.tile_overlap import Window

T = TypeVar("T", bound=Example | CocoExample)
Bools = NDArray[np.bool_]
_OPEN = 8
"""Files whose ranges a reader keeps cached."""


def shared(scenes: Mapping[str, str], footprints: pa.Table) -> Any:
    """Put what readers need into Ray's shared memory, once a machine; return a reference."""
    return ray.put((scenes, footprints))


@dataclass(frozen=True)
class WindowReading(Reading):
    """How windows are read as classes of pixels, in any process; see `Reading`."""

    shared: Any
    """Reference to the scenes and the footprints."""

    def reader(self) -> "ClassWindows":
        """Return a reader for this process."""
        scenes, footprints = ray.get(self.shared)
        return ClassWindows(scenes, Footprints(footprints), self.storage)


@dataclass(frozen=True)
class InstanceWindowReading(CocoReading):
    """How windows are read as instances, in any process; see `CocoReading`."""

    shared: Any

    def reader(self) -> Any:
        """Return a reader for this process."""
        scenes, footprints = ray.get(self.shared)
        return InstanceWindows(scenes, Footprints(footprints), self.storage)

    def counts(self, example: CocoExample) -> Any:
        """Return the instances of each category; None for a window that holds no data, which is all black."""
        return super().counts(example) if example.pixels.any() else None


class _Windows(ABC, Generic[T]):
    """Reads windows; scenes are decoded in a child process that a hostile file may kill."""

    def __init__(self, scenes: Mapping[str, str], footprints: Footprints, storage: StorageSettings) -> None:
        self._scenes, self._footprints, self._storage = scenes, footprints, storage
        self._sandbox = DecodeSandbox()
        self._files: dict[str, FileRanges] = {}

    def read(self, pairs: Sequence[Pair]) -> list[T | ItemError]:
        """Return each window, or why it cannot be used; one without data is black and has no label."""
        return [self._read(pair) for pair in pairs]

    def _read(self, pair: Pair) -> T | ItemError:
        uri = pair.image.uri.rpartition(FRAGMENT)[0]
        scene, window = scene_from(self._scenes[uri]), window_of(pair.image.uri)
        try:
            room = self._sandbox.room()
            decoded = self._sandbox.window(self._file(pair.image, uri), scene, window, room)
        except ItemError as error:
            return error
        size = window.height, window.width
        if decoded is None:
            return self._empty(np.zeros((*size, 3), np.uint8))
        nodata = None if decoded.nodata is None else nodata_mask(decoded.nodata, *size)
        own = window_of(pair.label.uri) if FRAGMENT in pair.label.uri else window
        return self._labelled(decoded.pixels.copy(), scene, (window, own), nodata)

    @abstractmethod
    def _empty(self, pixels: NDArray[np.uint8]) -> T:
        """Return the example of a window without data."""

    @abstractmethod
    def _labelled(
        self, pixels: NDArray[np.uint8], scene: Scene, cut: tuple[Window, Window], nodata: Bools | None
    ) -> T:
        """Return the example; cut: the window, and the part of it that is labelled."""

    def _file(self, source: Source, uri: str) -> FileRanges:
        if uri not in self._files:
            if len(self._files) >= _OPEN:
                del self._files[next(iter(self._files))]
            self._files[uri] = FileRanges(uri, source.version, source.address, source.size, self._storage)
        return self._files[uri]


class ClassWindows(_Windows[Example]):
    """Reads windows with the class of each pixel."""

    def _empty(self, pixels: NDArray[np.uint8]) -> Example:
        return _example(pixels, np.full(pixels.shape[:2], VOID, np.uint8))

    def _labelled(
        self, pixels: NDArray[np.uint8], scene: Scene, cut: tuple[Window, Window], nodata: Bools | None
    ) -> Example:
        window, own = cut
        rows = slice(own.row_start - window.row_start, own.row_stop - window.row_start)
        cols = slice(own.col_start - window.col_start, own.col_stop - window.col_start)
        classes = np.full((window.height, window.width), VOID, np.uint8)
        classes[rows, cols] = self._footprints.classes(scene, own)
        if nodata is not None:
            classes[nodata] = VOID
        return _example(pixels, classes)


class InstanceWindows(_Windows[CocoExample]):
    """Reads windows with the instances in them, see `footprint_pieces`."""

    def _empty(self, pixels: NDArray[np.uint8]) -> CocoExample:
        return _coco_example(pixels, [])

    def _labelled(
        self, pixels: NDArray[np.uint8], scene: Scene, cut: tuple[Window, Window], nodata: Bools | None
    ) -> CocoExample:
        window, _ = cut
        size = [window.height, window.width]
        without = None if nodata is None else drawn_spans(nodata)
        return _coco_example(
            pixels,
            [
                TrueInstance(
                    {"size": size, "counts": piece.counts}, piece.category, piece.ignored, None, None
                )
                for piece in pieces_on(self._footprints, scene, window, without)
                if piece.counts
            ],
        )


def window_of(uri: str) -> Window:
    """Return the window that an address ends with."""
    x, y, width, height = map(int, uri.rpartition(FRAGMENT)[2].split(","))
    return Window(y, y + height, x, x + width)


def address_of(window: Window) -> str:
    """Return the end of a window's address."""
    return f"{FRAGMENT}{window.col_start},{window.row_start},{window.width},{window.height}"


def _example(pixels: NDArray[np.uint8], classes: NDArray[np.uint8]) -> Example:
    return Example(pixels, classes, digest_of(pixels.tobytes()), digest_of(classes.tobytes()))


def _coco_example(pixels: NDArray[np.uint8], found: list[TrueInstance]) -> CocoExample:
    text = json.dumps([(each.category, each.crowd, each.mask and each.mask["counts"]) for each in found])
    return CocoExample(pixels, found, digest_of(pixels.tobytes()), digest_of(text.encode()))
