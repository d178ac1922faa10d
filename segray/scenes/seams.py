"""What was found in the overlapping tiles of a scene -> one instance per object.

A view is what the model made of one object in one tile. It is cut where it comes within `EDGE` pixels of an
edge of its window that has more scene behind it, else whole.

    1  A cut view without a pixel in the core of its tile is left out: the neighbour sees at least a margin
       more of what is there. This is also what keeps slivers, which prove nothing, from joining others.
    2  Two views of one category are one object if their masks, inside the rectangle that the two windows
       share, have an IoU of at least `SAME`; windows that share less than the overlap (next but one to the
       moved-back last) leave it to the window between. Pairs join in descending IoU, then in descending
       pixels in common. A group never holds two views of one tile: no chain of neighbours melts together.
    3  A whole view of a group is believed unless another view of it has pixels outside the whole one's
       window, more than `SPILL` of the whole one's. The object is the best whole view alone (by score, then
       by pixels in its tile's core), for a union would be fatter; without one, it is the union of the parts.
    4  A group is dropped as seen twice if of each of its views at least `COVERED` lies under views of other
       groups, all of one other tile, and each is cut or lies mostly outside its tile's core. Weakest first
       (cut, then least in cores), and what was dropped covers nothing, so never both of two.

So a whole view that no other tile contradicts is always kept, and what a model finds twice inside one tile
stays two.

Limits. Two views of an object may lie a third of its width apart (2 pixels for 7 x 7), half if they differ
one way only; beyond that a small one may be found twice. The margin, half the overlap, should be 3 times that
distance or more. Where one tile sees one object and the next several, rule 4 takes the word of the tile whose
core holds most of it, or a mix of both where it lies on both cores. An object that leaves a window and comes
back, and is two views there, stays two. What overlaps in truth (two roads that cross inside a narrow
overlap) may be exchanged.

Cost: sorts of the spans, and the spans that have a pixel in common; about 90 bytes for each span at its peak.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segray.masks.spans import Bools, Ints, Pixels, Spans, ranges, totals, union
from segray.tiles import Grid, Window

EDGE = 2
"""Pixels: how far a model may leave free of an object that the window cuts."""
SAME = 0.3
SPILL = 0.1
COVERED = 0.5


@dataclass(frozen=True, slots=True)
class Views:
    """What was found in the tiles of one scene; n views, columns of one entry each."""

    tile: Ints
    """(n,) number of the tile in the grid."""
    category_id: NDArray[np.int32]
    score: NDArray[np.float32]
    box: NDArray[np.float32]
    """(n, 4) x0, y0, x1, y1 of the detector's box in pixels of the scene."""
    masks: list[Spans]
    """In pixels of the scene, each at least one pixel, inside the tile's window."""


@dataclass(frozen=True, slots=True)
class Joined:
    """One entry per object, m objects, in the order of their first views."""

    category_id: NDArray[np.int32]
    score: NDArray[np.float32]
    """(m,) of the best view that the mask was made of."""
    box: NDArray[np.float32]
    """(m, 4) x0, y0, x1, y1 of the best whole view, else the hull of the parts' boxes."""
    masks: list[Spans]
    """In pixels of the scene."""
    views: Ints
    """(m,) how many views were joined."""


def join(views: Views, grid: Grid) -> Joined:
    """One instance per object, whatever the order of the views."""
    if not views.masks:
        return Joined(views.category_id, views.score, views.box, [], np.zeros(0, np.int64))
    views = _sorted(views, grid)
    seen = _seen(views, grid)
    pairs = _compared(views.category_id, seen, grid)
    group = _grouped(pairs, seen.tile)
    seen.whole[_contradicted(group, seen)] = False
    kept = _kept(group, pairs, seen)
    return _objects(views, group, kept[group] & _used(group, seen, views.score))


def _sorted(views: Views, grid: Grid) -> Views:
    """By tile, bounds, category, area, score; what is the same in all of these, by box and moments."""
    pixels = Pixels.of(views.masks, grid.width)
    col, top, bottom = pixels.spans.T
    moments = [pixels.sums(bottom * bottom - top * top), pixels.sums(col * col * (bottom + 3 * top))]
    area = pixels.sums(bottom - top)
    keys = [views.tile, *pixels.bounds().T, views.category_id, area, views.score, *views.box.T, *moments]
    order = np.lexsort(keys[::-1])
    masks = [views.masks[each] for each in order]
    return Views(views.tile[order], views.category_id[order], views.score[order], views.box[order], masks)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The views as pixels; n entries each."""

    tile: Ints
    window: Ints
    """(n, 4) of the view's tile: row start, row stop, column start, column stop."""
    pixels: Pixels
    area: Ints
    core: Ints
    """Pixels in the core of the view's tile."""
    whole: Bools
    counts: Bools
    """Whole, or with a pixel in its core (rule 1)."""
    compared: Bools
    """Counts, and reaches where other windows may see it as well."""


