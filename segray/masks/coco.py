"""What COCO files hold for a mask -> compressed run lengths that fit the image, or an ItemError.

Polygons, uncompressed and compressed run lengths, as pycocotools' `annToRLE` takes them. Its C code trusts
run lengths, so those of a file are added up first.
"""

import math
from reprlib import repr as brief
from typing import Any

from pycocotools import mask as coco_mask

from segray.errors import ItemError
from segray.masks.types import Rle

MOST_PIXELS = 2**32 - 1
"""Where the run lengths of pycocotools end, which are unsigned 32-bit integers."""


def rle_of(segmentation: object, height: int, width: int) -> Rle:
    """Run lengths of the whole image. Raises ItemError `unsupported` that says what is wrong with it."""
    if isinstance(segmentation, list):
        return _of_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ItemError("unsupported", "a segmentation is a list of polygons, or size and counts")
    if list(segmentation.get("size") or ()) != [height, width]:
        raise ItemError(
            "unsupported", f"run lengths of size {segmentation.get('size')}, of an image [{height}, {width}]"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return _of_lengths(counts, height, width)
    text = counts.encode() if isinstance(counts, str) else counts
    if not isinstance(text, bytes) or sum(run_lengths(text)) != height * width:
        raise ItemError("unsupported", f"run lengths do not add up to {height} x {width} pixels")
    return {"size": [height, width], "counts": text}


def run_lengths(counts: bytes) -> list[int]:
    """The lengths in COCO's compressed string: signed base 32 from the lowest digit up, from the third on
    less the one two before (pycocotools, maskApi.c, rleFrString). Raises ItemError `unsupported`.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in counts:
        digit = letter - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ItemError("unsupported", "run lengths hold what is no run length")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        value += lengths[-2] if len(lengths) > 2 else 0
        if value < 0:
            raise ItemError("unsupported", "run lengths hold a negative one")
        lengths.append(value)
        value = shift = 0
    if shift:
        raise ItemError("unsupported", "run lengths end early")
    return lengths


def _of_lengths(counts: list[Any], height: int, width: int) -> Rle:
    if not all(type(each) in (int, float) and each >= 0 for each in counts) or sum(counts) != height * width:
        raise ItemError("unsupported", f"run lengths do not add up to {height} x {width} pixels")
    whole = [int(each) for each in counts]  # some write 5.0
    if whole != counts:
        raise ItemError("unsupported", "run lengths hold a fraction")
    rle: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": whole}, height, width)
    return rle


def _of_polygons(polygons: list[Any], height: int, width: int) -> Rle:
    if not polygons:
        raise ItemError("unsupported", "a segmentation without a polygon")
    reach = 2 * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ItemError("unsupported", "a polygon is x, y, x, y, … of three points at least")
        for value in polygon:
            if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > reach:
                raise ItemError(
                    "unsupported", f"a polygon of an image {width} x {height} holds {brief(value)}"
                )
    rle: Rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return rle
