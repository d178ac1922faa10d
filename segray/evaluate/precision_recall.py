"""Matches -> COCO's figures, precision over recall, the best threshold, and what resampled images would give.

Predictions of a category are ranked by score; ties stand in the order of the images. Figures are computed
for images with whole-number weights, all 1 for the figures themselves: an image of weight 2 counts as two,
one of 0 is left out. With weights drawn from Poisson(1) that is the bootstrap over images. A weight comes
from a hash of the image's name: the same in whichever shard or order the image is read, and not kept. Blocks
of scenes take the place of images where there are any (`drawn_units`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

from segray.evaluate.matching import (
    AREAS,
    IOUS,
    Bools,
    Floats,
    Ints,
    Kind,
    Matches,
    bits,
    ignored_bit,
    true_bit,
)

RECALLS: Floats = np.linspace(0.0, 1.00, 101)
"""COCO's recall points, by the expression of pycocotools: the rounding of each counts."""
FEW = (1, 10)
"""COCO's smaller numbers of predictions an image and category."""
Weights = NDArray[np.uint8]
BOUNDED = ("ap", "ap50", "ap75", "ar")
"""Figures that `intervals` bounds."""
_CHUNK = 1 << 16
"""Draws x predictions to rank at a time; a few such float64 arrays fit into the cache."""
_DRAWN = 1 << 24
"""Draws x units whose weights are held at a time, a byte each."""
_POISSON = (np.cumsum([exp(-1) / factorial(count) for count in range(12)]) * 2**32).astype(np.uint64)
"""Upper ends, of 2**32, of the hashes that give weight 0, 1, 2 …"""


@dataclass(frozen=True, slots=True)
class Threshold:
    """The score from which on predictions of a class should count, by F1 at IoU 0.5; NaN without any."""

    score: float
    f1: float
    precision: float
    recall: float


