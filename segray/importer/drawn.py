"""What a reader of a format yields: images that a person looked at, and what is drawn in each.

A shape is drawn when its image, and so its size, is known; what cannot be drawn costs only itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.errors import ItemError
from segray.export.table import Image, Instance
from segray.masks.coco_segmentation import rle_of
from segray.masks.spans import Spans, counts_of, encoded, moved, spans_of

Draw = Callable[[int, int], str]
"""(height, width) of the image -> COCO compressed run lengths. Raises ItemError."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One annotation."""

    where: str
    """Its name in messages."""
    draw: Draw
    category: str | None
    number: int | None = None
    """`category_id` in the file, for a class that has no name there."""
    instance_id: str | None = None
    crowd: bool | None = None
    """None where the file does not say: as in the run."""


@dataclass(frozen=True, slots=True)
class Looked:
    """One image of the file."""

    name: str
    """Address, path or file name; without suffix where `is_stem`."""
    drawn: Sequence[Drawn]
    image_id: str | None = None
    """Of the run, where the file carries it."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, where the file has them."""
    split: str | None = None
    group: str | None = None
    is_stem: bool = False
    shown: Callable[[Image, Sequence[Instance]], list[str]] | None = field(default=None, repr=False)
    """What the format shows of the masks of a run (run lengths), where it cannot hold them all."""


def failing(reason: str) -> Draw:
    """Return a shape that cannot be drawn."""

    def draw(_height: int, _width: int) -> str:
        raise ItemError("unsupported", reason)

    return draw


def polygons(rings: Sequence[Sequence[float]]) -> Draw:
    """Return the shape inside rings of x, y, x, y, … in pixels, as pycocotools rasterises it."""
    return segmentation([list(map(float, ring)) for ring in rings])


def segmentation(value: object) -> Draw:
    """Return a segmentation in one of COCO's forms as a shape."""

    def draw(height: int, width: int) -> str:
        return text_of(rle_of(value, height, width)["counts"])

    return draw


def box(left: float, top: float, right: float, bottom: float) -> Draw:
    """Return a box in pixels as a shape: pixels whose centre is inside."""

    def draw(height: int, width: int) -> str:
        sides = np.array([left, top, right, bottom])
        if not np.isfinite(sides).all() or np.abs(sides).max() > 2 * max(height, width):
            raise ItemError("unsupported", f"box {sides.tolist()} in an image of {width} x {height}")
        first_col, last_col = np.clip(np.floor(sides[[0, 2]] + 0.5), 0, width).astype(int)
        first_row, last_row = np.clip(np.floor(sides[[1, 3]] + 0.5), 0, height).astype(int)
        cols = np.arange(first_col, max(first_col, last_col))
        rows = np.full_like(cols, first_row), np.full_like(cols, max(first_row, last_row))
        spans = np.stack([cols, *rows], axis=1)
        return encoded([spans[spans[:, 2] > spans[:, 1]]], height, width)[0]

    return draw


def turned_box(
    corner: Sequence[float], sides: Sequence[float], degrees: float, pivot: Sequence[float]
) -> Draw:
    """Return a box as a shape, turned clockwise around a pivot; all in pixels, x before y."""
    left, top, right, bottom = *corner, corner[0] + sides[0], corner[1] + sides[1]
    if degrees % 360 == 0:
        return box(left, top, right, bottom)
    ring = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) - pivot
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    there = ring @ np.array([[cosine, sine], [-sine, cosine]]) + pivot
    return polygons([there.ravel().tolist()])


def pasted(crop: NDArray[np.bool_], top: int, left: int) -> Draw:
    """Return a mask, bool (rows, cols), whose upper left corner is at a pixel of the image."""

    def draw(height: int, width: int) -> str:
        rows, cols = (max(0, -top), height - top), (max(0, -left), width - left)
        inside = crop[rows[0] : max(rows), cols[0] : max(cols)]
        if not inside.size:
            return encoded([np.zeros((0, 3), np.int64)], height, width)[0]
        return encoded([spans_in(inside, max(top, 0), max(left, 0))], height, width)[0]

    return draw


def spans_in(crop: NDArray[np.bool_], top: int, left: int) -> Spans:
    """Return the spans of a mask, bool (rows, cols), whose corner is at (top, left)."""
    counts = coco_mask.encode(np.asfortranarray(crop, dtype=np.uint8))["counts"].decode()
    return moved(spans_of(counts_of([counts])[0], len(crop)), top, left)


def text_of(counts: Any) -> str:
    """Return run lengths as text; pycocotools returns bytes."""
    return counts.decode("ascii") if isinstance(counts, bytes) else str(counts)


def by_value(values: NDArray[Any]) -> dict[int, str]:
    """Return the run lengths of each value but 0 of a label image (height, width)."""
    height, width = values.shape
    flat = values.T.ravel()
    if not len(flat):
        return {}
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.stack([np.r_[0, edges], np.r_[edges, len(flat)]], axis=1)
    value = flat[runs[:, 0]]
    order = np.argsort(value, kind="stable")
    found, first = np.unique(value[order], return_index=True)
    lengths = {}
    for number, rows in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        if number:
            counts = np.diff(np.r_[0, runs[rows].ravel(), len(flat)])
            lengths[number] = {"size": [height, width], "counts": counts[: len(counts) - (counts[-1] == 0)]}
    masks = coco_mask.frPyObjects(list(lengths.values()), height, width) if lengths else []
    return {number: text_of(mask["counts"]) for number, mask in zip(lengths, masks, strict=True)}
