"""Truth and predictions of many images -> what each prediction found: COCO's matching, in columns.

    boxes -> pairs that may overlap -> IoU of boxes or run lengths -> 0.5 and above -> greedy matching

The rules are those of COCOeval (pycocotools). Within an image and category, predictions choose in the order
of their scores the true instance of the highest IoU that is still free, first among those of the size in
question, then among crowds and those of other sizes, which make it neither true nor false. Only pairs whose
IoU reaches 0.5 can match, so first those are found, by their boxes and areas; then the first prediction of
every image and category chooses, then every second one, at all IoUs and sizes at once.

What is kept (`Matches`) has 40 bytes a prediction and 9 a true instance, 56 and 17 where scenes are cut into
blocks, and shards add by concatenation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from segray.evaluate.spatial_blocks import BlockGrid
from segray.masks.run_ends import RunEnds
from segray.masks.spans import ranges

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

Kind = Literal["segm", "bbox"]
"""What IoU is computed of: masks or boxes."""
KINDS: tuple[Kind, ...] = ("segm", "bbox")
IOUS: Floats = np.linspace(0.5, 0.95, 10)
AREAS = ("", "_small", "_medium", "_large")
"""COCO's sizes, in its order; the first is all."""
_LIMITS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
_STATES = len(IOUS) * len(AREAS)
CROWD = 1 << len(AREAS)
_AT_ONCE = 1 << 21
"""Pairs of boxes that are compared at a time."""
_MANY = 2_000
"""True instances of an image and category above which a search tree finds the pairs."""


@dataclass(frozen=True, slots=True)
class Instances:
    """True and predicted instances of whole images in columns, in any order."""

    image: Ints
    """(n,) index of the image."""
    category: Ints
    score: Floats
    """(n,) NaN for truth."""
    crowd: Bools
    area: Floats
    """(n,) COCO's `area` of the truth, in pixels; NaN: that of the mask, or of the box."""
    box: Floats
    """(n, 4) x, y, width, height; NaN: that of the mask."""
    runs: RunEnds | None = None
    """(n,) masks, all valid; None where there are only boxes."""
    bounds: Floats | None = None
    """(n, 4) boxes around the masks."""

    def of(self, kind: Kind, rows: Ints) -> "_Column":
        """Return how these rows are compared."""
        without = np.isnan(self.box[rows, 0])
        if self.runs is None or self.bounds is None:
            pixels, box = self.box[rows, 2] * self.box[rows, 3], self.box[rows]
            mask_pixels = pixels
        else:
            mask_pixels = self.runs.area[rows].astype(np.float64)
            box = np.where(without[:, None], self.bounds[rows], self.box[rows])
            pixels = box[:, 2] * box[:, 3]
            if kind == "segm":
                box, pixels = self.bounds[rows], mask_pixels
        # as in COCO.loadRes: a predicted box has its own size, where it was given
        size = np.where(without, mask_pixels, pixels) if kind == "bbox" else mask_pixels
        true = np.isnan(self.score[rows])
        given = np.where(np.isnan(self.area[rows]), mask_pixels, self.area[rows])
        return _Column(rows, box, pixels, np.where(true, given, size))


@dataclass(frozen=True, slots=True)
class _Column:
    """Instances of one side as one kind compares them."""

    rows: Ints
    """(n,) in the table."""
    box: Floats
    """(n, 4)."""
    pixels: Floats
    """(n,) of the box or mask, for IoU."""
    area: Floats
    """(n,) decides the size."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What each prediction found; `joined` adds shards, which have no image in common."""

    image: NDArray[np.int32]
    """(n,) index of the image."""
    category: NDArray[np.int32]
    rank: NDArray[np.int32]
    """(n,) from 0, by score, in its image and category."""
    score: Floats
    states: dict[Kind, Bytes]
    """(n, 10): of each IoU and size one bit that it is true, then one that it counts neither way."""
    truth_image: NDArray[np.int32]
    truth_category: NDArray[np.int32]
    truth_sizes: Bytes
    """(m,) one bit for each size in which it counts; `CROWD`."""
    block: dict[Kind, Ints] = field(default_factory=dict)
    """(n,) spatial block in the image, see `spatial_blocks`; empty where images are whole."""
    truth_block: Ints | None = None
    """(m,) likewise; None where images are whole."""

    @classmethod
    def joined(cls, parts: "Sequence[Matches]") -> "Matches":
        """Return all of them as one."""

        def of(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts])

        states = {kind: np.concatenate([part.states[kind] for part in parts]) for kind in parts[0].states}
        truth = of("truth_image"), of("truth_category"), of("truth_sizes")
        block = {kind: np.concatenate([part.block[kind] for part in parts]) for kind in parts[0].block}
        truth_block = of("truth_block") if block else None
        ranks = of("image"), of("category"), of("rank"), of("score")
        return cls(*ranks, states, *truth, block, truth_block)

    def of_images(self, wanted: Bools) -> "Matches":
        """Return those of some images; wanted: bool, by the index of the image."""
        rows, truth = wanted[self.image], wanted[self.truth_image]
        columns = (self.image[rows], self.category[rows], self.rank[rows], self.score[rows])
        states = {kind: each[rows] for kind, each in self.states.items()}
        truths = self.truth_image[truth], self.truth_category[truth], self.truth_sizes[truth]
        block = {kind: each[rows] for kind, each in self.block.items()}
        truth_block = None if self.truth_block is None else self.truth_block[truth]
        return Matches(*columns, states, *truths, block, truth_block)


