"""Blending: weights that sum to one, whatever the sizes; what a missing window and missing data leave."""

import numpy as np
import pytest
from numpy.typing import NDArray

from segray.predict.blend import Read, blended, ramp
from segray.tile_overlap import Grid

SIZES = [(100, 100), (257, 190), (64, 64), (63, 200), (320, 64), (129, 130)]


def crops(truth: NDArray[np.uint16], grid: Grid, without: tuple[int, ...] = ()) -> Read:
    """Windows that hold what `truth` (classes, h, w) holds there."""

    def read(number: int) -> tuple[NDArray[np.uint16], None] | None:
        window = grid.window(number)
        rows, cols = slice(window.row_start, window.row_stop), slice(window.col_start, window.col_stop)
        return None if number in without else (truth[:, rows, cols], None)

    return read


def whole(grid: Grid, read: Read, classes: int, side: int = 50) -> NDArray[np.uint16]:
    found = np.full((classes, grid.height, grid.width), 7, np.uint16)
    seen = np.zeros((grid.height, grid.width), int)
    for block, values in blended(grid, read, classes, side):
        rows, cols = slice(block.row_start, block.row_stop), slice(block.col_start, block.col_stop)
        found[:, rows, cols] = values
        seen[rows, cols] += 1
    assert (seen == 1).all()
    return found


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 16, 40])
def test_windows_of_one_map_give_that_map(height: int, width: int, overlap: int) -> None:
    truth = np.random.default_rng(0).integers(0, 65_536, (2, height, width), np.uint16)
    grid = Grid(height, width, 64, overlap)
    assert np.array_equal(whole(grid, crops(truth, grid), 2), truth)


@pytest.mark.parametrize(("start", "stop", "size"), [(0, 64, 200), (48, 112, 200), (136, 200, 200)])
def test_a_ramp_falls_inside_a_scene_alone(start: int, stop: int, size: int) -> None:
    """0 in the outer quarter of the overlap, straight through 1/2 in its middle."""
    weights = ramp(start, stop, size, 16)
    falling = [0, 0, 0, 0, *(np.arange(8) + 0.5) / 8, 1, 1, 1, 1]
    if start == 0:
        assert (weights[:48] == 1).all()
    else:
        assert np.allclose(weights[:16], falling, atol=1e-4)
    if stop == size:
        assert (weights[-48:] == 1).all()
    else:
        assert np.allclose(weights[:15:-1][:16], falling, atol=1e-4)


def test_two_opinions_change_slowly_over_the_overlap() -> None:
    grid = Grid(64, 112, 64, 16)
    answers = [np.full((1, 64, 64), value, np.uint16) for value in (40, 200)]
    found = whole(grid, lambda number: (answers[number], None), 1)[0]
    assert (found[:, :52] == 40).all()
    assert (found[:, 60:] == 200).all()
    assert (np.diff(found[0, 51:61].astype(int)) > 0).all()
    assert (found == found[0]).all()


def test_a_missing_window_leaves_what_its_neighbours_see() -> None:
    truth = np.random.default_rng(1).integers(1, 256, (2, 64, 200), np.uint16)
    grid = Grid(64, 200, 64, 16)
    assert len(grid) == 4
    found = whole(grid, crops(truth, grid, without=(1,)), 2)
    window = grid.window(1)
    alone = slice(64, grid.window(2).col_start)
    assert (found[:, :, alone] == 0).all()
    others = np.r_[0:64, grid.window(2).col_start : 200]
    assert window.col_start < 64 < window.col_stop
    assert np.array_equal(found[:, :, others], truth[:, :, others])


def test_pixels_without_data_have_no_class() -> None:
    truth = np.full((2, 100, 100), 90, np.uint16)
    grid = Grid(100, 100, 64, 16)
    hole = np.zeros((100, 100), bool)
    hole[30:70, 30:90] = True

    def read(number: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        window = grid.window(number)
        rows, cols = slice(window.row_start, window.row_stop), slice(window.col_start, window.col_stop)
        return truth[:, rows, cols], hole[rows, cols]

    assert np.array_equal(whole(grid, read, 2), np.where(hole, 0, truth))
