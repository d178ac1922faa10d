"""Blending: weights that sum to one, whatever the sizes; what a missing window and missing data leave."""

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from segray.palette import VOID
from segray.predict.blend import Part, Pieces, Read, blended, blended_labels, labels_of, ramp
from segray.predict.windows import PackedWindow, packed_window
from segray.tile_overlap import Grid, Window

SIZES = [(100, 100), (257, 190), (64, 64), (63, 200), (320, 64), (129, 130)]


def crops(truth: NDArray[np.uint16], grid: Grid, without: tuple[int, ...] = ()) -> Read:
    """Windows that hold what `truth` (classes, h, w) holds there."""

    def read(number: int, area: Window) -> tuple[NDArray[np.uint16], None] | None:
        assert inside(area, grid.window(number))
        rows, cols = slice(area.row_start, area.row_stop), slice(area.col_start, area.col_stop)
        return None if number in without else (truth[:, rows, cols], None)

    return read


def inside(area: Window, window: Window) -> bool:
    return (
        window.row_start <= area.row_start < area.row_stop <= window.row_stop
        and window.col_start <= area.col_start < area.col_stop <= window.col_stop
    )


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
    found = whole(grid, lambda number, area: (answers[number][:, : area.height, : area.width], None), 1)[0]
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

    def read(number: int, area: Window) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        rows, cols = slice(area.row_start, area.row_stop), slice(area.col_start, area.col_stop)
        return truth[:, rows, cols], hole[rows, cols]

    assert np.array_equal(whole(grid, read, 2), np.where(hole, 0, truth))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 16, 40])
@pytest.mark.parametrize("side", [50, 64, 1024])
def test_the_pieces_of_a_window_are_those_of_the_blocks(
    height: int, width: int, overlap: int, side: int
) -> None:
    grid = Grid(height, width, 64, overlap)
    pieces = Pieces(grid, side)
    of_blocks = [piece for block, found in pieces.by_block() for piece in found if inside(piece.area, block)]
    for number, window in enumerate(grid):
        own = pieces.of_window(number)
        assert own == sorted(
            (piece for piece in of_blocks if number in piece.windows),
            key=lambda piece: (piece.area.row_start, piece.area.col_start),
        )
        assert sum(piece.area.height * piece.area.width for piece in own) == window.height * window.width
    assert sum(piece.area.height * piece.area.width for piece in of_blocks) == height * width


@pytest.mark.parametrize("side", [50, 64, 1024])
def test_labels_of_packed_windows_are_those_of_the_blended_probabilities(side: int) -> None:
    """Windows that disagree, one that is missing, pixels without data: against one sum over whole windows."""
    grid, random = Grid(190, 257, 64, 16), np.random.default_rng(2)
    hole = np.zeros((190, 257), bool)
    hole[40:90, 30:200] = True
    found = {number: random.integers(0, 65_536, (3, 64, 64), np.uint16) for number in range(len(grid))}
    del found[6]
    total, weights = np.zeros((3, 190, 257), np.float32), np.zeros((190, 257), np.float32)
    pieces, packed = Pieces(grid, side), dict[bool, dict[int, PackedWindow]]()
    for number, values in found.items():
        window = grid.window(number)
        place = np.s_[window.row_start : window.row_stop, window.col_start : window.col_stop]
        down = ramp(window.row_start, window.row_stop, 190, 16)
        weight = down[:, None] * ramp(window.col_start, window.col_stop, 257, 16)
        weight = np.where(hole[place], np.float32(0), weight)
        weights[place] += weight
        total[:, *place] += weight * values
        for labels in (True, False):
            parts = pieces.of_window(number)
            data = packed_window(values, hole[place], window, parts, labels=labels)
            packed.setdefault(labels, {})[number] = PackedWindow(data, window, parts)
    expected = np.rint(np.divide(total, weights, out=total, where=weights > 0)).astype(np.uint16)

    def read(number: int, area: Window, labels: bool = False) -> Part | None:
        return packed[labels][number].part(area) if number in found else None

    assert np.array_equal(whole(grid, read, 3, side), expected)
    label_map = np.zeros((190, 257), np.uint8)
    for block, part in blended_labels(grid, partial(read, labels=True), 3, side):
        label_map[block.row_start : block.row_stop, block.col_start : block.col_stop] = part
    assert np.array_equal(label_map, labels_of(expected))
    assert (label_map[hole] == VOID).all()


@pytest.mark.parametrize("classes", [1, 2, 8, 255])
def test_labels_are_the_first_of_the_highest(classes: int) -> None:
    values = np.random.default_rng(classes).integers(0, 4, (classes, 40, 50), np.uint16)
    values[:, 3:9, 4:20] = 0
    expected = np.where(values.any(0), values.argmax(0), VOID)
    assert np.array_equal(labels_of(values), expected)
