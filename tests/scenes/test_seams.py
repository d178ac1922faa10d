"""Objects that are known, cut by the windows of a grid: joined again, they must be the same objects."""

import numpy as np
import pytest
from numpy.typing import NDArray

from segray.masks.spans import Spans, area, bounds, moved
from segray.scenes.seams import Joined, Views, join
from segray.tile_overlap import Grid, Window

Mask = NDArray[np.bool_]
Found = tuple[int, int, float, Spans]  # tile, category, score, mask

GRIDS = [  # sizes that are multiples, just above one, just below one; a last tile moved back far and little
    Grid(180, 250, tile=64, overlap=16),
    Grid(161, 209, tile=64, overlap=16),
    Grid(300, 208, tile=96, overlap=40),
    Grid(230, 129, tile=128, overlap=24),
    Grid(150, 170, tile=64, overlap=40),  # more than half: three windows of a line share pixels
    Grid(60, 400, tile=64, overlap=20),
]


def spans(mask: Mask) -> Spans:
    edges = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))))
    col, top = np.nonzero(edges == 1)
    return np.stack([col, top, np.nonzero(edges == -1)[1]], axis=1)


def pixels(mask: Spans, grid: Grid) -> Mask:
    out = np.zeros((grid.height, grid.width), bool)
    for col, top, bottom in mask:
        out[top:bottom, col] = True
    return out


def rectangle(grid: Grid, row: int, col: int, height: int, width: int) -> Mask:
    mask = np.zeros((grid.height, grid.width), bool)
    mask[max(row, 0) : row + height, max(col, 0) : col + width] = True
    return mask


def columns(found: list[Found]) -> Views:
    windows = [bounds(mask) for *_, mask in found]
    return Views(
        np.array([each[0] for each in found], np.int64),
        np.array([each[1] for each in found], np.int32),
        np.array([each[2] for each in found], np.float32),
        np.array([(w.col_start, w.row_start, w.col_stop, w.row_stop) for w in windows], np.float32),
        [each[3] for each in found],
    )


def seen(
    objects: list[Mask], grid: Grid, jitter: int = 0, seed: int = 0, categories: list[int] | None = None
) -> Views:
    """What a model finds that sees all, at most `jitter` pixels off, in an order that means nothing."""
    random = np.random.default_rng(seed)
    found: list[Found] = []
    for tile, window in enumerate(grid):
        here = np.s_[window.row_start : window.row_stop, window.col_start : window.col_stop]
        for number, each in enumerate(objects):
            part = (
                shifted(each[here], *random.integers(-jitter, jitter + 1, 2))
                if each[here].any()
                else each[:0]
            )
            if part.any():
                category = categories[number] if categories else 1
                mask = moved(spans(part), window.row_start, window.col_start)
                found.append((tile, category, float(random.random()), mask))
    return columns([found[each] for each in random.permutation(len(found))])