def bits(states: Bytes, number: int) -> Bools:
    """Return one bit of each row, bool (n,)."""
    return (states[:, number >> 3] >> (number & 7) & 1).astype(bool)


def true_bit(iou: int, area: int) -> int:
    """Return the number of the bit that is set where a prediction is true; `ignored_bit` likewise."""
    return area * len(IOUS) + iou


def ignored_bit(iou: int, area: int) -> int:
    """Return the number of the bit that is set where a prediction is neither true nor false."""
    return _STATES + true_bit(iou, area)


def match(instances: Instances, kinds: Sequence[Kind], grid: BlockGrid | None = None) -> Matches:
    """Match the predictions of whole images to their truth; grid: to say the block of each, too."""
    every, category = instances, instances.category
    true = np.isnan(every.score)
    truth, found = (np.flatnonzero(each) for each in (true, ~true))
    truth = truth[np.lexsort((category[truth], every.image[truth]))]  # stable: in the order of the file
    found = found[np.lexsort((-every.score[found], category[found], every.image[found]))]
    numbers, place = np.unique(category, return_inverse=True)
    cell = every.image * len(numbers) + place
    first = np.searchsorted(cell[found], cell[found])
    crowd = every.crowd[truth]
    other = _other_size(every.of(kinds[0], truth).area) | crowd
    sizes = np.packbits(~other, axis=0, bitorder="little").reshape(-1) | crowd * np.uint8(CROWD)
    states, partners = dict[Kind, Bytes](), dict[Kind, Ints]()
    for kind in kinds:
        runs = every.runs if kind == "segm" else None
        compare = _Compare(every.of(kind, truth), every.of(kind, found), crowd, runs)
        pairs = compare.pairs(cell[truth], cell[found])
        outside = _other_size(compare.found.area)
        states[kind], partners[kind] = pairs.choose(cell[found], crowd, other, outside)
    rank = (np.arange(len(found)) - first).astype(np.int32)
    images, categories = (each.astype(np.int32) for each in (every.image, category))
    truths = images[truth], categories[truth], sizes
    columns = images[found], categories[found], rank, every.score[found]
    if grid is None:
        return Matches(*columns, states, *truths)
    boxes = [every.of(kinds[0], rows).box for rows in (truth, found)]
    true_image, image = every.image[truth], every.image[found]
    truth_block = grid.truth(true_image, boxes[0])
    block = {
        kind: grid.found(image, boxes[1], partner, true_image, truth_block)
        for kind, partner in partners.items()
    }
    return Matches(*columns, states, *truths, block, truth_block)


def _other_size(area: Floats) -> Bools:
    """Return which areas (n,) are outside each size, bool (4, n)."""
    return np.stack([(area < low) | (area > high) for low, high in _LIMITS])


