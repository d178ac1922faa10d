"""Merge the detections in the overlapping tiles of a scene into one instance per object.

A view is one detection of an object in one tile. It is cut where it comes within `EDGE` pixels of an edge of
its window that is not an edge of the scene, else whole.

    1  A cut view without a pixel in the core of its tile is dropped: the neighbour sees at least a margin
       more of the object. This also keeps slivers, which are weak evidence, from merging with others.
    2  Two views of one category are one object if their masks, inside the rectangle that the two windows
       share, have an IoU of at least `SAME`; windows that share less than the overlap (next but one to the
       moved-back last) are not compared: the window between them is. Pairs merge in descending IoU, then
       in descending pixels in common. A group never has two views of one tile: no chains of neighbours.
    3  A whole view of a group is accepted unless another view of the group has pixels outside the whole one's
       window, more than `SPILL` of the whole one's. The object is the best whole view alone (by score, then
       by pixels in its tile's core), because a union would be larger; without one, it is the union of the
       parts.
    4  A group is dropped as a duplicate if of each of its views at least `COVERED` is covered by views of
       other groups, all of one other tile, and each is cut or mostly outside its tile's core. Weakest first
       (cut, then least in cores); a dropped group covers nothing, so one of two that cover each other stays.

So a whole view that no other tile contradicts is always kept, and two detections inside one tile are never
merged.

Limits. Two views of an object may be a third of its width apart (2 pixels for 7 x 7), half if they differ
in one direction only; beyond that a small object may be found twice. The margin, half the overlap, should be
at least 3 times that distance. Where one tile sees one object and the next several, rule 4 follows the tile
whose core has most of it, or mixes both where it spans both cores. An object that leaves a window and
re-enters it, and is two views there, stays two. Objects that really overlap (two roads that cross inside a
narrow overlap) may be swapped.

Cost: sorts of the spans, and the spans that have a pixel in common; about 90 bytes for each span at its peak.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segray.masks.spans import Bools, Ints, Pixels, Spans, ranges, totals, union
from segray.tile_overlap import Grid, Window

EDGE = 2
"""Pixels: gap that a model may leave between a cut object and the edge of its window."""
SAME = 0.3
SPILL = 0.1
COVERED = 0.5


@dataclass(frozen=True, slots=True)
class Views:
    """The detections in the tiles of one scene: n views, columns of one entry each."""

    tile: Ints
    """(n,) index of the tile in the grid."""
    category_id: NDArray[np.int32]
    score: NDArray[np.float32]
    box: NDArray[np.float32]
    """(n, 4) x0, y0, x1, y1 of the detector's box in pixels of the scene."""
    masks: list[Spans]
    """Spans (k, 3) in pixels of the scene, each of at least one pixel, inside the tile's window."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The merged instances: m objects, columns of one entry each, in the order of their first views."""

    category_id: NDArray[np.int32]
    score: NDArray[np.float32]
    """(m,) score of the best view that the mask is made of."""
    box: NDArray[np.float32]
    """(m, 4) x0, y0, x1, y1 of the best whole view, else the box around the parts' boxes."""
    masks: list[Spans]
    """Spans (k, 3) in pixels of the scene."""
    views: Ints
    """(m,) number of views that were merged."""


def join(views: Views, grid: Grid) -> Joined:
    """Merge n views into m <= n instances, one per object; the result does not depend on the views' order."""
    if not views.masks:
        return Joined(views.category_id, views.score, views.box, [], np.zeros(0, np.int64))
    pixels = Pixels.of(views.masks, grid.width)
    order, alone = _order(views, pixels), _alone(views.tile, pixels.bounds, grid)
    merged, first = _merged(_taken(views, order[~alone[order]]), grid)
    own = _taken(views, order[alone[order]])
    parts = merged, Joined(own.category_id, own.score, own.box, own.masks, np.ones(len(own.tile), np.int64))
    rank = np.argsort(np.r_[np.flatnonzero(~alone[order])[first], np.flatnonzero(alone[order])])
    category_id, score, box, number = (
        np.concatenate([getattr(part, name) for part in parts])[rank]
        for name in ("category_id", "score", "box", "views")
    )
    masks = [*merged.masks, *own.masks]
    return Joined(category_id, score, box, [masks[each] for each in rank.tolist()], number)