def shifted(mask: Mask, rows: int, cols: int) -> Mask:
    """What leaves the window is lost, what comes in is empty."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    out[max(rows, 0) : height + min(rows, 0), max(cols, 0) : width + min(cols, 0)] = mask[
        max(-rows, 0) : height - max(rows, 0), max(-cols, 0) : width - max(cols, 0)
    ]
    return out


def scattered(grid: Grid, seed: int, smallest: int, largest: int) -> list[Mask]:
    """Rectangles, L-shapes, rings and discs that do not touch, most of them where windows and scene end."""
    random = np.random.default_rng(seed)
    rows = [edge for each in grid for edge in (each.row_start, each.row_stop)]
    cols = [edge for each in grid for edge in (each.col_start, each.col_stop)]
    taken = np.zeros((grid.height, grid.width), bool)
    objects = []
    for number in range(150):
        height, width = random.integers(smallest, largest + 1, 2)
        row, col = random.integers(0, grid.height), random.integers(0, grid.width)
        if number % 2:
            row, col = (
                int(random.choice(rows)) + random.integers(-3, 4),
                int(random.choice(cols)) + random.integers(-3, 4),
            )
        row, col = row - random.integers(0, height + 1), col - random.integers(0, width + 1)
        row, col = np.clip([row, col], 0, [max(grid.height - height, 0), max(grid.width - width, 0)])
        mask = rectangle(grid, row, col, height, width)
        if taken[max(row - 3, 0) : row + height + 3, max(col - 3, 0) : col + width + 3].any():
            continue
        taken |= mask
        if number % 3 == 1:
            mask &= ~rectangle(grid, row, col + width // 2, height // 2, width)
        if number % 3 == 2 and min(height, width) >= 3 * smallest:
            mask &= ~rectangle(
                grid, row + smallest, col + smallest, height - 2 * smallest, width - 2 * smallest
            )
        objects.append(mask)
    return objects


def road(grid: Grid, slope: float, start: float, thickness: int, upright: bool = False) -> Mask:
    row, col = np.ogrid[: grid.height, : grid.width]
    along, across = (row, col) if upright else (col, row)
    mask: Mask = np.abs(across - start - slope * along) * 2 < thickness * np.hypot(1, slope)
    return mask


def check(joined: Joined, objects: list[Mask], grid: Grid, least: float = 1.0) -> None:
    """Each object once, and nothing else; which one is which comes from the masks alone."""
    assert len(joined.masks) == len(objects)
    found = np.array([pixels(mask, grid).ravel() for mask in joined.masks], np.float32)
    truth = np.array([each.ravel() for each in objects], np.float32)
    both = found @ truth.T
    iou = both / (found.sum(axis=1)[:, None] + truth.sum(axis=1) - both)
    assert np.array_equal(np.sort(iou.argmax(axis=0)), np.arange(len(objects)))
    assert iou.max(axis=0).min() >= least


def same(one: Joined, other: Joined) -> None:
    for name in ("category_id", "score", "box", "views"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert len(one.masks) == len(other.masks)
    assert all(map(np.array_equal, one.masks, other.masks))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_objects_without_jitter(grid: Grid, seed: int) -> None:
    objects = scattered(grid, seed, 1 if seed % 2 else 5, 120 if seed > 1 else 40)
    views = seen(objects, grid, seed=seed)
    joined = join(views, grid)
    check(joined, objects, grid)
    assert joined.box.tolist() == [
        [w.col_start, w.row_start, w.col_stop, w.row_stop] for w in map(bounds, joined.masks)
    ]
    assert set(joined.score.tolist()) <= set(views.score.tolist())
    assert joined.box.dtype == joined.score.dtype == np.float32


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_objects_with_jitter(grid: Grid, seed: int) -> None:
    """A square of 24, a pixel off both ways, has an IoU of 0.85 to the truth, an L of 24 one of 0.79."""
    objects = scattered(grid, seed, 24, 120 if seed % 2 else 45)
    check(join(seen(objects, grid, 1, seed), grid), objects, grid, 0.78)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_small_objects_with_jitter_are_counted(grid: Grid, seed: int) -> None:
    """8 x 8 a pixel off both ways is an IoU of 0.62 to the truth."""
    objects = [each for each in scattered(grid, seed, 8, 20) if each.sum() >= 64]
    check(join(seen(objects, grid, 1, seed), grid), objects, grid, 0.5)


@pytest.mark.parametrize("jitter", [0, 1])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_roads(grid: Grid, jitter: int) -> None:
    for upright in (False, True):
        size = grid.width if upright else grid.height
        for start in (0, 12, size // 2, size - 8):
            for slope in (0, 0.3, -0.8):
                objects = [road(grid, slope, start, 10, upright)]
                if objects[0].sum() > 500:  # not a stub in the scene's corner
                    joined = join(seen(objects, grid, jitter), grid)
                    check(joined, objects, grid, 0.7 if jitter else 1)


def test_a_road_through_five_tiles_in_a_row() -> None:
    grid = Grid(64, 64 + 4 * 48, tile=64, overlap=16)
    objects = [rectangle(grid, 30, 3, 8, grid.width - 6)]
    joined = join(seen(objects, grid), grid)
    check(joined, objects, grid)
    assert joined.views.tolist() == [5]


@pytest.mark.parametrize("jitter", [0, 1])
def test_a_ring_and_a_cross_on_a_corner_of_four_tiles(jitter: int) -> None:
    grid = Grid(112, 112, tile=64, overlap=16)
    ring = rectangle(grid, 26, 26, 60, 60) & ~rectangle(grid, 36, 36, 40, 40)
    middle = rectangle(grid, 46, 46, 20, 20)  # inside the ring, itself cut in all four
    joined = join(seen([ring, middle], grid, jitter), grid)
    check(joined, [ring, middle], grid, 0.75 if jitter else 1)
    assert joined.views.tolist() == [4, 4]


@pytest.mark.parametrize("jitter", [0, 1])
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("width", [9, 19, 31])
def test_touching_terraces_stay_apart(width: int, upright: bool, jitter: int) -> None:
    """Fifty in a row; the last tile is moved back, by more for some widths than for others."""
    size = 50 * width + 7
    grid = Grid(size, 40, 32, 16) if upright else Grid(40, size, 32, 16)
    starts = range(3, size - width, width)
    objects = [
        rectangle(grid, start, 10, width, 20) if upright else rectangle(grid, 10, start, 20, width)
        for start in starts
    ]
    assert len(objects) == 50
    for seed in range(3 if jitter else 1):
        check(join(seen(objects, grid, jitter, seed), grid), objects, grid, 0.6 if jitter else 1)


def test_a_quilt_of_touching_houses() -> None:
    grid = Grid(200, 230, tile=64, overlap=16)
    objects = [rectangle(grid, row, col, 17, 13) for row in range(0, 200, 17) for col in range(0, 230, 13)]
    for jitter in (0, 1):
        check(join(seen(objects, grid, jitter), grid), objects, grid, 0.6 if jitter else 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_views_is_nothing(seed: int) -> None:
    grid = GRIDS[seed]
    objects = scattered(grid, seed, 3, 90)
    random = np.random.default_rng(seed)
    views = seen(objects, grid, 2, seed)
    views.score[:] = 0.5  # ties
    twice = np.r_[np.arange(len(views.masks)), random.integers(0, len(views.masks), 20)]
    results = []
    for _ in range(3):
        order = random.permutation(twice)
        masks = [views.masks[each] for each in order]
        some = Views(views.tile[order], views.category_id[order], views.score[order], views.box[order], masks)
        results.append(join(some, grid))
    same(results[0], results[1])
    same(results[0], results[2])


def test_views_that_differ_inside_only_have_an_order_too() -> None:
    """Same box, area, score: only the pixels tell them apart."""
    grid = Grid(64, 112, tile=64, overlap=16)
    left = rectangle(grid, 10, 52, 8, 6) & ~rectangle(grid, 11, 53, 1, 2)
    right = rectangle(grid, 10, 52, 8, 6) & ~rectangle(grid, 11, 54, 1, 2)
    found: list[Found] = [(1, 1, 0.5, spans(left)), (1, 1, 0.5, spans(right))]
    same(join(columns(found), grid), join(columns(found[::-1]), grid))


def test_categories_are_apart() -> None:
    grid = Grid(112, 112, tile=64, overlap=16)
    objects = [rectangle(grid, 30, 30, 50, 50)] * 2
    joined = join(seen(objects, grid, categories=[7, 3]), grid)
    assert sorted(joined.category_id.tolist()) == [3, 7]
    assert joined.views.tolist() == [4, 4]
    assert [area(mask) for mask in joined.masks] == [2500, 2500]
    one = spans(rectangle(SIDE_BY_SIDE, 20, 52, 9, 9))
    assert join(columns([(0, 3, 0.5, one), (1, 7, 0.5, one)]), SIDE_BY_SIDE).views.tolist() == [1, 1]


SIDE_BY_SIDE = Grid(64, 112, tile=64, overlap=16)
"""Columns 0 to 64 and 48 to 112, cores cut at 56."""


def line(*found: tuple[int, float, Window], grid: Grid = SIDE_BY_SIDE) -> Joined:
    """Tile, score, rectangle."""
    return join(
        columns(
            [
                (tile, 1, score, spans(rectangle(grid, w.row_start, w.col_start, w.height, w.width)))
                for tile, score, w in found
            ]
        ),
        grid,
    )


def test_the_best_whole_view_is_the_object() -> None:
    low, high = Window(20, 30, 51, 60), Window(20, 30, 52, 61)
    assert line((0, 0.6, low), (1, 0.9, high)).box.tolist() == [[52, 20, 61, 30]]
    assert line((0, 0.9, low), (1, 0.6, high)).box.tolist() == [[51, 20, 60, 30]]
    assert line((0, 0.5, low), (1, 0.5, low)).views.tolist() == [2]
    more_in_core = line((0, 0.5, Window(20, 30, 51, 58)), (1, 0.5, Window(20, 30, 51, 59)))
    assert more_in_core.box.tolist() == [[51, 20, 58, 30]]


def test_a_whole_view_is_better_than_a_surer_cut_one() -> None:
    joined = line((0, 0.4, Window(20, 30, 40, 55)), (1, 0.9, Window(20, 30, 48, 58)))
    assert joined.box.tolist() == [[40, 20, 55, 30]]
    assert joined.score.tolist() == [np.float32(0.4)]
    assert joined.views.tolist() == [2]


def test_parts_are_put_together() -> None:
    joined = line((0, 0.4, Window(20, 30, 40, 64)), (1, 0.9, Window(21, 31, 48, 80)))
    assert joined.box.tolist() == [[40, 20, 80, 31]]
    assert joined.score.tolist() == [np.float32(0.9)]
    assert [area(mask) for mask in joined.masks] == [10 * 24 + 10 * 32 - 9 * 16]


def test_a_view_that_seems_whole_is_not_believed_against_its_group() -> None:
    """The second tile's mask ends 6 pixels inside of the edge that cuts the road."""
    joined = line((0, 0.4, Window(20, 30, 5, 64)), (1, 0.9, Window(20, 30, 54, 80)))
    assert joined.box.tolist() == [[5, 20, 80, 30]]


