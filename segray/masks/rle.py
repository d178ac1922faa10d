"""Encode masks as COCO run lengths of the whole image, without allocating a mask of the whole image.

A RoI mask is resized to its box, clipped at the image's border and thresholded at 0.5, and its runs, in
column order, are offset to their position in the image. Boxes and arithmetic are those of torchvision's
`paste_masks_in_image`, the string is pycocotools'; results are identical to the two one after the other.
A mask on a coarse grid over the image is brought to the image's pixels only where it may be above the
threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import expand_boxes

from segray.errors import ItemError
from segray.masks.coco_segmentation import MOST_PIXELS
from segray.masks.interpolation import ROUNDING, THRESHOLD, Axis, Crop, above_threshold

MaskFrame = Literal["roi", "image", "grid"]
"""What masks are relative to: their boxes; the image, pixel by pixel; the image, on a coarse grid."""
SMALL = 128  # up to this many rows plus columns torch resizes with a kernel that rounds differently


@dataclass(frozen=True, slots=True)
class EncodedMasks:
    """Run lengths of the n masks of one image; an empty mask has area 0."""

    counts: list[str]
    """COCO compressed run lengths of the whole image."""
    area: NDArray[np.int64]
    """(n,): mask pixels."""
    bbox: NDArray[np.float32]
    """(n, 4): x, y, width, height in pixels of the image, half-open; pycocotools' `toBbox`."""
    truncated: NDArray[np.bool_]
    """(n,): the mask touches the image's border."""


def encode_masks(
    frame: MaskFrame,
    masks: NDArray[Any],
    boxes: NDArray[np.float32] | None,
    size: tuple[int, int],
    extent: tuple[float, float] | None = None,
) -> EncodedMasks:
    """Encode masks of any frame, see the three functions below.

    boxes: of `roi` masks alone; size: height and width of the image; extent: of `grid` masks alone. Raises
    ItemError (`too_large`) for an image with too many pixels for run lengths.
    """
    if frame == "image":
        return encode_image_masks(masks, *size)
    if frame == "grid":
        return encode_grid_masks(masks, *size, extent)
    assert boxes is not None
    return encode_roi_masks(masks, boxes, *size)


def encode_roi_masks(
    masks: NDArray[np.float32], boxes: NDArray[np.float32], height: int, width: int
) -> EncodedMasks:
    """Encode RoI masks, which are relative to their boxes.

    masks: float32 (n, m, m) probabilities; boxes: float32 (n, 4) as x0, y0, x1, y1 in pixels of the image,
    finite, x0 <= x1 and y0 <= y1, possibly across the border or outside; height, width: of the image. Raises
    ItemError (`too_large`) for an image with too many pixels for run lengths.
    """
    check_pixels(height, width)
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    expanded = expand_boxes(torch.from_numpy(boxes), padded.shape[2] / masks.shape[2])
    pixels = expanded.to(torch.int64).tolist()  # toward zero, as torchvision does
    edges = [_box_edges(mask, box, height, width) for mask, box in zip(padded, pixels, strict=True)]
    return _encoded([_counts(each, height * width) for each in edges], height, width)


def encode_image_masks(masks: NDArray[Any], height: int, width: int) -> EncodedMasks:
    """Encode masks of the whole image: (n, height, width), bool, or numbers thresholded at 0.5.

    Raises ItemError (`too_large`) for an image with too many pixels for run lengths.
    """
    check_pixels(height, width)
    full = [_binary(mask) for mask in masks]
    objects = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in full]
    return _measured(objects, [int(np.count_nonzero(mask)) for mask in full], height, width)


def encode_runs(runs: Sequence[NDArray[np.int64]], height: int, width: int) -> EncodedMasks:
    """Encode masks given by their runs, see `runs_of`."""
    return _encoded([_counts(each, height * width) for each in runs], height, width)


def runs_of(crop: Crop, row_start: int, col_start: int, height: int) -> NDArray[np.int64]:
    """Return the runs of a mask that a crop of the image holds, for `encode_runs`.

    crop: bool (rows, cols), at this offset in an image of `height` rows. They are int64: start, stop, start,
    …, in column-major order.
    """
    return _crop_edges(crop, row_start, col_start, height)


def encode_grid_masks(
    masks: NDArray[Any], height: int, width: int, extent: tuple[float, float] | None = None
) -> EncodedMasks:
    """Encode masks on a coarse grid that covers the image, one at a time.

    masks: (n, rows, cols) numbers, thresholded at 0.5 after bilinear interpolation; height, width: of the
    image; extent: rows and columns of the grid, from its upper left corner, that the image takes up, in
    cells, also fractions, at most (rows, cols); None: all of them. A pixel (y, x) lies at row
    (y + 0.5) * extent[0] / height - 0.5 of the grid, column likewise, clamped to the grid: as in torch's
    `interpolate` with align_corners=False. Raises ItemError (`too_large`) for an image with too many pixels
    for run lengths.
    """
    check_pixels(height, width)
    rows, cols = extent or masks.shape[1:]
    axes = Axis(masks.shape[1], rows, height), Axis(masks.shape[2], cols, width)
    edges = [_grid_edges(np.asarray(mask, np.float32), *axes) for mask in masks]
    return _encoded([_counts(each, height * width) for each in edges], height, width)


