"""How far two sets of boxes of one image disagree: 1 - F1 of their matches."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from segray.tile_overlap import Grid, Window

SAME = 0.5
"""Minimum IoU of two boxes of one object, as in Pascal VOC."""
_EDGE = 2
"""Pixels from the edge of a shared rectangle within which a box may be cut."""

Boxes = NDArray[np.float32]
"""(n, 4): x0, y0, x1, y1 in pixels of one frame."""
Categories = NDArray[np.int32]


def ious(one: Boxes, other: Boxes) -> NDArray[np.float64]:
    """Return the IoU of each pair, (n, m)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clip(min=0).astype(np.float64).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).astype(np.float64).prod(1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    found: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def matched(
    one: Boxes, other: Boxes, of_one: Categories, of_other: Categories
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which boxes have a partner of their category, (n,) and (m,): one to one, by descending IoU."""
    found = np.where(of_one[:, None] == of_other[None, :], ious(one, other), 0.0)
    rows, cols = np.nonzero(found >= SAME)
    order = np.lexsort((cols, rows, -found[rows, cols]))
    left, right = np.zeros(len(one), bool), np.zeros(len(other), bool)
    for row, col in zip(rows[order].tolist(), cols[order].tolist(), strict=True):
        if not left[row] and not right[col]:
            left[row] = right[col] = True
    return left, right


def disagreement(one: Boxes, other: Boxes, of_one: Categories, of_other: Categories) -> float:
    """Return the share of all n + m boxes without a partner: 1 - F1; 0 where there are no boxes."""
    total = len(one) + len(other)
    if not total:
        return 0.0
    left, right = matched(one, other, of_one, of_other)
    return float(1 - (left.sum() + right.sum()) / total)


def mirrored(boxes: Boxes, width: int) -> Boxes:
    """Return the boxes of a mirror image in the frame of its image."""
    x0, y0, x1, y1 = boxes.T
    return np.stack([width - x1, y0, width - x0, y1], axis=1)


def windows_disagreement(
    tile: NDArray[np.int64], boxes: Boxes, categories: Categories, grid: Grid, seen: Collection[int]
) -> float:
    """Return the share of boxes, seen whole by two neighbouring windows, that only one of them found.

    tile: (n,) index of each box's window in the grid; boxes in pixels of the scene. seen: windows that have
    a result. NaN where no box lies in what two of them share.
    """
    alone = total = 0
    for pair in _neighbours(seen, grid):
        shared = _shared(*(grid.window(each) for each in pair))
        rows = [np.flatnonzero(tile == each) for each in pair]
        first, second = rows
        sides = matched(boxes[first], boxes[second], categories[first], categories[second])
        for index, found in zip(rows, sides, strict=True):
            whole = _inside(boxes[index], shared)
            total += int(whole.sum())
            alone += int((whole & ~found).sum())
    return alone / total if total else float("nan")


def _neighbours(seen: Collection[int], grid: Grid) -> list[tuple[int, int]]:
    """Return pairs of windows: each with the one on its right, and with the one below."""
    right = [(tile, tile + 1) for tile in seen if (tile + 1) % grid.cols]
    below = [(tile, tile + grid.cols) for tile in seen]
    return sorted(pair for pair in right + below if pair[1] in seen)


def _shared(one: Window, other: Window) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of what two windows share."""
    return (
        max(one.col_start, other.col_start), max(one.row_start, other.row_start),
        min(one.col_stop, other.col_stop), min(one.row_stop, other.row_stop),
    )  # fmt: skip


def _inside(boxes: Boxes, shared: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    low, high = np.array(shared[:2]) + _EDGE, np.array(shared[2:]) - _EDGE
    inside: NDArray[np.bool_] = np.all((boxes[:, :2] >= low) & (boxes[:, 2:] <= high), axis=1)
    return inside
