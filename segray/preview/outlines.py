"""Masks as outlines of a picture in the page: along pixel edges, simplified to what the eye can see."""

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from segray.errors import ItemError
from segray.masks.coco_segmentation import run_lengths
from segray.masks.polygonize import outlines
from segray.masks.spans import Spans, spans_of

UNIT = 4
"""Coordinates are integers in quarters of a picture's pixel."""
_TOLERANCE = 0.75
"""How far a simplified outline may be from the pixel edges: in pixels of the image, or of the picture where
that is coarser. A slanted edge is a staircase that is half a pixel off."""

Rings = list[list[int]]
"""Exteriors and holes, each x, y, x, y, … in units; filled by the even-odd rule."""


def rings_of(texts: Sequence[str], height: int, width: int, scale: float) -> list[Rings | None]:
    """Return the rings of each mask, COCO compressed run lengths of an image of `height` x `width` pixels.

    scale: pixels of the picture for one of the image, at most 1. None where run lengths are broken.
    """
    lengths = [_lengths(text, height * width) for text in texts]
    known = [index for index, each in enumerate(lengths) if each is not None]
    exact = outlines(_spans([each for each in lengths if each is not None], height, width))
    simple = shapely.simplify(exact, _TOLERANCE / min(1.0, scale), preserve_topology=False)
    shapes = np.where(shapely.is_empty(simple), exact, simple)
    found: list[Rings | None] = [None] * len(texts)
    for index, rings in zip(known, _rings(shapes, scale), strict=True):
        found[index] = rings
    return found


def _lengths(text: str, pixels: int) -> NDArray[np.int64] | None:
    """Return the run lengths, an even number of them; None where they are broken."""
    try:
        lengths = run_lengths(text.encode("ascii", "replace"))
    except ItemError:
        return None
    return np.array(lengths + [0] * (len(lengths) % 2), np.int64) if sum(lengths) == pixels else None


def _spans(lengths: Sequence[NDArray[np.int64]], height: int, width: int) -> list[Spans]:
    """Return the spans of all masks, computed at once: as one image in which they stand side by side."""
    if not lengths:
        return []
    spans = spans_of(np.concatenate(lengths), height)
    mask, spans[:, 0] = np.divmod(spans[:, 0], width)
    return np.split(spans, np.searchsorted(mask, np.arange(1, len(lengths))))


def _rings(shapes: NDArray[np.object_], scale: float) -> list[Rings]:
    """Return the rings of each shape, in units."""
    parts, shape_of = shapely.get_parts(shapes, return_index=True)
    rings, part_of = shapely.get_rings(parts, return_index=True)
    points, ring_of = shapely.get_coordinates(rings, return_index=True)
    whole = np.rint(points * scale * UNIT).astype(np.int64)
    ends = np.searchsorted(ring_of, np.arange(len(rings)), "right")
    found: list[Rings] = [[] for _ in shapes]
    if not len(rings):
        return found
    for shape, ring in zip(shape_of[part_of].tolist(), np.split(whole, ends[:-1]), strict=True):
        found[shape].append(ring[:-1].ravel().tolist())  # the last point is the first
    return found