@pytest.mark.parametrize("tile", [0, 1])
def test_what_one_tile_sees_whole_is_kept(tile: int) -> None:
    assert line((tile, 0.5, Window(20, 30, 51, 61))).views.tolist() == [1]


def test_what_one_tile_sees_cut() -> None:
    """Kept from the core on; at the border of the scene it is not cut."""
    assert line((0, 0.5, Window(20, 30, 55, 64))).views.tolist() == [1]
    assert line((0, 0.5, Window(20, 30, 56, 64))).masks == []
    assert line((0, 0.5, Window(20, 30, 56, 63))).masks == [], "a mask may end a little before the edge"
    assert line((0, 0.5, Window(20, 30, 56, 61))).views.tolist() == [1]
    assert line((0, 0.5, Window(0, 10, 57, 61))).views.tolist() == [1]


def test_a_cut_piece_of_what_the_neighbour_sees_is_not_another_object() -> None:
    """IoU 0.19 in the shared rectangle, pixels in its core, but all of it is the neighbour's."""
    whole, piece = Window(10, 50, 30, 61), Window(20, 28, 48, 60)
    assert line((0, 0.5, whole), (1, 0.9, piece)).box.tolist() == [[30, 10, 61, 50]]


def test_what_lies_in_its_core_is_not_the_neighbours_to_deny() -> None:
    assert len(line((0, 0.5, Window(10, 50, 30, 61)), (1, 0.9, Window(20, 28, 53, 63))).masks) == 2