Drawn = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Index of what is drawn of each prediction and of each true instance, in place of their images."""


class Category:
    """The ranked predictions of one category and kind."""

    def __init__(
        self,
        matches: Matches,
        kind: Kind,
        rows: Ints,
        truth: Ints,
        detections: int,
        drawn: Drawn | None = None,
    ) -> None:
        """Take the rows of the matches that belong to the category, and those of its truth."""
        rows = rows[matches.rank[rows] < detections]
        rows = rows[np.lexsort((matches.rank[rows], matches.image[rows], -matches.score[rows]))]
        self._matches, self._states, self._rows = matches, matches.states[kind], rows
        self._truth_image, self._truth_sizes = matches.truth_image[truth], matches.truth_sizes[truth]
        self._units, truth_units = drawn or (matches.image, matches.truth_image)
        self._truth_unit = truth_units[truth] if drawn else self._truth_image

    @property
    def score(self) -> Floats:
        """Return the scores, descending, (n,)."""
        return self._matches.score[self._rows]

    @property
    def _image(self) -> NDArray[np.int32]:
        return self._matches.image[self._rows]

    def _bit(self, number: int) -> Bools:
        """Return a bit of the states, bool (n,)."""
        return np.asarray(self._states[self._rows, number >> 3] >> (number & 7) & 1, bool)

    def truth(self, area: int, weights: Weights | None = None) -> Ints:
        """Return the true instances of a size that count, int64 (draws,); weights: (draws, units)."""
        units = self._truth_unit[bits(self._truth_sizes[:, None], area)]
        return np.array([len(units)]) if weights is None else weights[:, units].sum(axis=1, dtype=np.int64)

    def hits(self, iou: int, area: int) -> tuple[Ints, Bools | None]:
        """Return the ranks of true predictions, and which predictions count (None: all)."""
        ignored = self._bit(ignored_bit(iou, area))
        return np.flatnonzero(self._bit(true_bit(iou, area))), ~ignored if ignored.any() else None

    def precision(self, area: int) -> Floats:
        """Return the interpolated precision, (10 IoUs, 101 recall points); a size needs truth."""
        drawn = np.ones((1, len(self._rows)))
        return np.concatenate(list(self._precision(area, drawn, self.truth(area))))

    def recall(self, area: int, detections: int | None = None) -> Floats:
        """Return the recall at each IoU, (10,), with so many predictions an image."""
        counted = True if detections is None else self._matches.rank[self._rows] < detections
        found = [np.sum(self._bit(true_bit(iou, area)) & counted) for iou in range(len(IOUS))]
        return np.array(found) / self.truth(area)

    def drawn(self, weights: Weights, truth: Ints) -> tuple[Floats, Floats]:
        """Return the mean precision over recall points, and the recall, (10, draws) each, of all sizes.

        weights: (draws, units); truth: (draws,), above 0.
        """
        precision, recall = (np.zeros((len(IOUS), len(weights))) for _ in range(2))
        step, unit = max(1, _CHUNK // (len(self._rows) + len(RECALLS))), self._units[self._rows]
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            drawn = weights[rows][:, unit].astype(np.float64)  # all counts are below 2**53
            for iou, points in enumerate(self._precision(0, drawn, truth[rows])):
                precision[iou, rows] = points.mean(axis=1)
                recall[iou, rows] = drawn[:, self.hits(iou, 0)[0]].sum(axis=1) / truth[rows]
        return precision, recall

    def _precision(self, area: int, drawn: Floats, truth: Ints) -> Iterator[Floats]:
        """Yield for each IoU the interpolated precision (draws, 101); drawn: (draws, predictions)."""
        needed = hits_needed(truth)
        ranks = drawn.cumsum(axis=1)
        for iou in range(len(IOUS)):
            hits, counted = self.hits(iou, area)
            if not len(hits):
                yield np.zeros((len(drawn), len(RECALLS)))
                continue
            up_to = ranks if counted is None else (drawn * counted).cumsum(axis=1)
            yield interpolated(drawn[:, hits], up_to[:, hits], needed)

    def curve(self, iou: int) -> tuple[Floats, Floats]:
        """Return precision and score at each recall point, (101,) each; where it is not reached 0."""
        scores = self.score[self.hits(iou, 0)[0]]
        needed = np.maximum(hits_needed(self.truth(0))[0].astype(np.int64), 1)
        there = np.append(scores, 0)[np.minimum(needed - 1, len(scores))]
        return self.precision(0)[iou], there

    def best_f1(self) -> Threshold:
        """Return the threshold of the highest F1 at IoU 0.5; of equal ones the highest score."""
        hits, counted = self.hits(0, 0)
        (truth,) = self.truth(0)
        score = self.score
        true = np.zeros(len(score))
        true[hits] = 1
        true, kept = true.cumsum(), (np.ones(len(true)) if counted is None else counted).cumsum()
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])  # of each score
        f1 = 2 * true[last] / np.maximum(kept[last] + truth, 1)
        if not len(f1):
            return Threshold(*[float("nan")] * 4)
        best = last[int(f1.argmax())]
        shares = true[best] / max(kept[best], 1), true[best] / max(int(truth), 1)
        return Threshold(float(score[best]), float(f1.max()), *map(float, shares))

    def errors(self, threshold: float, images: int) -> tuple[Ints, Ints]:
        """Return false positives and false negatives of each image at IoU 0.5, int64 (images,) each."""
        sure, image = self.score >= threshold, self._image
        true, ignored = (self._bit(bit(0, 0)) for bit in (true_bit, ignored_bit))
        false = np.bincount(image[sure & ~true & ~ignored], minlength=images)
        found = np.bincount(image[sure & true], minlength=images)
        return false, self.truth_of_images(images) - found

    def truth_of_images(self, images: int) -> Ints:
        """Return the number of true instances that count in each image, int64 (images,)."""
        return np.bincount(self._truth_image[bits(self._truth_sizes[:, None], 0)], minlength=images)


def ranked(
    matches: Matches, kind: Kind, detections: int, drawn: Drawn | None = None
) -> Iterator[tuple[int, Category]]:
    """Yield each category that occurs, by its id, with its predictions ranked; drawn: None for images."""
    order = np.argsort(matches.category, kind="stable")
    true_order = np.argsort(matches.truth_category, kind="stable")
    category, true = matches.category[order], matches.truth_category[true_order]
    for number in np.union1d(np.unique(category), np.unique(true)).tolist():
        rows, truth = (
            each[slice(*np.searchsorted(values, [number, number + 1]))]
            for each, values in ((order, category), (true_order, true))
        )
        yield number, Category(matches, kind, rows, truth, detections, drawn)


@dataclass(frozen=True, slots=True)
class InstanceFigures:
    """COCO's figures in 0..1; NaN where there is no truth."""

    overall: dict[str, float]
    """`ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar1`, `ar10`, `ar`, `ar_small` …"""
    per_category: dict[int, dict[str, float]]
    """Category id -> `ap`, `ap50`, `ap75`, `ar`."""


def figures(categories: Iterable[tuple[int, Category]], detections: int) -> InstanceFigures:
    """Return COCO's twelve figures and those of each category: means over the categories with truth."""
    found: dict[int, dict[str, float]] = {number: _figures(each, detections) for number, each in categories}
    names = _names(detections)
    overall = {name: _mean([each[name] for each in found.values()]) for name in names}
    few = {number: {name: each[name] for name in BOUNDED} for number, each in found.items()}
    return InstanceFigures(overall, few)


def _names(detections: int) -> list[str]:
    few = [f"ar{number}" for number in FEW if number < detections]
    return [
        "ap",
        "ap50",
        "ap75",
        *(f"ap{area}" for area in AREAS[1:]),
        *few,
        *(f"ar{area}" for area in AREAS),
    ]


def _figures(category: Category, detections: int) -> dict[str, float]:
    found = dict.fromkeys(_names(detections), float("nan"))
    for number, area in enumerate(AREAS):
        if not category.truth(number)[0]:
            continue
        precision = category.precision(number)
        found[f"ap{area}"] = float(precision.mean())
        found[f"ar{area}"] = float(category.recall(number).mean())
        if not number:
            found |= {"ap50": float(precision[0].mean()), "ap75": float(precision[5].mean())}
            for few in FEW:
                if few < detections:
                    found[f"ar{few}"] = float(category.recall(0, few).mean())
    return found


