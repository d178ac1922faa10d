"""Joining what was found in overlapping tiles: segray against SAHI's mergers, time and faults.

A scene of known houses, some wall to wall, and a road through many tiles; each window sees of each object
what lies in it, a pixel off now and then. segray is given masks and gives masks, SAHI outlines.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.measure import Figure, Options, check, ratios, seconds_a_call, take_turns
from segray.masks.spans import Spans, bounds
from segray.scenes.seams import Views, join
from segray.tile_overlap import Grid

SIZES = ((2_000, ">= 1"), (10_000, ">= 2"), (33_000, ">= 100"))
"""Boxes, and how many times as long SAHI's NMM should take. The last goal was set by a SAHI whose NMM
compared all pairs; the one that is pinned has a search tree."""
PITCH = {"scattered": 74, "crowded": 42}
HOUSE, ROAD = 36, 10
MATCH = 0.5
Boxes = NDArray[np.float64]
"""(n, 4): x0, y0, x1, y1 in pixels of the scene."""


@dataclass(frozen=True)
class Town:
    """What there is, and what the tiles show of it."""

    truth: Boxes
    views: Views
    grid: Grid

    @cached_property
    def predictions(self) -> list[Any]:
        """The views as SAHI takes them; making them is none of its merger's time."""
        return _predictions(self)


def figures(options: Options) -> Iterator[Figure]:
    """Time at each size, then faults at the smallest."""
    sizes = SIZES[:1] if options.quick else SIZES
    for place, pitch in PITCH.items():
        for number, goal in sizes:
            town = made(number, pitch)
            found = ours(town)
            assert town.predictions
            check(faults(town.truth, found) == (0, 0), f"seams, {place}: segray lost or doubled something")
            pairs = take_turns(
                [partial(seconds, sahi_by("NMM"), town), partial(seconds, ours, town)], options.rounds(3)
            )
            name = f"SAHI NMM / segray, {number:,} boxes, {place}"
            yield Figure(name, goal, ratios(*pairs), _facts(town, pairs))
        yield from _faults(place, made(sizes[0][0], pitch))


def _facts(town: Town, pairs: list[list[float]]) -> list[str]:
    slow, fast = (min(each) for each in pairs)
    views, objects = len(town.views.masks), len(town.truth)
    return [f"{views:,} views of {objects:,} objects in {len(town.grid):,} tiles: {slow:.2f} s, {fast:.3f} s"]


def _faults(place: str, town: Town) -> Iterator[Figure]:
    """Objects lost and found twice, of SAHI less those of segray."""
    own = faults(town.truth, ours(town))
    for name in ("GREEDYNMM", "NMM"):
        lost, twice = faults(town.truth, sahi_by(name)(town))
        words = f"{len(town.truth):,} objects: SAHI lost {lost}, doubled {twice}; segray {own[0]}, {own[1]}"
        yield Figure(
            f"faults of SAHI {name} less segray's, {place}", ">= 1", [lost + twice - sum(own)], [words]
        )


def made(number: int, pitch: int) -> Town:
    """About `number` views; houses of one row in three touch."""
    side = int(np.sqrt(number / 1.35)) * pitch
    grid, random = Grid(side, side), np.random.default_rng(number)
    rows = range(ROAD + 20, side - HOUSE, pitch)
    truth = [[ROAD, 5, side - ROAD, 5 + ROAD]]
    for number, row in enumerate(rows):
        step = HOUSE if number % 3 == 0 else pitch
        truth += [[col, row, col + HOUSE, row + HOUSE] for col in range(8, side - HOUSE, max(step, HOUSE))]
    boxes = np.array(truth, float)
    columns = [_seen(boxes, grid, tile, random) for tile in range(len(grid))]
    tile, box = (np.concatenate(each) for each in zip(*columns, strict=True))
    views = Views(
        tile,
        np.ones(len(tile), np.int32),
        random.uniform(0.5, 1, len(tile)).astype(np.float32),
        box.astype(np.float32),
        [rectangle(each) for each in box.astype(int)],
    )
    return Town(boxes, views, grid)


def _seen(
    boxes: Boxes, grid: Grid, tile: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], Boxes]:
    """What a tile shows: each object a pixel off or not, cut at the window."""
    window = grid.window(tile)
    low = np.array([window.col_start, window.row_start] * 2)
    high = np.array([window.col_stop, window.row_stop] * 2)
    moved = boxes + np.tile(random.integers(-1, 2, (len(boxes), 2)), 2)
    cut = np.clip(moved, low, high)
    cut = cut[(cut[:, 2:] - cut[:, :2] >= 3).all(1)]
    return np.full(len(cut), tile), cut


def rectangle(box: NDArray[np.int64]) -> Spans:
    """A box filled with pixels."""
    x0, y0, x1, y1 = box.tolist()
    columns = np.arange(x0, x1)
    return np.stack([columns, np.full_like(columns, y0), np.full_like(columns, y1)], axis=1)


def ours(town: Town) -> Boxes:
    """Boxes of what segray makes of the views."""
    windows = [bounds(mask) for mask in join(town.views, town.grid).masks]
    return np.array([[w.col_start, w.row_start, w.col_stop, w.row_stop] for w in windows], float)


def sahi_by(name: str) -> Callable[[Town], Boxes]:
    """Boxes of what one of SAHI's mergers makes of the views, with SAHI's own defaults for slices."""
    from sahi.postprocess import combine

    kind = {"NMM": combine.NMMPostprocess, "GREEDYNMM": combine.GreedyNMMPostprocess}[name]
    merge = kind(match_threshold=MATCH, match_metric="IOS", class_agnostic=False)

    def merged(town: Town) -> Boxes:
        return np.array([each.bbox.to_xyxy() for each in merge(town.predictions)], float)

    return merged


def _predictions(town: Town) -> list[Any]:
    from sahi.prediction import ObjectPrediction

    size = [town.grid.height, town.grid.width]
    return [
        ObjectPrediction(
            bbox=[x0, y0, x1, y1],
            category_id=1,
            category_name="house",
            score=score,
            segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]],
            full_shape=size,
        )
        for (x0, y0, x1, y1), score in zip(town.views.box.tolist(), town.views.score.tolist(), strict=True)
    ]


def faults(truth: Boxes, found: Boxes) -> tuple[int, int]:
    """(Objects that nothing was found for, findings that are no object's or one's that has its own)."""
    taken = np.zeros(len(truth), int)
    wrong = 0
    for box in found:
        low, high = np.maximum(truth[:, :2], box[:2]), np.minimum(truth[:, 2:], box[2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        joined = np.prod(truth[:, 2:] - truth[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - shared
        best = int(np.argmax(shared / joined))
        if shared[best] / joined[best] > MATCH:
            taken[best] += 1
        else:
            wrong += 1
    return int((taken == 0).sum()), int((taken - 1).clip(0).sum()) + wrong


def seconds(way: Callable[[Town], Boxes], town: Town) -> float:
    """Of one call."""
    return seconds_a_call(lambda: way(town), 0.0)
