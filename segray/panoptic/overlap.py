"""Which thing owns a pixel where masks overlap, from run lengths: no mask grows beyond its own box.

The heuristic of Kirillov et al., "Panoptic Segmentation" (CVPR 2019, section 4.2) as Panoptic FPN uses it:
things by falling score, each keeps the pixels that no better one took, and one of which too little is left
is dropped, and then hides nothing. (detectron2's `combine_semantic_and_instance_outputs` drops it where more
than half of its mask is taken: `min_visible` 0.5.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from segray.masks.spans import Ints, Spans, area, bounds, crop
from segray.tile_overlap import Window, blocks

BLOCK = 2048
"""Largest side of a mask's part that is in memory, pixels: 4 MB."""


@dataclass(frozen=True, slots=True)
class Visible:
    """A thing that is kept: which one, and what is left of it."""

    index: int
    """Place in the list of masks."""
    area: int
    """Pixels that are left."""
    window: Window
    """The smallest window around them."""


def visible_things(masks: Sequence[Spans], min_visible: float) -> list[Visible]:
    """Return the kept ones of masks (n, 3), which come best first and hold at least a pixel each."""
    if not masks:
        return []
    windows = [bounds(mask) for mask in masks]
    better = _better_neighbours(windows)
    kept: dict[int, Visible] = {}
    for index, mask in enumerate(masks):
        over = [other for other in better[index].tolist() if other in kept]
        left, window = area(mask), windows[index]
        if over:
            left, window = _left(mask, window, [(masks[other], windows[other]) for other in over])
        if left and left >= min_visible * area(mask):
            kept[index] = Visible(index, left, window)
    return list(kept.values())


def _better_neighbours(windows: Sequence[Window]) -> list[NDArray[np.int64]]:
    """Return for each window the earlier ones that overlap it or touch it."""
    sides = np.array([(each.col_start, each.row_start, each.col_stop, each.row_stop) for each in windows])
    boxes = shapely.box(*sides.reshape(-1, 4).T)
    own, other = shapely.STRtree(boxes).query(boxes)
    earlier = other < own
    own, other = own[earlier], other[earlier]
    order = np.lexsort((other, own))
    ends = np.searchsorted(own[order], np.arange(1, len(windows)))
    return np.split(other[order], ends)


def _left(mask: Spans, window: Window, others: Sequence[tuple[Spans, Window]]) -> tuple[int, Window]:
    """Return number and bounds of the pixels of a mask that none of the others has."""
    total, found = 0, list[Window]()
    for block in blocks(window, BLOCK):
        free = crop(mask, block)
        for other, around in others:
            if (both := overlap(block, around)) is not None:
                part = free[
                    both.row_start - block.row_start : both.row_stop - block.row_start,
                    both.col_start - block.col_start : both.col_stop - block.col_start,
                ]
                part &= ~crop(other, both)
        number = int(np.count_nonzero(free))
        if number:
            total += number
            found.append(bounds_of(free, block))
    return total, around_all(found) if found else window


def bounds_of(pixels: NDArray[np.bool_], window: Window) -> Window:
    """Return the smallest window around the True pixels, bool (h, w) of `window`, of which there is one."""
    rows, cols = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return Window(
        window.row_start + int(rows[0]),
        window.row_start + int(rows[-1]) + 1,
        window.col_start + int(cols[0]),
        window.col_start + int(cols[-1]) + 1,
    )


def around_all(windows: Sequence[Window]) -> Window:
    """Return the smallest window around all of at least one."""
    return Window(
        min(each.row_start for each in windows),
        max(each.row_stop for each in windows),
        min(each.col_start for each in windows),
        max(each.col_stop for each in windows),
    )


def overlap(one: Window, other: Window) -> Window | None:
    """Return the pixels that both have; None where there is none."""
    rows = max(one.row_start, other.row_start), min(one.row_stop, other.row_stop)
    cols = max(one.col_start, other.col_start), min(one.col_stop, other.col_stop)
    return Window(*rows, *cols) if rows[0] < rows[1] and cols[0] < cols[1] else None


def sides_of(windows: Sequence[Window]) -> Ints:
    """Return windows as int64 (n, 4): row start, row stop, column start, column stop."""
    rows = [(each.row_start, each.row_stop, each.col_start, each.col_stop) for each in windows]
    return np.array(rows, np.int64).reshape(-1, 4)
