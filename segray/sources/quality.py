"""Brightness and sharpness of decoded images: what a camera that turns dark or dirty changes first.

Both are measured on at most 512 x 512 pixels, for the cost of a look at all pixels of a large image would be
a tenth of decoding it: an axis of up to 512 pixels is taken whole, of a longer one eight evenly spaced runs
of 64 pixels, so that a large image is sampled in 64 patches of 64 x 64, at full resolution. The patches
depend on height and width alone: the same image always gives the same numbers.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

RUNS, RUN = 8, 64
MOST = RUNS * RUN
"""Pixels along an axis that are looked at."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one image or tile; None where it cannot be known."""

    brightness: float | None
    """Mean grey, 0..255."""
    sharpness: float | None
    """Variance of the Laplacian of the grey values; 0 for a flat image."""


def measure(pixels: NDArray[np.uint8], nodata: NDArray[np.bool_] | None = None) -> Quality:
    """Measure an image of (height, width, 3) uint8 RGB, leaving out pixels where `nodata` (height, width).

    Grey is Pillow's `convert("L")`: ITU-R BT.601 luma in 16-bit fixed point. Sharpness is `LAPV` of S. Pertuz
    et al., Analysis of focus measure operators for shape-from-focus (2013), after J. L. Pech-Pacheco et al.,
    Diatom autofocusing in brightfield microscopy (2000): the variance of the response to the kernel
    [0 1 0; 1 -4 1; 0 1 0], where the kernel lies within its patch and on data alone.
    """
    grey = _grey(_patches(pixels))
    response = _laplacian(grey)
    if nodata is not None:
        valid = ~_patches(nodata)
        grey, response = grey[valid], response[_neighbours(valid)]
    brightness = float(grey.mean(dtype=np.float64)) if grey.size else None
    return Quality(brightness, _variance(response.reshape(-1)) if response.size else None)


def _patches(image: NDArray[T]) -> NDArray[T]:
    """(height, width, ...) -> (patch rows, rows in each, patch columns, columns in each, ...)."""
    (row_starts, rows), (col_starts, cols) = (_runs(length) for length in image.shape[:2])
    taken = np.empty((len(row_starts), rows, len(col_starts), cols, *image.shape[2:]), image.dtype)
    for row, row_start in enumerate(row_starts):
        for col, col_start in enumerate(col_starts):
            taken[row, :, col] = image[row_start : row_start + rows, col_start : col_start + cols]
    return taken


def _runs(length: int) -> tuple[list[int], int]:
    """(Where the runs of an axis start, positions in each)."""
    if length <= MOST:
        return [0], length
    return [(length - RUN) * run // (RUNS - 1) for run in range(RUNS)], RUN


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(..., 3) -> (...), 0..255."""
    luma = rgb[..., 0].astype(np.uint32)
    luma *= 19595
    for band, weight in ((1, 38470), (2, 7471)):
        luma += rgb[..., band] * np.uint32(weight)
    luma += 0x8000
    luma >>= 16
    return luma.astype(np.int16)


def _laplacian(grey: NDArray[np.int16]) -> NDArray[np.int16]:
    """Of each patch without its border, -1020..1020; empty where a side is shorter than 3."""
    response = grey[:, :-2, :, 1:-1] + grey[:, 2:, :, 1:-1]
    response += grey[:, 1:-1, :, :-2]
    response += grey[:, 1:-1, :, 2:]
    response -= 4 * grey[:, 1:-1, :, 1:-1]
    return response


def _neighbours(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where the kernel lies on data alone."""
    across = valid[:, 1:-1, :, :-2] & valid[:, 1:-1, :, 1:-1] & valid[:, 1:-1, :, 2:]
    return across & valid[:, :-2, :, 1:-1] & valid[:, 2:, :, 1:-1]


def _variance(values: NDArray[np.int16]) -> float:
    """Of int16 numbers below 2**15 by exact sums; np.var would make two copies in float64."""
    squares = np.multiply(values, values, dtype=np.int32)
    number, total = values.size, int(values.sum(dtype=np.int64))
    return (int(squares.sum(dtype=np.int64)) - total * total / number) / number
