"""Bilinear interpolation of a mask on a coarse grid, thresholded, only inside a window of the result."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5
ROUNDING = np.float32(1e-6)
"""Above the error of a float32 sum of two products of numbers in 0..1."""

Crop = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an interpolation."""

    cells: int
    """Length of the source."""
    covered: float
    """Cells that the target takes up, from the first."""
    pixels: int
    """Length of the target."""

    def neighbours(self, window: slice) -> tuple[Any, Any, Any, Any]:
        """Return the two source cells of each target pixel of the window and their weights."""
        half = np.float32(0.5)
        scale = np.float32(self.covered) / np.float32(self.pixels)
        centre = scale * (np.arange(window.start, window.stop).astype(np.float32) + half) - half
        centre = np.maximum(centre, np.float32(0))
        first = np.minimum(centre.astype(np.int64), self.cells - 1)
        weight = np.clip(centre - first.astype(np.float32), np.float32(0), np.float32(1))
        return first, np.minimum(first + 1, self.cells - 1), np.float32(1) - weight, weight

    def reached(self, there: NDArray[np.int64]) -> slice:
        """Return the pixels that have one of the cells `there`, ascending, as a neighbour: first to last.

        One more at either side, for the rounding.
        """
        step = self.pixels / self.covered
        start = math.floor((there[0] - 0.5) * step) - 1
        stop = math.ceil((there[-1] + 1.5) * step) + 1
        if there[-1] == self.cells - 1:  # clamped to the last cell, all that follow are its
            stop = self.pixels
        return slice(max(start, 0), min(stop, self.pixels))


def above_threshold(mask: NDArray[np.float32], down: Axis, across: Axis, rows: slice, cols: slice) -> Crop:
    """Return where a mask (down.cells, across.cells) exceeds 0.5 after interpolation, bool (rows, cols).

    rows, cols: the window of the interpolated mask. The arithmetic is torch's for outputs of more than 128
    rows plus columns (`upsample_generic_Nd_kernel_impl`): columns first, and a fused multiply-add for each
    pair of neighbours. The fused one is slow in numpy, so it is used only where a plain one is close to the
    threshold.
    """
    row0, row1, row_weight0, row_weight1 = down.neighbours(rows)
    col0, col1, col_weight0, col_weight1 = across.neighbours(cols)
    lines = _fused(mask[:, col0], col_weight0, mask[:, col1], col_weight1)
    value = lines[row0]
    value *= row_weight0[:, None]
    value += lines[row1] * row_weight1[:, None]
    full: Crop = value > THRESHOLD + ROUNDING
    row, col = np.divmod(np.flatnonzero(full != (value > THRESHOLD - ROUNDING)), full.shape[1])
    near = _fused(lines[row0[row], col], row_weight0[row], lines[row1[row], col], row_weight1[row])
    full[row, col] = near > THRESHOLD
    return full


def _fused(a: Any, weight_a: Any, b: Any, weight_b: Any) -> NDArray[np.float32]:
    summed: NDArray[np.float32] = (a.astype(np.float64) * weight_a + b * weight_b).astype(np.float32)
    return summed
