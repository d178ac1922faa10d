"""Run lengths against torchvision's paste_masks_in_image, a threshold of 0.5 and pycocotools."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from segray.errors import ItemError
from segray.masks.rle import EncodedMasks, encode_grid_masks, encode_image_masks, encode_roi_masks

Floats = NDArray[np.float32]


def blobs(rng: np.random.Generator, n: int, size: int = 28) -> Floats:
    """Smooth masks like a network's: (n, size, size), many pixels saturated at 0 and 1."""
    coarse = torch.from_numpy(rng.normal(0.5, 0.6, (n, 1, 5, 5)).astype(np.float32))
    fine: Floats = interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)[:, 0].numpy()
    return fine


def boxes_around(rng: np.random.Generator, n: int, height: int, width: int, side: float) -> Floats:
    """Boxes of a log-uniform side up to `side`, centred in the image; many lie over its border."""
    sides = np.exp(rng.uniform(np.log(0.05), np.log(side), (n, 2)))
    centres = rng.uniform(0, (width, height), (n, 2))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)


def torchvision_full(masks: Floats, boxes: Floats, height: int, width: int) -> NDArray[np.bool_]:
    """Masks of the whole image, (n, height, width)."""
    pasted = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (height, width))
    full: NDArray[np.bool_] = (pasted[:, 0] > 0.5).numpy()
    return full


def assert_equal(found: EncodedMasks, full: NDArray[np.bool_]) -> None:
    expected: list[Any] = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in full]
    assert found.counts == [each["counts"].decode() for each in expected]
    assert found.area.tolist() == [int(coco.area(each)) for each in expected]  # it fails on more than 255
    np.testing.assert_array_equal(found.bbox, coco.toBbox(expected))
    border = full[:, 0].any(1) | full[:, -1].any(1) | full[:, :, 0].any(1) | full[:, :, -1].any(1)
    np.testing.assert_array_equal(found.truncated, border)


@pytest.mark.parametrize(
    ("n", "height", "width", "side"),
    [
        (700, 96, 128, 40),  # torch's kernel for small outputs, boxes over every border
        (250, 300, 260, 400),  # its kernel for large ones, boxes larger than the image
        (300, 17, 90, 120),  # boxes over the full height: runs go on into the next column
        (100, 1, 40, 30),
        (100, 40, 1, 30),
        (20, 900, 1100, 700),
    ],
)
def test_identical_to_paste_and_encode(n: int, height: int, width: int, side: float) -> None:
    rng = np.random.default_rng(height)
    masks, boxes = blobs(rng, n), boxes_around(rng, n, height, width, side)
    found = encode_roi_masks(masks, boxes, height, width)
    assert_equal(found, torchvision_full(masks, boxes, height, width))
    assert (found.area > 0).sum() > n / 4


@pytest.mark.parametrize("size", [2, 7, 56])
def test_any_size_of_mask(size: int) -> None:
    rng = np.random.default_rng(size)
    masks, boxes = blobs(rng, 80, size), boxes_around(rng, 80, 200, 150, 300)
    assert_equal(encode_roi_masks(masks, boxes, 200, 150), torchvision_full(masks, boxes, 200, 150))


@pytest.mark.parametrize("side", [30, 150])
def test_probabilities_at_the_threshold(side: float) -> None:
    """Masks whose every pixel lies within a few roundings of 0.5: the order of the arithmetic decides."""
    rng = np.random.default_rng(5)
    masks = (0.5 + rng.integers(-3, 4, (200, 28, 28)) * 2.0**-24).astype(np.float32)
    boxes = boxes_around(rng, 200, 120, 120, side)
    assert_equal(encode_roi_masks(masks, boxes, 120, 120), torchvision_full(masks, boxes, 120, 120))


def test_boxes_of_whole_pixels_and_without_extent() -> None:
    masks = np.ones((4, 28, 28), np.float32)
    boxes = np.array([[0, 0, 20, 10], [5, 5, 5, 5], [19.5, 9.5, 20, 10], [3, 0, 8, 10]], np.float32)
    assert_equal(encode_roi_masks(masks, boxes, 10, 20), torchvision_full(masks, boxes, 10, 20))


def test_boxes_outside_are_empty() -> None:
    """torchvision fails on most of these."""
    boxes = np.array([[25, 0, 90, 9], [-90, 0, -3, 9], [0, 30, 9, 1e6], [-1e7, -1e7, -9, -9]], np.float32)
    found = encode_roi_masks(np.ones((4, 28, 28), np.float32), boxes, 10, 20)
    assert found.area.tolist() == [0, 0, 0, 0]
    assert found.counts == ["X6"] * 4
    assert not found.truncated.any()


