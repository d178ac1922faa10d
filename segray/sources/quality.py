"""Brightness and sharpness of decoded images: what changes first when a camera turns dark or dirty.

Both are measured on at most 512 x 512 pixels, because measuring all pixels of a large image would cost a
tenth of decoding it: an axis of up to 512 pixels is used whole, of a longer one eight evenly spaced runs
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
"""Maximum number of pixels per axis that are measured."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of one image or tile; None where it cannot be measured."""

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
    """Reshape (height, width, ...) to (patch rows, rows in each, patch columns, columns in each, ...)."""
    (row_starts, rows), (col_starts, cols) = (_runs(length) for length in image.shape[:2])
    taken = np.empty((len(row_starts), rows, len(col_starts), cols, *image.shape[2:]), image.dtype)
    for row, row_start in enumerate(row_starts):
        for col, col_start in enumerate(col_starts):
            taken[row, :, col] = image[row_start : row_start + rows, col_start : col_start + cols]
    return taken


def _runs(length: int) -> tuple[list[int], int]:
    """Return (start of each run of an axis, length of a run)."""
    if length <= MOST:
        return [0], length
    return [(length - RUN) * run // (RUNS - 1) for run in range(RUNS)], RUN


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Convert RGB (..., 3) to grey (...), 0..255."""
    luma = rgb[..., 0].astype(np.uint32)
    luma *= 19595
    for band, weight in ((1, 38470), (2, 7471)):
        luma += rgb[..., band] * np.uint32(weight)
    luma += 0x8000
    luma >>= 16
    return luma.astype(np.int16)


def _laplacian(grey: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the Laplacian of each patch without its border, -1020..1020; empty if a side is below 3."""
    response = grey[:, :-2, :, 1:-1] + grey[:, 2:, :, 1:-1]
    response += grey[:, 1:-1, :, :-2]
    response += grey[:, 1:-1, :, 2:]
    response -= 4 * grey[:, 1:-1, :, 1:-1]
    return response


def _neighbours(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask of pixels whose kernel lies on data alone."""
    across = valid[:, 1:-1, :, :-2] & valid[:, 1:-1, :, 1:-1] & valid[:, 1:-1, :, 2:]
    return across & valid[:, :-2, :, 1:-1] & valid[:, 2:, :, 1:-1]


def _variance(values: NDArray[np.int16]) -> float:
    """Return the variance of int16 numbers below 2**15 by exact sums; np.var would copy to float64 twice."""
    squares = np.multiply(values, values, dtype=np.int32)
    number, total = values.size, int(values.sum(dtype=np.int64))
    return (int(squares.sum(dtype=np.int64)) - total * total / number) / number
