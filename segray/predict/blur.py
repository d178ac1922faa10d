"""Hide regions of an image in a copy of it: of their pixels only the means of a few large cells remain.

A region is connected pixels of the chosen classes, grown by a margin. The box around it is averaged over
cells, at most `CELLS` along its longer side, the cells are blurred with a Gaussian and interpolated. That is
a Gaussian as wide as a cell, of which nothing finer can be recovered: mosaics of faces were recognised at 8
to 16 cells a face (R. McPherson et al., Defeating image obfuscation with deep learning, 2016), not at four.
"""

import io
import math

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

CELLS = 4
"""Maximum number of cells along the longer side of a region."""
LEAST = 8
"""Minimum side of a cell, pixels."""
_GROWN = 2
"""Minimum margin of a region, pixels: classes are wrong at their borders."""
_SIGMA = 0.8
"""Standard deviation of the Gaussian, in cells."""
_JPEG_SIDE, _JPEG_QUALITY = 65_500, 95
_LOSSLESS = (".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".gif")


def hidden(pixels: Pixels, hide: NDArray[np.bool_], margin: float) -> tuple[Pixels, int]:
    """Return a copy of an image (h, w, 3) RGB without the regions of `hide` (h, w), and their number.

    margin: share of a region's longer side by which it is grown, in all directions.
    """
    number, labelled, stats, _ = cv2.connectedComponentsWithStats(hide.astype(np.uint8), connectivity=8)
    copy = pixels.copy()
    for region in range(1, number):
        left, top, width, height = map(int, stats[region, :4])
        grown = max(_GROWN, math.ceil(margin * max(width, height)))
        part = np.s_[max(0, top - grown) : top + height + grown, max(0, left - grown) : left + width + grown]
        outside = (labelled[part] != region).astype(np.uint8)
        inside = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_5) <= grown
        copy[part][inside] = _smooth(pixels[part])[inside]
    return copy, number - 1


def _smooth(pixels: Pixels) -> Pixels:
    """Average an image (h, w, 3) over cells, blur those, and interpolate them to its size."""
    height, width = pixels.shape[:2]
    cell = max(LEAST, math.ceil(max(height, width) / CELLS))
    size = math.ceil(width / cell), math.ceil(height / cell)
    cells = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    cells = cv2.GaussianBlur(cells, (0, 0), _SIGMA, borderType=cv2.BORDER_REPLICATE)
    smooth: Pixels = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    return smooth


def copy_name(image_id: str, name: str, height: int, width: int) -> str:
    """Return the path of a copy inside the output; name: of the image, whose suffix decides its format."""
    is_png = name.lower().endswith(_LOSSLESS) or max(height, width) > _JPEG_SIDE
    return f"blurred/{image_id}.{'png' if is_png else 'jpg'}"


def encoded_copy(pixels: Pixels, name: str) -> bytes:
    """Encode an image (h, w, 3) RGB in the format of its name, without any metadata."""
    file = io.BytesIO()
    if name.endswith(".png"):
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return file.getvalue()