def test_a_box_far_larger_than_the_image_costs_nothing() -> None:
    """The box has 4e12 pixels; its mask is empty left of its middle, x = 30, and full right of it."""
    mask = np.zeros((1, 28, 28), np.float32)
    mask[:, :, 14:] = 1
    found = encode_roi_masks(mask, np.array([[-1e6 + 30, -1e6, 1e6 + 30, 1e6]], np.float32), 50, 60)
    left, top, width, height = found.bbox[0].tolist()
    assert (left + width, top, height) == (60, 0, 50)
    assert abs(left - 30) <= 1
    assert found.area[0] == width * height


def test_masks_of_the_whole_image() -> None:
    rng = np.random.default_rng(1)
    masks = rng.random((5, 30, 40), dtype=np.float32)
    masks[3], masks[4] = 0, 1
    assert_equal(encode_image_masks(masks, 30, 40), masks > 0.5)
    assert_equal(encode_image_masks(masks > 0.5, 30, 40), masks > 0.5)


def test_no_masks() -> None:
    found = encode_roi_masks(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 5, 5)
    assert found.counts == []
    assert found.bbox.shape == (0, 4)


def test_more_pixels_than_run_lengths_can_count() -> None:
    mask, box = np.ones((1, 28, 28), np.float32), np.array([[10, 10, 40, 40]], np.float32)
    largest = encode_roi_masks(mask, box, 65535, 65537)
    decoded = coco.area([{"size": [65535, 65537], "counts": largest.counts[0]}])
    assert decoded[0] == largest.area[0] > 900
    with pytest.raises(ItemError, match="65536 x 65536 pixels") as caught:
        encode_roi_masks(mask, box, 65536, 65536)
    assert caught.value.error_type == "too_large"


def grid_full(masks: Floats, height: int, width: int, extent: tuple[float, float]) -> NDArray[np.bool_]:
    """The whole grid brought to the image's scale by torch, and the part that is the image."""
    scale = (height / extent[0], width / extent[1])
    grown = interpolate(torch.from_numpy(masks)[:, None], scale_factor=scale, mode="bilinear")
    full: NDArray[np.bool_] = (grown[:, 0, :height, :width] > 0.5).numpy()
    return full


@pytest.mark.parametrize(
    ("n", "height", "width", "grid", "extent"),
    [
        (60, 200, 150, (28, 28), (28.0, 28.0)),  # the grid is the image
        (60, 171, 260, (64, 64), (42.75, 64.0)),  # below is padding, from within a cell
        (60, 300, 131, (56, 56), (50.0, 22.5)),
        (40, 61, 90, (120, 170), (119.5, 170.0)),  # the grid is finer than the image
        (10, 1, 300, (2, 40), (0.5, 40.0)),
    ],
)
def test_grid_masks_are_those_of_interpolate_and_encode(
    n: int, height: int, width: int, grid: tuple[int, int], extent: tuple[float, float]
) -> None:
    rng = np.random.default_rng(height)
    masks = blobs(rng, n, max(grid))[:, : grid[0], : grid[1]].copy()
    for number, mask in enumerate(masks):  # many small ones, at every border and in every corner
        row, col = rng.integers(-5, grid[0]), rng.integers(-5, grid[1])
        inside = np.zeros(grid, bool)
        inside[max(row, 0) : row + 9, max(col, 0) : col + 9] = True
        mask[~inside & (number % 3 > 0)] = 0
    full = grid_full(masks, height, width, extent)
    found = encode_grid_masks(masks, height, width, None if extent == grid else extent)
    assert_equal(found, full)
    assert (found.area > 0).sum() > n / 4


def test_grid_masks_take_the_memory_of_one() -> None:
    """1,000 masks of an image of 16 megapixels: as bytes of whole images they would take 16 GB."""
    masks = np.zeros((1000, 250, 250), np.float32)
    masks[:, 100:102, 50:52] = 1
    found = encode_grid_masks(masks, 4000, 4000)
    (one,) = encode_image_masks(grid_full(masks[:1], 4000, 4000, (250.0, 250.0)), 4000, 4000).counts
    assert set(found.counts) == {one}


def test_no_grid_mask() -> None:
    assert encode_grid_masks(np.zeros((0, 4, 4), np.float32), 9, 9).counts == []
    too_many = np.zeros((1, 1, 1), np.float32)
    with pytest.raises(ItemError, match="pixels"):
        encode_grid_masks(too_many, 1 << 16, 1 << 16)
