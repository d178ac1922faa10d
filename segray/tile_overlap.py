"""Tiling: from the size of a scene to the overlapping windows it is processed in; pure arithmetic.

All windows of a scene have one size (a smaller scene is one window), so the model sees all of it at one
scale: they begin every `tile - overlap` pixels from the scene's first pixel, and the last one of a row is
moved back until it ends with the scene. The grid depends on the scene's size alone, not on which part is
processed.

    window   pixels that the model sees
    core     the window's own part: cores are a partition of the scene, cut in the middle of each overlap
    margin   window minus core: what it sees of its neighbours' cores
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

TILE, OVERLAP = 1024, 128


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open pixel window in a scene, rows down and columns right."""

    row_start: int
    row_stop: int
    col_start: int
    col_stop: int

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.row_stop - self.row_start

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.col_stop - self.col_start


@dataclass(frozen=True, slots=True)
class Grid:
    """The windows of a scene of `height` x `width` pixels, numbered row by row."""

    height: int
    width: int
    tile: int = TILE
    """Side of a window, in pixels."""
    overlap: int = OVERLAP
    """Minimum overlap of neighbouring windows in pixels, less than `tile`."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"overlap {self.overlap} must be at least 0 and below tile {self.tile}")

    @property
    def rows(self) -> int:
        """Number of rows of windows."""
        return len(self._starts(self.height))

    @property
    def cols(self) -> int:
        """Number of windows in a row."""
        return len(self._starts(self.width))

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[Window]:
        return (self.window(index) for index in range(len(self)))

    def window(self, index: int) -> Window:
        """Return the pixel window with this index, as the model sees it."""
        row, col = divmod(index, self.cols)
        row_start, col_start = self._starts(self.height)[row], self._starts(self.width)[col]
        row_stop, col_stop = min(row_start + self.tile, self.height), min(col_start + self.tile, self.width)
        return Window(row_start, row_stop, col_start, col_stop)

    def core(self, index: int) -> Window:
        """Return the core of the window with this index: its own part of the scene."""
        row, col = divmod(index, self.cols)
        row_cuts, col_cuts = self._cuts(self.height), self._cuts(self.width)
        return Window(row_cuts[row], row_cuts[row + 1], col_cuts[col], col_cuts[col + 1])

    def _starts(self, size: int) -> list[int]:
        stride, last = self.tile - self.overlap, max(size - self.tile, 0)
        return [*range(0, last, stride), last]

    def _cuts(self, size: int) -> list[int]:
        """Return the first pixels of all cores along one axis, and the size of the axis."""
        starts = self._starts(size)
        middles = [(start + before + self.tile) // 2 for before, start in pairwise(starts)]
        return [0, *middles, size]


def blocks(window: Window, side: int) -> Iterator[Window]:
    """Cut a window into blocks of at most `side` x `side` pixels, row by row."""
    for row in range(window.row_start, window.row_stop, side):
        for col in range(window.col_start, window.col_stop, side):
            stops = min(row + side, window.row_stop), min(col + side, window.col_stop)
            yield Window(row, stops[0], col, stops[1])
