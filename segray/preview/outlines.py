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
    spans = [_spans(text, height, width) for text in texts]
    found = outlines([np.zeros((0, 3), np.int64) if each is None else each for each in spans])
    tolerance = _TOLERANCE / min(1.0, scale)
    simple = shapely.simplify(found, tolerance)
    shapes = np.where(shapely.is_empty(simple), found, simple)
    return [None if each is None else _rings(shape, scale) for each, shape in zip(spans, shapes, strict=True)]


def _spans(text: str, height: int, width: int) -> Spans | None:
    try:
        lengths = run_lengths(text.encode("ascii", "replace"))
    except ItemError:
        return None
    if sum(lengths) != height * width:
        return None
    return spans_of(np.array(lengths, np.int64), height)


def _rings(shape: shapely.Geometry, scale: float) -> Rings:
    found: Rings = []
    for ring in shapely.get_rings(shapely.get_parts(shape)).tolist():
        points: NDArray[np.float64] = shapely.get_coordinates(ring)[:-1] * scale * UNIT
        found.append(np.rint(points).astype(np.int64).ravel().tolist())
    return found
