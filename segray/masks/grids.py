"""From a coarse grid of values over an image to the image's pixels, only where a mask can be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """Values of a window of the image; outside it all are at most the limit that it was made with."""

    row_start: int
    col_start: int
    values: Values
    """float32 (rows, cols)."""


class GridFrame:
    """The position of a grid of values on an image: bilinear interpolation, as two matrices."""

    def __init__(self, rows: Values, cols: Values) -> None:
        """Store the matrices, float32 (height, grid rows) and (width, grid columns), see `axis`."""
        self.rows, self.cols = _Axis(rows), _Axis(cols)
        self.height, self.width = len(rows), len(cols)

    def window(self, grid: Values, limit: float) -> Window | None:
        """Return the window of the image outside which no pixel's value is above `limit`; None: none is.

        grid: float32 (grid rows, grid columns). A pixel's value is a weighted mean of its neighbours on the
        grid, so none is above the limit where no neighbour is.
        """
        above = grid > limit
        rows, cols = self.rows.reached(above.any(axis=1)), self.cols.reached(above.any(axis=0))
        if rows is None or cols is None:
            return None
        (weights_down, lines), (weights_across, places) = self.rows.weights(rows), self.cols.weights(cols)
        values = weights_down @ grid[lines, places] @ weights_across.T
        return Window(rows.start, cols.start, np.asarray(values, np.float32))


class _Axis:
    """One side of the image: the weights of the grid's values at each of its pixels."""

    def __init__(self, matrix: Values) -> None:
        self.matrix = matrix
        used = matrix > 0
        self.first = used.argmax(1)
        self.last = matrix.shape[1] - 1 - used[:, ::-1].argmax(1)

    def reached(self, above: Any) -> slice | None:
        """Return the pixels that one of these places of the grid may reach; None for no place."""
        places = np.flatnonzero(above)
        if not len(places):
            return None
        start = np.searchsorted(self.last, places[0])
        return slice(int(start), int(np.searchsorted(self.first, places[-1], side="right")))

    def weights(self, pixels: slice) -> tuple[Values, slice]:
        """Return the weights (pixels, places) and the places of the grid that they are for."""
        places = slice(int(self.first[pixels][0]), int(self.last[pixels][-1]) + 1)
        return self.matrix[pixels, places], places


def axis(places: int, pixels: int, through: tuple[int, int] | None = None) -> Values:
    """Return the weights of bilinear interpolation along one side, float32 (pixels, places).

    Those of torch's `interpolate` without `align_corners`. through: (size, kept): first to `size` values, of
    which the first `kept` become the pixels, as SAM does whose grid lies over a padded image.
    """
    if through is None:
        return _interpolation(places, pixels)
    size, kept = through
    weights: Values = _interpolation(kept, pixels) @ _interpolation(places, size)[:kept]
    return weights


def _interpolation(source: int, target: int) -> Values:
    units = torch.eye(source)[None]
    weights: Values = interpolate(units, size=target, mode="linear", align_corners=False)[0].T.numpy()
    return np.ascontiguousarray(weights)