def _seen(views: Views, grid: Grid) -> _Seen:
    pixels = Pixels.of(views.masks, grid.width)
    window = _crossed(*_lines(grid, grid.window))[views.tile]
    core = _crossed(*_lines(grid, grid.core))[views.tile]
    bounds = pixels.bounds()
    end = np.array([0, grid.height, 0, grid.width])
    cut = (np.abs(bounds - window) <= EDGE) & (window != end)
    own = _own(grid)[views.tile]
    inside = (bounds[:, ::2] >= own[:, ::2]) & (bounds[:, 1::2] <= own[:, 1::2])
    area = pixels.sums(pixels.spans[:, 2] - pixels.spans[:, 1])
    in_core = pixels.within(np.arange(len(area)), core)
    whole, alone = ~np.any(cut, axis=1), np.all(inside, axis=1)
    counts = whole | (in_core > 0)
    return _Seen(views.tile, window, pixels, area, in_core, whole, counts, counts & ~alone)


def _lines(grid: Grid, window_of: Callable[[int], Window]) -> tuple[Ints, Ints]:
    """Start and stop of the grid's lines of windows (rows, 2) and of a line's windows (cols, 2)."""
    rows = [window_of(tile) for tile in range(0, len(grid), grid.cols)]
    cols = [window_of(tile) for tile in range(grid.cols)]
    return (
        np.array([(each.row_start, each.row_stop) for each in rows]),
        np.array([(each.col_start, each.col_stop) for each in cols]),
    )


def _crossed(rows: Ints, cols: Ints) -> Ints:
    """(rows, 2), (cols, 2) -> (tiles, 4)."""
    return np.hstack([np.repeat(rows, len(cols), axis=0), np.tile(cols, (len(rows), 1))])


def _own(grid: Grid) -> Ints:
    """(tiles, 4): the rectangle that no other window sees; stop may lie before start."""
    rows, cols = (
        np.stack([np.r_[0, line[:-1, 1]], np.r_[line[1:, 0], size]], axis=1)
        for line, size in zip(_lines(grid, grid.window), (grid.height, grid.width), strict=True)
    )
    return _crossed(rows, cols)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Views of one category in two tiles that have pixels in common; one entry per pair."""

    first: Ints
    second: Ints
    common: Ints
    """Pixels."""
    iou: NDArray[np.float64]
    """Inside the rectangle that the two windows share; 0 where that is narrower than the overlap."""


def _compared(category_id: NDArray[np.int32], seen: _Seen, grid: Grid) -> _Pairs:
    first, second, common = _overlaps(category_id, seen, grid)
    one, other = seen.window[first], seen.window[second]
    shared = np.where([True, False, True, False], np.maximum(one, other), np.minimum(one, other))
    together = seen.pixels.within(first, shared) + seen.pixels.within(second, shared) - common
    least = np.minimum(grid.overlap, [grid.height, grid.width])
    wide = np.all(shared[:, 1::2] - shared[:, ::2] >= least, axis=1)
    return _Pairs(first, second, common, np.where(wide, common / together, 0))


def _overlaps(category_id: NDArray[np.int32], seen: _Seen, grid: Grid) -> tuple[Ints, Ints, Ints]:
    """Views first < second with pixels in common, and how many.

    A scene's columns, once per category, are laid end to end; of spans sorted by their start, those that one
    has pixels in common with are the ones that follow it, until one starts behind its stop.
    """
    chosen = np.flatnonzero(seen.compared[seen.pixels.owner])
    col, top, bottom = seen.pixels.spans[chosen].T
    owner = seen.pixels.owner[chosen]
    plane = np.unique(category_id, return_inverse=True)[1][owner].astype(np.int64)
    head = (plane * grid.width + col) * (grid.height + 1)
    order = np.argsort(head + top, kind="stable")
    owner, start, stop = owner[order], (head + top)[order], (head + bottom)[order]
    here, there = ranges(np.arange(1, len(start) + 1), np.searchsorted(start, stop))
    apart = seen.tile[owner[here]] != seen.tile[owner[there]]
    here, there = here[apart], there[apart]
    pixels = np.minimum(stop[here], stop[there]) - start[there]
    ends = np.sort(np.stack([owner[here], owner[there]]), axis=0)
    keys, pair = np.unique(ends[0] * len(seen.tile) + ends[1], return_inverse=True)
    return *np.divmod(keys, len(seen.tile)), totals(pair, pixels, len(keys))


def _grouped(pairs: _Pairs, tile: Ints) -> Ints:
    """(n,) the first view of each view's group (rule 2)."""
    parent = list(range(len(tile)))
    tiles = [{each} for each in tile.tolist()]

    def top(view: int) -> int:
        while parent[view] != view:
            parent[view] = view = parent[parent[view]]
        return view

    order = np.lexsort((pairs.second, pairs.first, -pairs.common, -pairs.iou))
    order = order[pairs.iou[order] >= SAME]
    for first, second in zip(pairs.first[order].tolist(), pairs.second[order].tolist(), strict=True):
        low, high = sorted((top(first), top(second)))
        if low != high and tiles[low].isdisjoint(tiles[high]):
            small, large = sorted((tiles[low], tiles[high]), key=len)
            large |= small
            tiles[low], parent[high] = large, low
    return np.array([top(view) for view in range(len(tile))])


