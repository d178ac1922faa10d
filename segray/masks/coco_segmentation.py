"""Convert a COCO file's segmentation to a compressed RLE of the image's size, or raise an ItemError.

Polygons, uncompressed and compressed RLE, as pycocotools' `annToRLE` takes them. Its C code does not check
run lengths, so those of a file are summed first.
"""

import math
from reprlib import repr as brief
from typing import Any

from pycocotools import mask as coco_mask

from segray.errors import ItemError
from segray.masks.types import Rle

MOST_PIXELS = 2**32 - 1
"""Largest image in pycocotools' run lengths (unsigned 32-bit)."""


def rle_of(segmentation: object, height: int, width: int) -> Rle:
    """Return the compressed RLE of a COCO segmentation, of an image of `height` x `width` pixels.

    Raises ItemError (`unsupported`) where it is invalid or does not fit the image.
    """
    if isinstance(segmentation, list):
        return _of_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ItemError("unsupported", "a segmentation must be a list of polygons, or size and counts (RLE)")
    if list(segmentation.get("size") or ()) != [height, width]:
        raise ItemError(
            "unsupported", f"RLE of size {segmentation.get('size')}, but the image has [{height}, {width}]"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return _of_lengths(counts, height, width)
    text = counts.encode() if isinstance(counts, str) else counts
    if not isinstance(text, bytes) or sum(run_lengths(text)) != height * width:
        raise ItemError("unsupported", f"run lengths do not sum to {height} x {width} pixels")
    return {"size": [height, width], "counts": text}


def run_lengths(counts: bytes) -> list[int]:
    """Decode COCO's compressed string into run lengths (pycocotools, maskApi.c, rleFrString).

    Numbers are signed, base 32, least significant digit first; from the fourth on each is the difference to
    the number two before it. Raises ItemError (`unsupported`) for an invalid string.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in counts:
        digit = letter - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ItemError("unsupported", "invalid character in compressed run lengths")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        value += lengths[-2] if len(lengths) > 2 else 0
        if value < 0:
            raise ItemError("unsupported", "negative run length")
        lengths.append(value)
        value = shift = 0
    if shift:
        raise ItemError("unsupported", "compressed run lengths end early")
    return lengths


def _of_lengths(counts: list[Any], height: int, width: int) -> Rle:
    if not all(type(each) in (int, float) and each >= 0 for each in counts) or sum(counts) != height * width:
        raise ItemError("unsupported", f"run lengths do not sum to {height} x {width} pixels")
    whole = [int(each) for each in counts]  # some tools write 5.0
    if whole != counts:
        raise ItemError("unsupported", "run lengths must be integers")
    rle: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": whole}, height, width)
    return rle


def _of_polygons(polygons: list[Any], height: int, width: int) -> Rle:
    if not polygons:
        raise ItemError("unsupported", "the segmentation has no polygon")
    reach = 2 * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ItemError("unsupported", "a polygon must be x, y, x, y, … with at least three points")
        for value in polygon:
            if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > reach:
                raise ItemError(
                    "unsupported", f"polygon coordinate {brief(value)} in an image of {width} x {height}"
                )
    rle: Rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return rle