def _merged(views: Views, grid: Grid) -> tuple[Joined, Ints]:
    """Merge sorted views; also return each object's first view."""
    if not views.masks:
        return Joined(views.category_id, views.score, views.box, [], np.zeros(0, np.int64)), views.tile
    seen = _seen(views, grid)
    pairs = _compared(views.category_id, seen, grid)
    group = _grouped(pairs, seen.tile)
    seen.whole[_contradicted(group, seen)] = False
    kept = _kept(group, pairs, seen)
    return _objects(views, group, kept[group] & _used(group, seen, views.score))


def _order(views: Views, pixels: Pixels) -> Ints:
    """Sort by tile, bounds, category, area, score and box, and by moments where all of these are equal."""
    keys = [views.tile, *pixels.bounds.T, views.category_id, pixels.area, views.score, *views.box.T]
    order = np.lexsort(keys[::-1])
    if np.any(np.all([key[order[1:]] == key[order[:-1]] for key in keys], axis=0)):
        col, top, bottom = pixels.spans.T
        keys += [pixels.sums(bottom * bottom - top * top), pixels.sums(col * col * (bottom + 3 * top))]
        order = np.lexsort(keys[::-1])
    return order


def _alone(tile: Ints, bounds: Ints, grid: Grid) -> Bools:
    """Return which views, bool (n,), are whole and in no other window: each is an object of its own."""
    return ~_cut(tile, bounds, grid) & _inside(bounds, _own(grid)[tile])


def _cut(tile: Ints, bounds: Ints, grid: Grid) -> Bools:
    window = _crossed(*_lines(grid, grid.window))[tile]
    end = np.array([0, grid.height, 0, grid.width])
    found: Bools = np.any((np.abs(bounds - window) <= EDGE) & (window != end), axis=1)
    return found


def _inside(bounds: Ints, area: Ints) -> Bools:
    found: Bools = np.all((bounds[:, ::2] >= area[:, ::2]) & (bounds[:, 1::2] <= area[:, 1::2]), axis=1)
    return found


def _taken(views: Views, which: Ints) -> Views:
    masks = [views.masks[each] for each in which.tolist()]
    return Views(views.tile[which], views.category_id[which], views.score[which], views.box[which], masks)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Pixels and flags of n views."""

    tile: Ints
    window: Ints
    """(n, 4) window of the view's tile: row start, row stop, column start, column stop."""
    pixels: Pixels
    area: Ints
    core: Ints
    """(n,) pixels in the core of the view's tile."""
    whole: Bools
    counts: Bools
    """(n,) whole, or with a pixel in its tile's core (rule 1)."""
    compared: Bools
    """(n,) counts, and extends into the part of its window that other windows share."""


def _seen(views: Views, grid: Grid) -> _Seen:
    pixels = Pixels.of(views.masks, grid.width)
    window = _crossed(*_lines(grid, grid.window))[views.tile]
    core = _crossed(*_lines(grid, grid.core))[views.tile]
    in_core = pixels.within(np.arange(len(views.tile)), core)
    whole, inside = ~_cut(views.tile, pixels.bounds, grid), _inside(pixels.bounds, _own(grid)[views.tile])
    counts = whole | (in_core > 0)
    return _Seen(views.tile, window, pixels, pixels.area, in_core, whole, counts, counts & ~inside)


def _lines(grid: Grid, window_of: Callable[[int], Window]) -> tuple[Ints, Ints]:
    """Return start and stop of the grid's rows of windows (rows, 2) and of its columns (cols, 2)."""
    rows = [window_of(tile) for tile in range(0, len(grid), grid.cols)]
    cols = [window_of(tile) for tile in range(grid.cols)]
    return (
        np.array([(each.row_start, each.row_stop) for each in rows]),
        np.array([(each.col_start, each.col_stop) for each in cols]),
    )