def check_pixels(height: int, width: int) -> None:
    """Raise ItemError (`too_large`) where run lengths of the image would overflow."""
    if height * width > MOST_PIXELS:
        raise ItemError(
            "too_large", f"{width} x {height} pixels: COCO run lengths are limited to {MOST_PIXELS:,} pixels"
        )


def _binary(mask: NDArray[Any]) -> NDArray[np.bool_]:
    binary: NDArray[np.bool_] = mask if mask.dtype == bool else mask > THRESHOLD
    return binary


def _encoded(counts: Sequence[NDArray[np.int64]], height: int, width: int) -> EncodedMasks:
    uncompressed = [{"size": [height, width], "counts": each} for each in counts]
    objects = coco.frPyObjects(uncompressed, height, width) if counts else []
    return _measured(objects, [int(each[1::2].sum()) for each in counts], height, width)


def _measured(objects: list[dict[str, Any]], area: list[int], height: int, width: int) -> EncodedMasks:
    """Measure boxes; `area` is an argument because pycocotools' own fails on more than 255 masks."""
    bbox = coco.toBbox(objects).reshape(-1, 4)
    inside = (bbox[:, :2] > 0).all(1) & (bbox[:, :2] + bbox[:, 2:] < (width, height)).all(1)
    areas = np.array(area, np.int64)
    counts = [each["counts"].decode("ascii") for each in objects]
    return EncodedMasks(counts, areas, bbox.astype(np.float32), ~inside & (areas > 0))


def _box_edges(mask: NDArray[np.float32], box: Sequence[int], height: int, width: int) -> NDArray[np.int64]:
    """Return start, stop, start, … of the mask's runs in the image's pixels, in column-major order.

    mask: (m, m); box: first column, first row, last column, last row of the resized mask, inclusive.
    """
    col_first, row_first, col_last, row_last = box
    cols = slice(max(-col_first, 0), min(col_last + 1, width) - col_first)
    rows = slice(max(-row_first, 0), min(row_last + 1, height) - row_first)
    if cols.stop <= cols.start or rows.stop <= rows.start:
        return np.zeros(0, np.int64)
    size = row_last - row_first + 1, col_last - col_first + 1
    crop = (_small_crop if sum(size) <= SMALL else _large_crop)(mask, size, rows, cols)
    return _crop_edges(crop, row_first + rows.start, col_first + cols.start, height)


def _small_crop(mask: NDArray[np.float32], size: tuple[int, int], rows: slice, cols: slice) -> Crop:
    resized = interpolate(torch.from_numpy(mask)[None, None], size=size, mode="bilinear", align_corners=False)
    full: Crop = resized[0, 0].numpy()[rows, cols] > THRESHOLD
    return full


def _large_crop(mask: NDArray[np.float32], size: tuple[int, int], rows: slice, cols: slice) -> Crop:
    """Return where a window of a mask (m, m), resized to `size` rows and columns, is above the threshold."""
    down, across = (Axis(len(mask), len(mask), pixels) for pixels in size)
    return above_threshold(mask, down, across, rows, cols)


def _grid_edges(mask: NDArray[np.float32], down: Axis, across: Axis) -> NDArray[np.int64]:
    """Return start, stop, start, … of the runs of a mask (rows, cols) on a grid.

    An interpolated value is at most the largest of its four cells: pixels far from all cells above the
    threshold are not computed.
    """
    above = mask > THRESHOLD - ROUNDING
    by_row, by_col = above.any(axis=1), above.any(axis=0)
    if not by_row.any():
        return np.zeros(0, np.int64)
    rows, cols = down.reached(np.flatnonzero(by_row)), across.reached(np.flatnonzero(by_col))
    if rows.stop <= rows.start or cols.stop <= cols.start:  # in the part that is not the image's
        return np.zeros(0, np.int64)
    crop = above_threshold(mask, down, across, rows, cols)
    return _crop_edges(crop, rows.start, cols.start, down.pixels)


def _crop_edges(crop: Crop, row_start: int, col_start: int, height: int) -> NDArray[np.int64]:
    """Return start, stop, start, … of the runs of a crop (rows, cols) at offset (row_start, col_start)."""
    rows, cols = crop.shape
    flat = np.zeros(1 + cols * (rows + 1), bool)
    flat[1:].reshape(cols, rows + 1)[:, :rows] = crop.T  # an empty row last: runs end with their column
    col, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 1)
    edges: NDArray[np.int64] = (col + col_start) * height + row + row_start
    if rows < height or not len(edges):
        return edges
    joined = edges[2::2] == edges[1:-1:2]  # a run over the full height continues into the next column
    return edges[np.r_[True, np.repeat(~joined, 2), True]]


def _counts(edges: NDArray[np.int64], pixels: int) -> NDArray[np.int64]:
    """Return uncompressed run lengths over all `pixels`: alternately empty and full, beginning with empty."""
    bounds = np.empty(len(edges) + 2, np.int64)  # faster than np.diff's prepend and append
    bounds[0], bounds[1:-1], bounds[-1] = 0, edges, pixels
    counts = bounds[1:] - bounds[:-1]
    return counts if counts[-1] or not len(edges) else counts[:-1]
