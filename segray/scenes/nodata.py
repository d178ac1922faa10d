"""Nodata mask of a window as compact text; most windows need none."""

import base64
import zlib

import numpy as np
from numpy.typing import NDArray


def packed_nodata(valid: NDArray[np.bool_]) -> str:
    """Pack a mask of valid pixels, bool (height, width): deflated bits in row-major order, in base64."""
    return base64.b64encode(zlib.compress(np.packbits(~valid).tobytes(), 1)).decode()


def nodata_mask(packed: str | bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Unpack the nodata mask, bool (height, width): True where the window has no data."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)