def _crossed(rows: Ints, cols: Ints) -> Ints:
    """Combine all rows (rows, 2) with all columns (cols, 2): windows (tiles, 4)."""
    return np.hstack([np.repeat(rows, len(cols), axis=0), np.tile(cols, (len(rows), 1))])


def _own(grid: Grid) -> Ints:
    """Return the part (tiles, 4) of each window that no other window covers; stop may be before start."""
    rows, cols = (
        np.stack([np.r_[0, line[:-1, 1]], np.r_[line[1:, 0], size]], axis=1)
        for line, size in zip(_lines(grid, grid.window), (grid.height, grid.width), strict=True)
    )
    return _crossed(rows, cols)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of views of one category in two tiles that have pixels in common."""

    first: Ints
    second: Ints
    common: Ints
    """(pairs,) pixels in common."""
    iou: NDArray[np.float64]
    """(pairs,) IoU in the rectangle that the windows share; 0 where that is narrower than the overlap."""


def _compared(category_id: NDArray[np.int32], seen: _Seen, grid: Grid) -> _Pairs:
    first, second, common = _overlaps(category_id, seen, grid)
    one, other = seen.window[first], seen.window[second]
    shared = np.where([True, False, True, False], np.maximum(one, other), np.minimum(one, other))
    together = seen.pixels.within(first, shared) + seen.pixels.within(second, shared) - common
    least = np.minimum(grid.overlap, [grid.height, grid.width])
    wide = np.all(shared[:, 1::2] - shared[:, ::2] >= least, axis=1)
    return _Pairs(first, second, common, np.where(wide, common / together, 0))


def _overlaps(category_id: NDArray[np.int32], seen: _Seen, grid: Grid) -> tuple[Ints, Ints, Ints]:
    """Return views first < second with pixels in common, and the number of these pixels.

    A scene's columns, once per category, are placed end to end; in spans sorted by their start, a span
    overlaps those that follow it, until one starts after its stop.
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
    """Return the first view of each view's group, int64 (n,) (rule 2)."""
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
    """Return which views, bool (n,), seem whole, but their group has more outside their window (rule 3)."""
    members = np.argsort(group, kind="stable")
    whole = np.flatnonzero(seen.whole & (np.bincount(group)[group] > 1))
    ends = (np.searchsorted(group[members], group[whole], side) for side in ("left", "right"))
    which, place = ranges(*ends)
    view, whole = members[place], whole[which]
    outside = seen.area[view] - seen.pixels.within(view, seen.window[whole])
    return whole[outside > SPILL * seen.area[whole]]


def _kept(group: Ints, pairs: _Pairs, seen: _Seen) -> Bools:
    """Return which groups rule 4 keeps, bool (n,), at each group's first view."""
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
        kept &= ~(twice & (rank < rival))  # of two that cover each other drop the weaker, then repeat


def _most_under_one_tile(view: Ints, tile: Ints, common: Ints, count: int) -> Ints:
    """Return the largest cover of each view (count,) by one tile's views, from pixels in common (pairs,)."""
    keys, pair = np.unique(view * (tile.max(initial=0) + 1) + tile, return_inverse=True)
    most = np.zeros(count, np.int64)
    np.maximum.at(most, keys // (tile.max(initial=0) + 1), totals(pair, common, len(keys)))
    return most


def _used(group: Ints, seen: _Seen, score: NDArray[np.float32]) -> Bools:
    """Return which views, bool (n,), make up their objects' masks: the best whole one, else all (rule 3)."""
    order = np.lexsort((-seen.core, -score, ~seen.whole, group))
    best = order[np.r_[True, np.diff(group[order]) > 0]]
    used = ~np.isin(group, group[best[seen.whole[best]]])
    used[best] = True
    return used


def _objects(views: Views, group: Ints, used: Bools) -> tuple[Joined, Ints]:
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
    return Joined(views.category_id[labels], score, boxes, masks, np.bincount(group)[labels]), labels
