"""The grid's promises, counted pixel by pixel."""

import numpy as np
import pytest

from segray.tile_overlap import Grid

SIZES = [(1, 1), (30, 7), (64, 64), (65, 100), (200, 90), (128, 127)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, 0), (40, 39), (33, 7)])
def test_cores_are_a_partition_inside_their_windows(height: int, width: int, tile: int, overlap: int) -> None:
    grid = Grid(height, width, tile, overlap)
    seen = np.zeros((height, width), int)
    for index, window in enumerate(grid):
        core = grid.core(index)
        seen[core.row_start : core.row_stop, core.col_start : core.col_stop] += 1
        assert window.row_start <= core.row_start < core.row_stop <= window.row_stop
        assert window.col_start <= core.col_start < core.col_stop <= window.col_stop
        assert (window.height, window.width) == (min(tile, height), min(tile, width))
    assert (seen == 1).all()
    assert len(list(grid)) == len(grid)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_margins_are_half_the_overlap_except_at_the_border(height: int, width: int) -> None:
    grid = Grid(height, width, 40, 12)
    for index, window in enumerate(grid):
        core = grid.core(index)
        for near, far in ((core.row_start, window.row_start), (core.col_start, window.col_start)):
            assert near == far == 0 or near - far >= 6
        assert core.row_stop == window.row_stop == height or window.row_stop - core.row_stop >= 6
        assert core.col_stop == window.col_stop == width or window.col_stop - core.col_stop >= 6


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap 64"):
        Grid(100, 100, 64, 64)