def test_two_tiles_do_not_add_up_to_cover() -> None:
    """0.4 of the second tile's view lies under the first tile's, 0.15 under the third's."""
    first, second, third = Window(0, 28, 26, 60), Window(20, 40, 26, 60), Window(20, 30, 50, 84)
    grid = Grid(64, 112, tile=64, overlap=40)
    assert line((0, 0.5, first), (1, 0.5, second), (2, 0.5, third), grid=grid).views.tolist() == [1, 1, 1]


def test_the_closest_pair_joins_first() -> None:
    close, half = Window(12, 30, 52, 61), Window(10, 19, 52, 61)
    joined = line((0, 0.5, Window(10, 30, 52, 61)), (1, 0.9, close), (1, 0.9, half))
    assert dict(zip(joined.views.tolist(), joined.box[:, 1].tolist(), strict=True)) == {2: 12, 1: 10}


def test_what_a_tile_finds_twice_is_its_own_affair() -> None:
    small, large = Window(20, 28, 53, 60), Window(10, 50, 50, 64)
    assert line((0, 0.5, large), (0, 0.9, small)).views.tolist() == [1, 1]


def test_half_covered_is_twice_less_is_not() -> None:
    whole = Window(10, 50, 30, 61)
    assert len(line((0, 0.5, whole), (1, 0.9, Window(46, 54, 48, 60))).masks) == 1
    assert len(line((0, 0.5, whole), (1, 0.9, Window(41, 60, 48, 60))).masks) == 2


