"""Small tables of schema DECODED."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.schema import DECODED

Image = NDArray[np.uint8]


def picture_row(image_id: str, image: Image) -> dict[str, Any]:
    """The row of a decoded image (height, width, 3)."""
    height, width, _ = image.shape
    return {
        "image_id": image_id,
        "uri": f"file:///{image_id}.png",
        "version": "1",
        "height": height,
        "width": width,
        "frames": 1,
        "pixels": image.tobytes(),
    }


def failed_row(image_id: str, error_type: str, error: str) -> dict[str, Any]:
    """The row of an item that could not be decoded."""
    return {
        "image_id": image_id,
        "uri": "file:///x",
        "version": "1",
        "error_type": error_type,
        "error": error,
    }


def decoded(*rows: dict[str, Any]) -> pa.Table:
    """Rows as schema DECODED."""
    return pa.Table.from_pylist(list(rows), schema=DECODED)


def smooth(rng: np.random.Generator, height: int, width: int, grain: int = 12) -> Image:
    """A picture with structure: random colours every `grain` pixels, interpolated."""
    from PIL import Image as pillow

    coarse = rng.integers(0, 256, (height // grain + 2, width // grain + 2, 3), dtype=np.uint8)
    return np.array(pillow.fromarray(coarse).resize((width, height)))
