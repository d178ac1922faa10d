"""Spans against pycocotools and against pixels."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.masks.spans import area, bounds, counts_of, crop, encoded, moved, spans_of, union
from segray.tile_overlap import Window


def random_masks(seed: int) -> list[NDArray[np.uint8]]:
    """Empty, full, noise, and rectangles over the borders."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 70, 2)
    masks = [np.zeros((height, width)), np.ones((height, width)), random.random((height, width)) > 0.5]
    for _ in range(5):
        mask = np.zeros((height, width))
        row, col = random.integers(0, height), random.integers(0, width)
        mask[row : row + random.integers(1, 40), col : col + random.integers(1, 40)] = 1
        masks.append(mask)
    return [np.asfortranarray(mask.astype(np.uint8)) for mask in masks]


@pytest.mark.parametrize("seed", range(20))
def test_there_and_back(seed: int) -> None:
    masks = random_masks(seed)
    height, width = masks[0].shape
    strings = [each["counts"].decode() for each in map(coco.encode, masks)]
    spans = [spans_of(counts, height) for counts in counts_of(strings)]
    assert encoded(spans, height, width) == strings
    whole = Window(0, height, 0, width)
    for mask, each in zip(masks, spans, strict=True):
        assert np.array_equal(crop(each, whole), mask.astype(bool))
        assert area(each) == mask.sum()
        if len(each):
            box = bounds(each)
            assert coco.toBbox(coco.encode(mask)).tolist() == [
                box.col_start, box.row_start, box.width, box.height
            ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_union_and_windows(seed: int) -> None:
    masks = random_masks(seed)
    height, width = masks[0].shape
    spans = [
        spans_of(counts, height) for counts in counts_of([coco.encode(m)["counts"].decode() for m in masks])
    ]
    some = [spans[2], *spans[4:]]
    wanted = np.any([masks[2], *masks[4:]], axis=0)
    joined = union(some)
    assert np.array_equal(crop(joined, Window(0, height, 0, width)), wanted)
    assert encoded([joined], height, width) == [
        coco.encode(np.asfortranarray(wanted.astype(np.uint8)))["counts"].decode()
    ]
    window = Window(height // 3, height, width // 4, width // 2 + 1)
    assert np.array_equal(
        crop(joined, window), wanted[window.row_start :, window.col_start : window.col_stop]
    )
    further = crop(moved(joined, 3, 5), Window(3, 3 + height, 5, 5 + width))
    assert np.array_equal(further, wanted)


def test_counts_beyond_32_bits_of_a_string() -> None:
    big = spans_of(np.array([3_000_000_000, 7, 5]), 50_000)
    assert encoded([big], 50_000, 60_001) == encoded([np.array([[60_000, 0, 7]])], 50_000, 60_001)
    (counts,) = counts_of(encoded([big], 50_000, 60_001))
    assert counts[:2].tolist() == [3_000_000_000, 7]
