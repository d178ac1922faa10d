"""Matching against torchvision's IoU and a plain loop; windows in scenes that are known."""

from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from segray.selection.disagreement import (
    SAME,
    disagreement,
    ious,
    matched,
    mirrored,
    windows_disagreement,
)
from segray.tile_overlap import Grid


def boxes_of(rng: np.random.Generator, count: int) -> Any:
    low = rng.uniform(0, 60, (count, 2))
    return np.concatenate([low, low + rng.uniform(2, 30, (count, 2))], axis=1).astype(np.float32)


def test_ious_are_torchvisions() -> None:
    rng = np.random.default_rng(1)
    one, other = boxes_of(rng, 30), boxes_of(rng, 20)
    theirs = box_iou(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    np.testing.assert_allclose(ious(one, other), theirs, atol=1e-6)
    assert ious(np.zeros((1, 4), np.float32), one).max() == 0


def test_matching_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        one = boxes_of(rng, 12)
        other = np.concatenate([one[:7] + rng.normal(0, 2, (7, 4)), boxes_of(rng, 4)]).astype(np.float32)
        kinds = rng.integers(1, 3, 12).astype(np.int32), rng.integers(1, 3, 11).astype(np.int32)
        pairs = [
            (-value, row, col)
            for (row, col), value in np.ndenumerate(ious(one, other))
            if value >= SAME and kinds[0][row] == kinds[1][col]
        ]
        left, right = set[int](), set[int]()
        for _, row, col in sorted(pairs):
            if row not in left and col not in right:
                left.add(row)
                right.add(col)
        found = matched(one, other, *kinds)
        assert [set(np.flatnonzero(each).tolist()) for each in found] == [left, right]
        assert disagreement(one, other, *kinds) == 1 - (len(left) + len(right)) / 23


def test_disagreement_of_nothing_and_of_itself() -> None:
    one = boxes_of(np.random.default_rng(3), 9)
    none, kinds, no_kinds = np.zeros((0, 4), np.float32), np.ones(9, np.int32), np.zeros(0, np.int32)
    assert disagreement(one, one, kinds, kinds) == 0
    assert disagreement(none, none, no_kinds, no_kinds) == 0
    assert disagreement(one, none, kinds, no_kinds) == 1
    assert disagreement(one, one, kinds, kinds + 1) == 1
    np.testing.assert_array_equal(mirrored(np.array([[1, 2, 4, 9]], np.float32), 10), [[6, 2, 9, 9]])
    np.testing.assert_allclose(mirrored(mirrored(one, 100), 100), one, atol=1e-4)


GRID = Grid(100, 180, 100, 20)
"""Windows 0 to 100 and 80 to 180; they share columns 80 to 100."""


def seen(*found: tuple[int, tuple[int, int, int, int]], windows: tuple[int, ...] = (0, 1)) -> float:
    tiles = np.array([tile for tile, _ in found], np.int64)
    boxes = np.array([box for _, box in found], np.float32).reshape(-1, 4)
    return windows_disagreement(tiles, boxes, np.ones(len(tiles), np.int32), GRID, set(windows))


def test_windows_are_compared_in_what_they_share() -> None:
    both, alone = (84, 10, 94, 20), (84, 50, 94, 60)
    assert seen((0, both), (1, both)) == 0
    assert seen((0, both), (1, both), (0, alone)) == 1 / 3
    assert seen((0, alone), (1, both)) == 1
    assert np.isnan(seen((0, (10, 10, 20, 20)), (1, (120, 10, 130, 20))))  # each in one window only
    assert np.isnan(seen((0, (70, 10, 90, 20))))  # the other window sees a part of it
    assert np.isnan(seen((0, both), windows=(0,)))  # the other window was rejected
    assert seen((0, both), (1, (83, 10, 97, 21))) == 0
    assert np.isnan(windows_disagreement(np.zeros(0, np.int64), boxes_of(np.random.default_rng(0), 0),
                                         np.zeros(0, np.int32), GRID, {0, 1}))  # fmt: skip


def test_windows_below_each_other() -> None:
    grid = Grid(180, 100, 100, 20)
    box = np.array([[10, 84, 20, 94]], np.float32)
    assert windows_disagreement(np.array([1]), box, np.ones(1, np.int32), grid, {0, 1}) == 1