def test_four_houses_or_one_are_never_none() -> None:
    """One tile sees four, the other one: the one with the cores has it, and something always remains."""
    houses = [Window(row, row + 8, 49, 55) for row in (0, 8, 16, 24)]
    block = Window(0, 32, 48, 55)
    one = line((1, 0.9, block), *[(0, 0.5, each) for each in houses])
    assert one.box[:, 0].tolist() == [49] * 4
    other = line((0, 0.9, Window(0, 32, 48, 55)), *[(1, 0.5, each) for each in houses])
    assert other.box.tolist() == [[48, 0, 55, 32]]


@pytest.mark.parametrize(("block", "houses", "left"), [((51, 60), (53, 60), 51), ((51, 59), (52, 61), 52)])
def test_two_that_cover_each_other_are_never_both_dropped(
    block: tuple[int, int], houses: tuple[int, int], left: int
) -> None:
    """Both lie mostly outside their tile's core: what has the larger share in it stays."""
    four = [Window(row, row + 8, *houses) for row in (0, 8, 16, 24)]
    joined = line((1, 0.9, Window(0, 32, *block)), *[(0, 0.5, each) for each in four])
    assert joined.box[:, 0].tolist() == [left] * (1 if left == block[0] else 4)


def test_no_two_views_of_a_tile_in_a_group() -> None:
    """The neighbour melts two houses into one; those that the tile sees whole stay two."""
    both = line(
        (0, 0.5, Window(10, 20, 30, 60)), (0, 0.5, Window(20, 30, 30, 60)), (1, 0.9, Window(10, 30, 48, 60))
    )
    assert both.box.tolist() == [[30, 10, 60, 20], [30, 20, 60, 30]]


def test_a_shared_rectangle_narrower_than_the_overlap_joins_nothing() -> None:
    """Of two that touch, each a pixel off, both fill the one column that the first and third window share."""
    grid = Grid(48, 95, tile=48, overlap=16)  # columns 0 to 48, 32 to 80, and, moved back, 47 to 95
    joined = line(
        (0, 0.5, Window(10, 30, 10, 48)),
        (1, 0.5, Window(10, 30, 32, 47)),
        (1, 0.5, Window(10, 30, 47, 80)),
        (2, 0.5, Window(10, 30, 47, 90)),
        grid=grid,
    )
    assert joined.box.tolist() == [[10, 10, 48, 30], [47, 10, 90, 30]]
    assert joined.views.tolist() == [2, 2]


def test_a_sliver_of_the_margin_joins_nothing() -> None:
    """One column of the first object in the second tile, a pixel off: it lies on the second."""
    joined = line(
        (0, 0.5, Window(10, 30, 20, 49)),
        (0, 0.5, Window(10, 30, 49, 51)),
        (1, 0.5, Window(10, 30, 49, 50)),
        (1, 0.5, Window(10, 30, 51, 53)),
    )
    assert joined.box[0].tolist() == [20, 10, 49, 30]
    assert [49, 10, 51, 30] in joined.box.tolist()


def test_nothing() -> None:
    joined = join(columns([(0, 1, 0.5, np.array([[3, 4, 5]]))]), Grid(10, 10))
    assert joined.views.tolist() == [1]
    empty = Views(
        np.zeros(0, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros((0, 4), np.float32),
        [],
    )
    assert join(empty, Grid(10, 10)).masks == []


def test_no_overlap_joins_nothing() -> None:
    grid = Grid(128, 128, tile=64, overlap=0)
    joined = join(seen([rectangle(grid, 30, 30, 60, 60)], grid), grid)
    assert joined.views.tolist() == [1, 1, 1, 1]
