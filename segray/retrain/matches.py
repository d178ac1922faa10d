"""Matches of one model on each image of a holdout, from which the score of any resample is computed.

AP is not a mean over images: detections of all images are ranked together. So each bootstrap draw ranks the
matches again; the overlap of masks, the slow part, is computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np

from segray.evaluate.average_precision import DETECTIONS_PER_IMAGE, InstanceScores
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.matching import IOUS, Bools, Floats, Ints, Kind, bits, ignored_bit, true_bit
from segray.evaluate.precision_recall import RECALLS, hits_needed, interpolated

_CHUNK = 1 << 16
"""Draws x detections to rank at a time; a few such float64 arrays fit into the cache."""


class Matches(Protocol):
    """Matches of one model on one holdout."""

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images, in the order of the weights."""

    @property
    def metric(self) -> str:
        """Name of the score: `AP` or `mIoU`."""

    def figure(self, weights: Ints) -> Floats:
        """Return the score, float64 (draws,), of integer weights (draws, images); NaN without truth.

        An image of weight 2 counts as two copies, one of weight 0 is left out.
        """

    def differing(self, other: Self) -> Bools:
        """Return on which images the predictions of the two models differ, bool (images,)."""


@dataclass(frozen=True, eq=False)
class InstanceMatches:
    """Matched detections, ordered by category, then as pycocotools ranks them: score, image, detection."""

    images: tuple[str, ...]
    categories: Ints
    """(categories,) category ids, ascending."""
    category: Ints
    """(detections,) index in `categories`."""
    image: Ints
    """(detections,) index in `images`."""
    score: Floats
    """(detections,) in 0..1, descending within a category."""
    matched: Bools
    """(10, detections): at IoU 0.50:0.05:0.95, has a true instance of its own."""
    ignored: Bools
    """(10, detections): matched a crowd, so it is neither true nor false."""
    truth: Ints
    """(categories, images) true instances that count; crowds do not."""
    metric: str = "AP"

    @classmethod
    def of(
        cls,
        scores: InstanceScores,
        detections_per_image: int = DETECTIONS_PER_IMAGE,
        kind: Kind = "segm",
    ) -> "InstanceMatches":
        """Match truth and predictions of each image, all sizes of instances together."""
        names, categories = tuple(sorted(scores.images)), np.array(scores.categories(), np.int64)
        found = scores.matches(kind)
        rows = np.flatnonzero(found.rank < detections_per_image)
        rows = rows[np.lexsort((found.image[rows], -found.score[rows], found.category[rows]))]
        states = found.states[kind][rows]
        truth = np.zeros((len(categories), len(names)), np.int64)
        counted = bits(found.truth_sizes[:, None], 0)
        place = np.searchsorted(categories, found.truth_category[counted])
        np.add.at(truth, (place, found.truth_image[counted]), 1)
        return cls(
            names,
            categories,
            np.searchsorted(categories, found.category[rows]),
            found.image[rows].astype(np.int64),
            found.score[rows],
            np.stack([bits(states, true_bit(iou, 0)) for iou in range(len(IOUS))]),
            np.stack([bits(states, ignored_bit(iou, 0)) for iou in range(len(IOUS))]),
            truth,
        )

    def figure(self, weights: Ints) -> Floats:
        """Return COCO's AP of each draw: the mean over IoUs, recall points and categories with truth.

        Equal to pycocotools on a data set in which each image occurs as often as its weight, its copies in
        sequence. (For two detections of one image with one score and category, pycocotools ranks the second
        before the copy of the first; here copies of a detection are consecutive.)

        Raises ValueError for weights of another shape.
        """
        checked(weights, self.images)
        total, categories = np.zeros(len(weights)), np.zeros(len(weights))
        for category in self._categories:
            truth = weights @ category.truth
            step = max(1, _CHUNK // (len(category.image) + len(RECALLS)))
            for start in range(0, len(weights), step):
                rows = slice(start, start + step)
                known = truth[rows] > 0
                total[rows][known] += category.average_precision(weights[rows][known], truth[rows][known])
                categories[rows][known] += 1
        ap = np.full(len(weights), np.nan)
        np.divide(total, categories, out=ap, where=categories > 0)
        return ap

    def differing(self, other: "InstanceMatches") -> Bools:
        """Return where a score, a match or the number of detections differs, bool (images,)."""
        mine, theirs = self._of_images(), other._of_images()
        return np.array([one != another for one, another in zip(mine, theirs, strict=True)], bool)

    def _of_images(self) -> list[bytes]:
        """Return all values of the detections of each image as bytes, for comparison."""
        order = np.argsort(self.image, kind="stable")
        rows = np.column_stack(
            (
                self.categories[self.category[order]],
                self.score[order],
                self.matched[:, order].T,
                self.ignored[:, order].T,
            )
        )
        ends = np.searchsorted(self.image[order], np.arange(1, len(self.images)))
        return [part.tobytes() for part in np.split(rows, ends)] if self.images else []

    @cached_property
    def _categories(self) -> "list[_Category]":
        ends = np.searchsorted(self.category, np.arange(len(self.truth) + 1))
        return [
            _Category(self.image[start:end], self.matched[:, start:end], self.ignored[:, start:end], truth)
            for truth, start, end in zip(self.truth, ends, ends[1:], strict=False)
        ]


def average_precision(matches: InstanceMatches, weights: Sequence[int] | Ints | None = None) -> float:
    """Return COCO's AP with one integer weight an image, all 1 unless given; NaN without truth."""
    row = np.ones(len(matches.images), np.int64) if weights is None else np.asarray(weights, np.int64)
    return float(matches.figure(row[None])[0])


class _Category:
    """The ranked detections of one category."""

    def __init__(self, image: Ints, matched: Bools, ignored: Bools, truth: Ints) -> None:
        self.image, self.truth = image, truth
        self._thresholds = [
            (np.flatnonzero(hit & ~passed), ~passed if passed.any() else None)
            for hit, passed in zip(matched, ignored, strict=True)
        ]
        """For each IoU: ranks of the true positives, and which detections count (None: all)."""

    def average_precision(self, weights: Ints, truth: Ints) -> Floats:
        """Return the mean precision over IoUs and recall points, (draws,); `truth` (draws,) is above 0."""
        if not len(weights) or not len(self.image):
            return np.zeros(len(weights))
        needed = hits_needed(truth)
        drawn = weights[:, self.image].astype(np.float64)  # (draws, detections), all counts below 2**53
        ranks = drawn.cumsum(axis=1)
        total = np.zeros(len(weights))
        for hits, counted in self._thresholds:
            if len(hits):
                detections = ranks if counted is None else (drawn * counted).cumsum(axis=1)
                total += interpolated(drawn[:, hits], detections[:, hits], needed).sum(axis=1)
        return total / (len(self._thresholds) * len(RECALLS))


@dataclass(frozen=True, eq=False)
class ConfusionMatrices:
    """Number of pixels of each image and class in truth, prediction and both, from which mIoU is computed."""

    images: tuple[str, ...]
    hits: Ints
    """(images, classes) pixels of the class that are predicted as such."""
    true: Ints
    """(images, classes) pixels of the class in the truth."""
    found: Ints
    """(images, classes) pixels that are predicted as the class."""
    metric: str = "mIoU"

    @classmethod
    def of(cls, scores: Mapping[str, SemanticScores]) -> "ConfusionMatrices":
        """Take one confusion matrix an image. Raises ValueError where they differ in classes."""
        names = tuple(sorted(scores))
        if len({(each.classes, each.ignore_index) for each in scores.values()}) > 1:
            raise ValueError("confusion matrices of different classes")
        if not names:
            none = np.zeros((0, 0), np.int64)
            return cls((), none, none, none)
        matrices = [scores[name].matrix for name in names]
        return cls(
            names,
            np.array([matrix.diagonal() for matrix in matrices]),
            np.array([matrix.sum(axis=1) for matrix in matrices]),
            np.array([matrix[:, :-1].sum(axis=0) for matrix in matrices]),
        )

    def figure(self, weights: Ints) -> Floats:
        """Return mIoU of each draw as `SemanticScores.compute` does, from the sum of the matrices.

        Raises ValueError for weights of another shape.
        """
        checked(weights, self.images)
        drawn = weights.astype(np.float64)  # counts stay exact below 2**53 pixels
        hits, true, found = (drawn @ counts for counts in (self.hits, self.true, self.found))
        union = true + found - hits
        seen = union > 0
        iou = np.divide(hits, union, out=np.zeros_like(hits), where=seen)
        miou = np.full(len(weights), np.nan)
        np.divide(iou.sum(axis=1), seen.sum(axis=1), out=miou, where=true.any(axis=1))
        return miou

    def differing(self, other: "ConfusionMatrices") -> Bools:
        """Return where the hits or the predicted pixels of a class differ, bool (images,)."""
        return np.asarray(((self.hits != other.hits) | (self.found != other.found)).any(axis=1))


def checked(weights: Ints, images: Sequence[str]) -> None:
    """Raise ValueError unless weights are whole numbers of 0 or more, (draws, images)."""
    if weights.ndim != 2 or weights.shape[1] != len(images):
        raise ValueError(f"weights of shape {weights.shape} for {len(images)} images")
    if weights.dtype.kind not in "iu" or (weights.size and weights.min() < 0):
        raise ValueError("a weight is not a whole number of 0 or more")
