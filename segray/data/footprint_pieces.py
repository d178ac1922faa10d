"""Footprints on a window of a scene as instances: one a footprint, of however many parts.

A pixel belongs to a footprint where its centre does. Footprints may share pixels. A piece counts where it has
`VISIBLE` of the footprint's area, or of the window's where the footprint is larger than that, on pixels with
data. Otherwise it is ignored, as a crowd is in COCO: nobody can say of a strip of two pixels what it is part
of. It is no object to learn or to find, and what was found there is no error. A footprint without any pixel
is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from rasterio.features import rasterize
from rasterio.transform import Affine
from shapely.geometry import MultiPolygon

from segray.data.footprints import Footprints
from segray.masks.spans import Spans, area, bounds, counts_of, crop, encoded, moved, spans_of
from segray.scenes.scene import Scene
from segray.tile_overlap import Window

VISIBLE = 0.15
"""Least share of a footprint's area, or of the window's where that is smaller, for its piece to count."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a window has of one footprint."""

    category: int
    counts: str
    """Compressed run lengths in the window; empty without a pixel."""
    ignored: bool


def pieces_on(
    footprints: Footprints, scene: Scene, window: Window, nodata: Spans | None = None
) -> Iterator[Piece]:
    """Yield the pieces of footprints that touch a window of a scene, those of lower rank first.

    nodata: (n, 3), pixels that belong to no footprint, in the window's frame; see `drawn_spans`.
    """
    edges = shapely.box(window.col_start, window.row_start, window.col_stop, window.row_stop)
    found = [each for each in footprints.shapes(scene, window) if each[0].intersects(edges)]
    masks = [_with_data(spans_on(shape, window), nodata) for shape, _ in found]
    texts = encoded(masks, window.height, window.width)
    for (shape, category), mask, counts in zip(found, masks, texts, strict=True):
        whole = min(shape.area, window.height * window.width)
        yield Piece(category, counts if len(mask) else "", area(mask) < VISIBLE * whole)


def spans_on(shape: MultiPolygon, window: Window) -> Spans:
    """Return the pixels (n, 3) of a window whose centres are in a shape of the scene's pixels.

    In the window's frame; see `masks.spans`.
    """
    nothing: NDArray[np.int64] = np.zeros((0, 3), np.int64)
    low, high = np.array(shape.bounds).reshape(2, 2)
    left, right = np.clip((np.floor(low[0]), np.ceil(high[0])), window.col_start, window.col_stop).astype(int)
    top, bottom = np.clip((np.floor(low[1]), np.ceil(high[1])), window.row_start, window.row_stop).astype(int)
    if right <= left or bottom <= top:
        return nothing
    size = (int(bottom - top), int(right - left))
    drawn = rasterize([(shape, 1)], out_shape=size, transform=Affine.translation(left, top), dtype="uint8")
    return moved(drawn_spans(drawn), int(top - window.row_start), int(left - window.col_start))


def drawn_spans(drawn: NDArray[Any]) -> Spans:
    """Return the pixels (n, 3) that are not 0 in an array (height, width) of bool or uint8."""
    (counts,) = counts_of([coco_mask.encode(np.asfortranarray(drawn, np.uint8))["counts"].decode()])
    return spans_of(counts, drawn.shape[0])


def _with_data(mask: Spans, nodata: Spans | None) -> Spans:
    if nodata is None or not len(nodata) or not len(mask):
        return mask
    around = bounds(mask)
    kept = crop(mask, around) & ~crop(nodata, around)
    return moved(drawn_spans(kept), around.row_start, around.col_start)
