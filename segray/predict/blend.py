"""Blend windows of probabilities into one map, with weights that sum to one, block by block. No storage.

Where windows overlap, each one's weight rises from its border inwards. Along an axis of n overlapping pixels
a window has (nearly) no weight in its outer n / 4, where the network sees least of the surroundings, then
a linear ramp to 1; at the scene's own border it does not fall. All weights at a pixel are divided by their
sum.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from segray.tile_overlap import Grid, Window

Floats = NDArray[np.float32]
Read = Callable[[int], tuple[NDArray[np.uint16], NDArray[np.bool_] | None] | None]
"""Index of a window -> probabilities (classes, height, width) uint16, 65535 is 1, and the mask of pixels
without data (None: all have some). None where there is no result."""
LEAST = 1e-5
"""Instead of 0, so that it counts where a neighbour has no result."""


def ramp(start: int, stop: int, size: int, overlap: int) -> Floats:
    """Return a window's weights, (stop - start,) float, not normalised, along an axis of `size` pixels."""
    place = np.arange(start, stop)
    inside = np.full(stop - start, np.inf)
    if start > 0:
        inside = np.minimum(inside, place - start + 0.5)
    if stop < size:
        inside = np.minimum(inside, stop - place - 0.5)
    if not overlap:
        return np.ones(stop - start, np.float32)
    return np.clip((inside - overlap / 4) / (overlap / 2), LEAST, 1).astype(np.float32)


def blended(grid: Grid, read: Read, classes: int, side: int) -> Iterator[tuple[Window, NDArray[np.uint16]]]:
    """Yield blocks of `side` pixels, row by row, and their probabilities (classes, h, w) uint16, 65535 is 1.

    Pixels without any result, and those without data, are 0 in all classes.
    """
    for row in range(0, grid.height, side):
        for col in range(0, grid.width, side):
            block = Window(row, min(row + side, grid.height), col, min(col + side, grid.width))
            yield block, _block(grid, read, classes, block)


def _block(grid: Grid, read: Read, classes: int, block: Window) -> NDArray[np.uint16]:
    total = np.zeros((classes, block.height, block.width), np.float32)
    weights = np.zeros((block.height, block.width), np.float32)
    for number in touching(grid, block):
        window = grid.window(number)
        rows = slice(max(block.row_start, window.row_start), min(block.row_stop, window.row_stop))
        cols = slice(max(block.col_start, window.col_start), min(block.col_stop, window.col_stop))
        there = _moved(rows, window.row_start), _moved(cols, window.col_start)
        here = _moved(rows, block.row_start), _moved(cols, block.col_start)
        down = ramp(window.row_start, window.row_stop, grid.height, grid.overlap)[there[0]]
        across = ramp(window.col_start, window.col_stop, grid.width, grid.overlap)[there[1]]
        if (answer := read(number)) is None:
            continue
        probabilities, nodata = answer
        weight = down[:, None] * across
        if nodata is not None:
            weight = np.where(nodata[there], np.float32(0), weight)
        weights[here] += weight
        total[:, here[0], here[1]] += weight * probabilities[:, there[0], there[1]]
    np.divide(total, weights, out=total, where=weights > 0)
    return np.rint(total).astype(np.uint16)


def touching(grid: Grid, block: Window) -> list[int]:
    """Return the indices of the windows that share a pixel with a block."""
    rows = _lines([grid.window(row * grid.cols) for row in range(grid.rows)], block, "row")
    cols = _lines([grid.window(col) for col in range(grid.cols)], block, "col")
    return [row * grid.cols + col for row in rows for col in cols]


def _lines(windows: list[Window], block: Window, axis: str) -> list[int]:
    start, stop = f"{axis}_start", f"{axis}_stop"
    return [
        number
        for number, window in enumerate(windows)
        if getattr(window, start) < getattr(block, stop) and getattr(block, start) < getattr(window, stop)
    ]


def _moved(part: slice, by: int) -> slice:
    return slice(part.start - by, part.stop - by)