@dataclass(frozen=True, slots=True)
class Resampling:
    """The bootstrap over images, or over blocks of scenes."""

    hashes: NDArray[np.uint64]
    """(units,) of the images' names, see `image_hash`, or of blocks."""
    draws: int
    seed: int

    def weights(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return how often each unit counts in draws start..stop, (draws, units), from Poisson(1)."""
        draw = np.arange(start, stop, dtype=np.uint64)[:, None] + (np.uint64(self.seed) << np.uint64(32))
        with np.errstate(over="ignore"):
            hashes = mixed(self.hashes[None] ^ mixed(draw + np.uint64(1)))
        weights = np.searchsorted(_POISSON, hashes >> np.uint64(32), side="right")
        return weights.astype(np.uint8)

    def intervals(
        self, categories: Mapping[int, Category], level: float = 0.95
    ) -> tuple[dict[str, list[float]], dict[int, dict[str, list[float]]]]:
        """Return low and high of each of BOUNDED, and of each category's: percentiles of the draws."""
        mean, found = self.drawn(categories)
        return _named_bounds(mean, level), {
            number: _named_bounds(each, level) for number, each in found.items()
        }

    def drawn(self, categories: Mapping[int, Category]) -> tuple[Floats, dict[int, Floats]]:
        """Return the BOUNDED figures of each draw, and each category's, (4, draws); NaN without truth."""
        found = {number: np.full((len(BOUNDED), self.draws), np.nan) for number in categories}
        step = max(1, _DRAWN // max(1, len(self.hashes)))
        for start in range(0, self.draws, step):
            weights = self.weights(start, min(start + step, self.draws))
            for number, category in categories.items():
                truth = category.truth(0, weights)
                known = truth > 0
                if known.any():
                    precision, recall = category.drawn(weights[known], truth[known])
                    rows = np.stack([precision.mean(axis=0), precision[0], precision[5], recall.mean(axis=0)])
                    found[number][:, start + np.flatnonzero(known)] = rows
        every = np.array(list(found.values())).reshape(len(found), len(BOUNDED), self.draws)
        known = ~np.isnan(every)
        number_known = known.sum(axis=0)
        mean = np.full(every.shape[1:], np.nan)
        np.divide(np.where(known, every, 0).sum(axis=0), number_known, out=mean, where=number_known > 0)
        return mean, found


def bounds(drawn: Floats, level: float = 0.95) -> list[float]:
    """Return the low and high percentile of a figure's draws, (draws,); NaN where none is known."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return [float("nan")] * 2
    found: list[float] = np.percentile(known, [50 * (1 - level), 50 * (1 + level)]).tolist()
    return found


def _named_bounds(drawn: Floats, level: float) -> dict[str, list[float]]:
    return {name: bounds(row, level) for name, row in zip(BOUNDED, drawn, strict=True)}


def image_hash(name: str) -> int:
    """Return a hash of an image's name, 64 bits."""
    return int.from_bytes(
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"
    )


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's output function (Steele et al., "Fast splittable pseudorandom number generators",
    OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        values = values * np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def interpolated(hits: Floats, detections: Floats, needed: Floats) -> Floats:
    """Return the interpolated precision at the recall points, float64 (draws, 101).

    `hits` (draws, true positives): the weight of each, by rank; `detections`, likewise: the weight of all up
    to it; `needed` (draws, 101): number of hits that each recall point requires, ascending.

    Precision is highest, and a recall point is reached, at a true positive; other ranks are skipped. The
    interpolated precision at a recall is the highest from there on (Everingham et al., "The PASCAL VOC
    Challenge", 2010): the highest between neighbouring points first, then from the right.
    """
    draws, columns = hits.shape
    found = np.empty((draws, columns + 1))  # the last column stands for 'never reached'
    precision = np.zeros((draws, columns + 1))
    np.cumsum(hits, axis=1, out=found[:, :-1])
    np.divide(found[:, :-1], detections + np.spacing(1), out=precision[:, :-1])
    apart = needed[:, -1].max() + 2
    found[:, -1] = apart - 1
    row = np.arange(draws)[:, None] * apart  # concatenates all draws to one ascending list
    found += row
    reached = np.searchsorted(found.ravel(), (needed + row).ravel())
    between = np.maximum.reduceat(precision.ravel(), reached).reshape(needed.shape)
    return np.asarray(np.maximum.accumulate(between[:, ::-1], axis=1)[:, ::-1])


def hits_needed(truth: Ints) -> Floats:
    """Return the fewest hits whose recall, hits / truth in float64, reaches each point, (draws, 101)."""
    whole = truth[:, None].astype(np.float64)
    hits = np.ceil(RECALLS * whole)
    hits -= (hits - 1) / whole >= RECALLS
    hits += hits / whole < RECALLS
    return np.maximum(hits, 0)


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]  # not NaN
    return float(np.mean(known)) if known else float("nan")