def _pairs(true_boxes: Floats, boxes: Floats, first: Ints, stop: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield (prediction, true instance) of one image and category, for some predictions at a time."""
    many = stop - first > _MANY
    for start in np.unique(first[many]).tolist():
        rows = np.flatnonzero(many & (first == start))
        tree = shapely.STRtree(_shapes(true_boxes[start : stop[rows[0]]]))
        one, another = tree.query(_shapes(boxes[rows]))
        yield rows[one], another + start
    rows = np.flatnonzero(~many & (stop > first))
    ends = np.cumsum((stop - first)[rows])
    begin = 0
    while begin < len(rows):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _AT_ONCE)))
        some = rows[begin:end]
        which, another = ranges(first[some], stop[some])
        yield some[which], another
        begin = end


def _shapes(boxes: Floats) -> NDArray[np.object_]:
    x, y, width, height = boxes.T
    shapes: NDArray[np.object_] = shapely.box(x, y, x + width, y + height)
    return shapes


class _Compare:
    """Finds the pairs of a prediction and a true instance that can match, with their IoU."""

    def __init__(self, truth: _Column, found: _Column, crowd: Bools, runs: RunEnds | None) -> None:
        """Take both sides in the order of their cells; runs: None to compare boxes."""
        self.truth, self.found, self._crowd, self._runs = truth, found, crowd, runs

    def pairs(self, true_cell: Ints, cell: Ints) -> "_Pairs":
        """Return the pairs whose IoU is 0.5 or above; a cell is an image and category."""
        between = [np.searchsorted(true_cell, cell, side) for side in ("left", "right")]
        parts = [self._near(*some) for some in _pairs(self.truth.box, self.found.box, *between)]
        parts.append((np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)))
        return _Pairs.of(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _near(self, one: Ints, another: Ints) -> tuple[Ints, Ints, Floats]:
        """Return those pairs whose IoU is 0.5 or above, and it."""
        shared = _shared_box(self.truth.box[another], self.found.box[one])
        there = np.flatnonzero(shared > 0)
        one, another, shared = one[there], another[there], shared[there]
        if self._runs is None:
            return self._kept(one, another, shared)
        most = np.minimum(shared, np.minimum(self.truth.pixels[another], self.found.pixels[one]))
        one, another, _ = self._kept(one, another, most)  # the rest is ruled out by boxes and areas
        pixels = self._runs.shared(self.found.rows[one], self.truth.rows[another])
        return self._kept(one, another, pixels.astype(np.float64))

    def _kept(self, one: Ints, another: Ints, shared: Floats) -> tuple[Ints, Ints, Floats]:
        true, found = self.truth.pixels[another], self.found.pixels[one]
        union = np.where(self._crowd[another], found, found + true - shared)
        iou = np.divide(shared, union, out=np.zeros(len(one)), where=shared > 0)
        near = iou >= IOUS[0]
        return one[near], another[near], iou[near]


def _shared_box(true: Floats, found: Floats) -> Floats:
    """Return the area that boxes (n, 4) share, (n,)."""
    ends = np.minimum(true[:, :2] + true[:, 2:], found[:, :2] + found[:, 2:])
    sides = np.maximum(ends - np.maximum(true[:, :2], found[:, :2]), 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs in the order of the predictions, those of one by rising IoU."""

    one: Ints
    """(n,) index of the prediction."""
    another: Ints
    """(n,) of the true instance."""
    iou: Floats

    @classmethod
    def of(cls, one: Ints, another: Ints, iou: Floats) -> "_Pairs":
        order = np.lexsort((another, iou, one))  # of two with the same IoU COCOeval takes the later one
        return cls(one[order], another[order], iou[order])

    def choose(self, cell: Ints, crowd: Bools, other: Bools, outside: Bools) -> tuple[Bytes, Ints]:
        """Return the states of all predictions, and the true instance that each took, -1: none.

        That is the one at the lowest IoU, of all sizes.

        cell: (predictions,) image and category; crowd: (truth,); other: (4, truth) not of that size;
        outside: (4, predictions) likewise.
        """
        shape = len(cell), len(AREAS), len(IOUS)
        true, ignored = np.zeros(shape, bool), np.repeat(outside.T[:, :, None], len(IOUS), axis=2)
        taken, partner = np.zeros((len(crowd), *shape[1:]), bool), np.full(len(cell), -1)
        first = np.flatnonzero(np.diff(self.one, prepend=-1))
        stop = np.append(first[1:], len(self.one)).astype(np.int64)
        chooser = self.one[first]
        turn = np.arange(len(first)) - np.searchsorted(cell[chooser], cell[chooser])
        in_turn = np.argsort(turn, kind="stable")
        for some in np.split(in_turn, np.cumsum(np.bincount(turn))[:-1]) if len(first) else ():
            which, pair = ranges(first[some], stop[some])
            best, mine = self._best(pair, pair - first[some][which], taken, crowd, other)
            found = best >= 0
            true[chooser[some]] = mine
            ignored[chooser[some]] = np.where(found, ~mine, ignored[chooser[some]])
            lowest = best[np.arange(len(best)), 0, found[:, 0].argmax(axis=1)]
            partner[chooser[some]] = np.where(lowest < 0, -1, self.another[lowest])
            _, area, iou = np.nonzero(found)
            taken[self.another[best[found]], area, iou] = True
        both = np.concatenate((true.reshape(-1, _STATES), ignored.reshape(-1, _STATES)), axis=1)
        return np.packbits(both, axis=1, bitorder="little"), partner

    def _best(self, pair: Ints, place: Ints, taken: Bools, crowd: Bools, other: Bools) -> tuple[Ints, Bools]:
        """Return the pair that each prediction of a turn chooses, (n, 4, 10), -1: none; whether it is true.

        pair: of all of them; place: of the pair among those of its prediction.
        """
        there = self.another[pair]
        reached = self.iou[pair, None, None] >= np.minimum(IOUS, 1 - 1e-10)
        free = reached & ~(taken[there] & ~crowd[there, None, None])
        apart = int(place.max()) + 1
        wish = np.where(other[:, there].T, 0, apart) + place[:, None]
        begins = np.flatnonzero(place == 0)
        best = np.maximum.reduceat(np.where(free, wish[:, :, None], -1), begins, axis=0)
        return np.where(best < 0, -1, best % apart + pair[begins, None, None]), best >= apart
