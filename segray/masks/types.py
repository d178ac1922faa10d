"""Types of masks and boxes in COCO files."""

from collections.abc import Sequence
from typing import TypedDict

Box = Sequence[float]
"""COCO's box: x, y, width, height in pixels."""


class Rle(TypedDict):
    """COCO's compressed run-length encoding of a whole image; `size` is height, width."""

    size: Sequence[int]
    counts: str | bytes
