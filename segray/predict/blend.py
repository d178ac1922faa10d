"""Blend windows of probabilities into one map, with weights that sum to one, piece by piece. No storage.

Where windows overlap, each one's weight rises from its border inwards. Along an axis of n overlapping pixels
a window has (nearly) no weight in its outer n / 4, where the network sees least of the surroundings, then
a linear ramp to 1; at the scene's own border it does not fall. All weights at a pixel are divided by their
sum.

A scene is cut at the borders of all windows and of the blocks that are written, so that all pixels of
a piece lie in one block and in the same windows. Each window is kept as its pieces, and each piece of it is
read once; most pixels lie in one window alone, which then needs no blending.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segray.palette import VOID
from segray.tile_overlap import Grid, Window

Floats = NDArray[np.float32]
Part = tuple[NDArray[np.uint16] | NDArray[np.uint8], NDArray[np.bool_] | None]
"""Of one window: probabilities (classes, h, w) uint16, 65535 is 1, and the mask of pixels without data (None:
all have some); or the labels (h, w) uint8 of a piece in this window alone."""
Read = Callable[[int, Window], Part | None]
"""Index of a window and one of its pieces -> what it holds there. None where there is no result."""
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Pixels of one block that lie in the same windows."""

    area: Window
    windows: tuple[int, ...]
    """Their indices."""


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of an axis."""

    start: int
    stop: int
    lines: tuple[int, ...]
    """Rows or columns of windows in which it lies."""


class Pieces:
    """The pieces of a scene whose map is written in blocks of `side` pixels."""

    def __init__(self, grid: Grid, side: int) -> None:
        """Cut both axes."""
        rows = [grid.window(row * grid.cols) for row in range(grid.rows)]
        cols = [grid.window(col) for col in range(grid.cols)]
        self._grid, self._side = grid, side
        self._rows = _spans([(each.row_start, each.row_stop) for each in rows], grid.height, side)
        self._cols = _spans([(each.col_start, each.col_stop) for each in cols], grid.width, side)

    def of_window(self, number: int) -> list[Piece]:
        """Return the pieces of the window with this index, row by row."""
        row, col = divmod(number, self._grid.cols)
        return self._crossing(
            [span for span in self._rows if row in span.lines],
            [span for span in self._cols if col in span.lines],
        )

    def by_block(self) -> Iterator[tuple[Window, list[Piece]]]:
        """Yield blocks, row by row, and the pieces of each."""
        for row in range(0, self._grid.height, self._side):
            rows = [span for span in self._rows if row <= span.start < row + self._side]
            for col in range(0, self._grid.width, self._side):
                cols = [span for span in self._cols if col <= span.start < col + self._side]
                yield Window(row, rows[-1].stop, col, cols[-1].stop), self._crossing(rows, cols)

    def _crossing(self, rows: Sequence[_Span], cols: Sequence[_Span]) -> list[Piece]:
        return [
            Piece(
                Window(down.start, down.stop, across.start, across.stop),
                tuple(row * self._grid.cols + col for row in down.lines for col in across.lines),
            )
            for down in rows
            for across in cols
        ]


def _spans(lines: Sequence[tuple[int, int]], size: int, side: int) -> list[_Span]:
    cuts = sorted({*range(0, size, side), size, *(cut for line in lines for cut in line)})
    return [
        _Span(start, stop, tuple(n for n, (first, last) in enumerate(lines) if first <= start < last))
        for start, stop in pairwise(cuts)
    ]


def blended(grid: Grid, read: Read, classes: int, side: int) -> Iterator[tuple[Window, NDArray[np.uint16]]]:
    """Yield blocks of `side` pixels, row by row, and their probabilities (classes, h, w) uint16, 65535 is 1.

    Pixels without any result, and those without data, are 0 in all classes.
    """
    for block, pieces in Pieces(grid, side).by_block():
        whole = np.zeros((classes, block.height, block.width), np.uint16)
        for piece in pieces:
            whole[:, *within(piece.area, block)] = _mixed(grid, read, classes, piece)
        yield block, whole


def blended_labels(
    grid: Grid, read: Read, classes: int, side: int
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield blocks of `side` pixels, row by row, and their labels (h, w) uint8: `labels_of` what `blended`
    yields.
    """
    for block, pieces in Pieces(grid, side).by_block():
        whole = np.full((block.height, block.width), VOID, np.uint8)
        for piece in pieces:
            part = read(piece.windows[0], piece.area) if len(piece.windows) == 1 else None
            labels = part[0] if part and part[0].ndim == 2 else None
            if labels is None:
                labels = labels_of(_mixed(grid, read, classes, piece))
            whole[within(piece.area, block)] = labels
        yield block, whole


def labels_of(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the most probable classes (h, w) uint8, the first of equal ones; void where all of
    (classes, h, w) are 0.

    `argmax` along the first axis takes nine times as long.
    """
    most, labels = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    for number in range(1, len(values)):
        higher = (values[number] > most).view(np.uint8)
        np.maximum(labels, np.multiply(higher, np.uint8(number), out=higher), out=labels)
        np.maximum(most, values[number], out=most)
    labels[most == 0] = VOID
    return labels


def within(area: Window, around: Window) -> tuple[slice, slice]:
    """Return the rows and columns of `around` that an area of it takes."""
    return (
        slice(area.row_start - around.row_start, area.row_stop - around.row_start),
        slice(area.col_start - around.col_start, area.col_stop - around.col_start),
    )


def _mixed(grid: Grid, read: Read, classes: int, piece: Piece) -> NDArray[np.uint16]:
    """Return the probabilities (classes, h, w) of a piece."""
    if len(piece.windows) == 1:
        return _alone(read(piece.windows[0], piece.area), classes, piece.area)
    total = np.zeros((classes, piece.area.height, piece.area.width), np.float32)
    weights = np.zeros((piece.area.height, piece.area.width), np.float32)
    for number in piece.windows:
        if (part := read(number, piece.area)) is None:
            continue
        probabilities, nodata = part
        window = grid.window(number)
        rows, cols = within(piece.area, window)
        down = ramp(window.row_start, window.row_stop, grid.height, grid.overlap)[rows]
        across = ramp(window.col_start, window.col_stop, grid.width, grid.overlap)[cols]
        weight = down[:, None] * across
        if nodata is not None:
            weight = np.where(nodata, np.float32(0), weight)
        weights += weight
        total += weight * probabilities
    np.divide(total, weights, out=total, where=weights > 0)
    return np.rint(total).astype(np.uint16)


def _alone(part: Part | None, classes: int, area: Window) -> NDArray[np.uint16]:
    if part is None:
        return np.zeros((classes, area.height, area.width), np.uint16)
    values, nodata = part
    probabilities = values.astype(np.uint16, copy=False)
    return probabilities if nodata is None else np.where(nodata, np.uint16(0), probabilities)