def _contradicted(group: Ints, seen: _Seen) -> Ints:
    """Views that seem whole, but the group sees more of the object outside their window (rule 3)."""
    members = np.argsort(group, kind="stable")
    whole = np.flatnonzero(seen.whole & (np.bincount(group)[group] > 1))
    ends = (np.searchsorted(group[members], group[whole], side) for side in ("left", "right"))
    which, place = ranges(*ends)
    view, whole = members[place], whole[which]
    outside = seen.area[view] - seen.pixels.within(view, seen.window[whole])
    return whole[outside > SPILL * seen.area[whole]]


def _kept(group: Ints, pairs: _Pairs, seen: _Seen) -> Bools:
    """(n,) of each group, at its first view: rule 4, of those that count."""
    count = len(group)
    core, whole, area = (totals(group, each, count) for each in (seen.core, seen.whole, seen.area))
    kept: Bools = seen.counts & (group == np.arange(count))
    weak = ~seen.whole | (2 * seen.core < seen.area)
    view, other = np.r_[pairs.first, pairs.second], np.r_[pairs.second, pairs.first]
    covers = weak[view] & (group[view] != group[other])
    view, other, common = view[covers], other[covers], np.r_[pairs.common, pairs.common][covers]
    rank = np.argsort(np.lexsort((core / np.maximum(area, 1), whole > 0)))
    while True:
        alive = kept[group[other]]
        under = _most_under_one_tile(view[alive], seen.tile[other[alive]], common[alive], count)
        stays = totals(group, ~weak | (under < COVERED * seen.area), count)
        twice = kept & (stays == 0)
        if not twice.any():
            return kept
        rival = np.full(count, count)
        np.minimum.at(rival, group[view], np.where(twice, rank, count)[group[other]])
        kept &= ~(twice & (rank < rival))  # of two that cover each other, the weaker, then look again


def _most_under_one_tile(view: Ints, tile: Ints, common: Ints, count: int) -> Ints:
    """(pairs,) pixels in common with views of a tile -> (count,) the most of each view."""
    keys, pair = np.unique(view * (tile.max(initial=0) + 1) + tile, return_inverse=True)
    most = np.zeros(count, np.int64)
    np.maximum.at(most, keys // (tile.max(initial=0) + 1), totals(pair, common, len(keys)))
    return most


def _used(group: Ints, seen: _Seen, score: NDArray[np.float32]) -> Bools:
    """(n,) whether the object's mask is made of the view: of the best whole one, else of all (rule 3)."""
    order = np.lexsort((-seen.core, -score, ~seen.whole, group))
    best = order[np.r_[True, np.diff(group[order]) > 0]]
    used = ~np.isin(group, group[best[seen.whole[best]]])
    used[best] = True
    return used


def _objects(views: Views, group: Ints, used: Bools) -> Joined:
    order = np.flatnonzero(used)
    order = order[np.argsort(group[order], kind="stable")]
    labels, starts = np.unique(group[order], return_index=True)
    corners = views.box[order]
    low, high = np.minimum.reduceat(corners[:, :2], starts), np.maximum.reduceat(corners[:, 2:], starts)
    parts = [order[start:stop] for start, stop in pairwise([*starts, len(order)])]
    masks = [
        union([views.masks[view] for view in part]) if len(part) > 1 else views.masks[part[0]]
        for part in parts
    ]
    score = np.maximum.reduceat(views.score[order], starts)
    boxes = np.hstack([low, high])
    return Joined(views.category_id[labels], score, boxes, masks, np.bincount(group)[labels])
