"""Label maps of predict: read in full for figures, made smaller for the page, written as run lengths.

A page that is opened from disk may not read the pixels of its pictures, so the map comes as numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError
from segray.palette import VOID, palette
from segray.preview.pictures import coarser
from segray.preview.runs import Run
from segray.scenes.nodata import nodata_mask
from segray.scenes.scene import Tiling
from segray.sources.byte_ranges import FileRanges
from segray.sources.concurrent_requests import as_item_error
from segray.sources.item import Source
from segray.sources.manifest import look_up_rows
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox

SIDE = 640
"""Longest side of a map in the page, pixels."""
SCENE_SIDE = 2_048
"""Longest side of a scene's map when it is read; figures are of these pixels."""
_TOGETHER = 16
_NOWHERE = Source("", "", "file", "", -1)

Classes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The map of one image."""

    values: Classes
    """(height, width) uint8; 255 is no class. A scene's is made smaller."""

    def shares(self) -> dict[int, float]:
        """Return value -> share of the pixels."""
        counts = np.bincount(self.values.ravel(), minlength=VOID + 1)
        found = np.flatnonzero(counts)
        return {int(value): round(float(counts[value] / self.values.size), 6) for value in found}

    def for_page(self) -> dict[str, Any]:
        """Return what labels.js draws: size and run lengths of the smaller map, shares of the whole one."""
        small = nearest(self.values, SIDE)
        flat = small.ravel()
        starts = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1]
        lengths = np.diff(np.r_[starts, len(flat)])
        runs = np.stack([flat[starts].astype(np.int64), lengths], axis=1).ravel().tolist()
        return {"size": list(small.shape), "runs": runs, "shares": self.shares()}


def nearest(values: Classes, side: int) -> Classes:
    """Make a map smaller so that its longer side is at most `side`; every value is one of the map's."""
    less = max(values.shape) / side
    if less <= 1:
        return values
    rows, cols = (
        ((np.arange(max(1, round(length / less))) + 0.5) * length / max(1, round(length / less))).astype(int)
        for length in values.shape
    )
    small: Classes = values[rows][:, cols]
    return small


class MapReader:
    """Reads label maps of a run, in a process that a hostile file may kill."""

    def __init__(self, run: Run, max_pixels: int) -> None:
        self._run, self._max_pixels = run, max_pixels
        self._sandbox = DecodeSandbox()
        self._value_of = {
            tuple(colour): value for value, colour in reversed([*enumerate(palette(VOID).tolist())])
        }

    def __enter__(self) -> "MapReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._sandbox.close()

    def read(self, rows: Sequence[dict[str, Any]]) -> Iterator[LabelMap | ItemError]:
        """Yield the map of each ledger row, in order, or why there is none."""
        for first in range(0, len(rows), _TOGETHER):
            some = rows[first : first + _TOGETHER]
            sources = self._sources(some)
            plain = [each for each in sources if each.uri.endswith(".png")]
            data = iter(read_all(plain, self._run.storage))
            for source in sources:
                yield self._of_png(next(data)) if source.uri.endswith(".png") else self._of_tiff(source)

    def _sources(self, rows: Sequence[dict[str, Any]]) -> list[Source]:
        """Return the file of each map: PNG for an image, GeoTIFF for a scene."""
        images, scenes = (self._looked_up(rows, suffix) for suffix in (".png", ".tif"))
        return [
            scene if image.error_type is not None and scene.error_type is None else image
            for image, scene in zip(images, scenes, strict=True)
        ]

    def _looked_up(self, rows: Sequence[dict[str, Any]], suffix: str) -> list[Source]:
        names: list[tuple[int, str | None]] = [
            (n, f"{self._run.url}/labels/{row['image_id']}{suffix}") for n, row in enumerate(rows, 2)
        ]
        return look_up_rows(names, _NOWHERE, "/", self._run.storage)

    def _of_png(self, data: bytes | ItemError) -> LabelMap | ItemError:
        if isinstance(data, ItemError):
            return data
        try:
            values = self._sandbox.stored(data, self._max_pixels).values
        except ItemError as error:
            return error
        return LabelMap(values.astype(np.uint8))

    def _of_tiff(self, source: Source) -> LabelMap | ItemError:
        """Read a scene's map by its palette, from an overview: its colours tell the classes."""
        try:
            if source.error_type is not None:
                raise ItemError(source.error_type, source.error or "")
            file = FileRanges(source.uri, source.version, source.address, source.size, self._run.storage)
            scene = self._sandbox.describe(file, Tiling(picture_pixels=0))
            assert scene is not None
            small = coarser(scene, SCENE_SIDE)
            room = self._sandbox.room()
            found = self._sandbox.window(file, small, 0, room)
            if found is None:
                return LabelMap(np.full((small.height, small.width), VOID, np.uint8))
            values = self._by_colour(found.pixels)
            if found.nodata is not None:
                values[nodata_mask(found.nodata, *values.shape)] = VOID
            return LabelMap(values)
        except Exception as error:  # noqa: BLE001 - each storage has its own; it costs this map
            return as_item_error(error, "the label map")

    def _by_colour(self, pixels: NDArray[np.uint8]) -> Classes:
        codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        seen, which = np.unique(codes, return_inverse=True)
        colours = [(code >> 16, code >> 8 & 255, code & 255) for code in seen.tolist()]
        values = np.array([self._value_of.get(colour, VOID) for colour in colours], np.uint8)
        return values[which].reshape(codes.shape)
