"""Clean-up of a label map: regions that are too small, holes in larger ones; of an array or of a file.

Both steps see the whole map, so that nothing depends on windows. Of a file neither holds the pixels in
memory: GDAL's sieve keeps some 24 bytes per region, the search for holes the outlines of all regions. Regions
are connected along pixel edges. Pixels without data stay so, and are no part of a region.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from segray.palette import VOID
from segray.tile_overlap import Window, blocks

Labels = NDArray[np.uint8]
BACKGROUND = "background"
"""A class of this name has no polygons, and its holes stay: they are the objects."""
SIDE = 1024
"""Side of the blocks in which a file is read and written, pixels."""


@dataclass(frozen=True, slots=True)
class CleanUp:
    """How label maps are cleaned up; at 0 a step is left out."""

    smallest_area: int
    """Regions of fewer pixels take the class of their largest neighbour."""
    close_holes: int
    """Holes of at most this many pixels take the class of the region around them."""
    classes: tuple[str, ...]

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(self.smallest_area or self.close_holes)

    def array(self, labels: Labels) -> Labels:
        """Return the cleaned-up map of classes (h, w) uint8."""
        valid = labels != VOID
        if self.smallest_area:
            labels = rasterio.features.sieve(labels, min(self.smallest_area, labels.size), mask=valid)
            labels[~valid] = VOID
        if self.close_holes:
            found = self._holes(rasterio.features.shapes(labels, mask=valid))
            labels = _filled(labels, found, Window(0, labels.shape[0], 0, labels.shape[1]))
        return labels

    def file(self, path: Path) -> None:
        """Clean up the only band of a GeoTIFF, in place; a second file beside it holds the mask meanwhile."""
        if self.smallest_area:
            self._sieve_file(path)
        if self.close_holes:
            with rasterio.open(path, "r+") as data:
                to_pixels = ~data.transform
                found = self._holes(rasterio.features.shapes(rasterio.band(data, 1)), to_pixels)
                tree = shapely.STRtree(found.outlines)
                for block in _blocks(data):
                    some = tree.query(shapely.box(block.col_start, block.row_start,
                                                  block.col_stop, block.row_stop))  # fmt: skip
                    if len(some):
                        place = _place(block)
                        labels = data.read(1, window=place)
                        data.write(_filled(labels, found.only(np.sort(some)), block), 1, window=place)

    def _sieve_file(self, path: Path) -> None:
        beside, mask = path.with_suffix(".sieved"), path.with_suffix(".mask.tif")
        with rasterio.open(path, "r+") as data:
            with rasterio.open(mask, "w", **{**data.profile, "nodata": None}) as valid:
                for block in _blocks(data):
                    place = _place(block)
                    valid.write((data.read(1, window=place) != VOID).astype(np.uint8), 1, window=place)
            # rasterio writes into arrays alone: this one lies on disk
            sieved = np.memmap(beside, np.uint8, "w+", shape=data.shape)
            with rasterio.open(mask) as valid:
                bands = rasterio.band(data, 1), rasterio.band(valid, 1)
                least = min(self.smallest_area, data.height * data.width)  # more is an error of rasterio's
                rasterio.features.sieve(bands[0], least, out=sieved, mask=bands[1])
            for block in _blocks(data):
                place, before = _place(block), data.read(1, window=_place(block))
                after = sieved[block.row_start : block.row_stop, block.col_start : block.col_stop]
                data.write(np.where(before == VOID, before, after), 1, window=place)
        mask.unlink()
        beside.unlink()

    def _holes(self, regions: Iterator[tuple[Any, float]], to_pixels: Affine | None = None) -> "_Holes":
        """Return the holes of regions, as rasterio finds them, of at most `close_holes` pixels."""
        outlines, values = list[Any](), list[int]()
        for outline, value in regions:
            if int(value) == VOID or self.classes[int(value)] == BACKGROUND:
                continue
            for ring in outline["coordinates"][1:]:
                corners = [to_pixels @ corner for corner in ring] if to_pixels else ring
                hole = shapely.Polygon(np.rint(corners))
                if hole.area <= self.close_holes:
                    outlines.append(hole)
                    values.append(int(value))
        order = np.argsort(shapely.area(outlines), kind="stable") if outlines else np.zeros(0, int)
        return _Holes(np.array(outlines, object)[order], np.array(values, int)[order])


@dataclass(frozen=True, slots=True)
class _Holes:
    """Holes by ascending area: where one lies in another, the outer one is filled last."""

    outlines: NDArray[np.object_]
    """Polygons in pixels."""
    values: NDArray[np.int64]
    """Class of the region around each."""

    def only(self, some: Sequence[int] | NDArray[np.int64]) -> "_Holes":
        return _Holes(self.outlines[some], self.values[some])


def _filled(labels: Labels, holes: _Holes, block: Window) -> Labels:
    """Return the labels of a block with its parts of the holes filled."""
    if not len(holes.outlines):
        return labels
    filled = labels.copy()
    pairs = zip(holes.outlines, holes.values.tolist(), strict=True)
    where = Affine.translation(block.col_start, block.row_start)
    rasterio.features.rasterize(pairs, out=filled, transform=where)
    filled[labels == VOID] = VOID
    return filled


def _blocks(data: Any) -> Iterator[Window]:
    return blocks(Window(0, data.height, 0, data.width), SIDE)


def _place(block: Window) -> RasterWindow:
    return RasterWindow(block.col_start, block.row_start, block.width, block.height)
