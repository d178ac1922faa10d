"""Panoptic quality, as an accumulator that adds: shards are counted apart and merged.

Kirillov et al., "Panoptic Segmentation" (CVPR 2019, section 4), with panopticapi's rules
(https://github.com/cocodataset/panopticapi/blob/master/panopticapi/evaluation.py, BSD-2) for what the paper
leaves open. A predicted and a true segment of one category match where IoU > 0.5, so each has at most one
match. Void pixels of the truth are left out of the union; a predicted segment without a match of which more
than half lies in void, or in a crowd of its category, is no false positive; a crowd is never a match nor a
miss. Void pixels of the prediction are wrong: they count in the union. (torchmetrics leaves them out, so its
figures are higher where predictions have void.)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError

Ints = NDArray[np.int64]
VOID_ID = 0
_DENSE = 1 << 22
"""Pairs of segments that are counted in an array; more are sorted."""


class PanopticFigures(TypedDict):
    """Figures in 0..1 of one class or the means over several; NaN where there is none."""

    pq: float
    """Panoptic quality: sum of IoU over TP + FP / 2 + FN / 2; sq * rq."""
    sq: float
    """Segmentation quality: mean IoU of the matches; 0 without one."""
    rq: float
    """Recognition quality: the F1 score of the segments."""
    classes: int
    """Classes in the mean."""


class ClassFigures(NamedTuple):
    """Figures and counts of one class."""

    pq: float
    sq: float
    rq: float
    matched: int
    false_positives: int
    missed: int


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of one image: parallel arrays (n,)."""

    ids: Ints
    categories: Ints
    crowd: NDArray[np.bool_]


class Overlaps:
    """Pixels of each pair of a true and a predicted segment of one image; add its windows."""

    def __init__(self, true: Segments, found: Segments) -> None:
        self.true, self.found = true, found
        self._stride = len(found.ids) + 2
        self._codes: list[Ints] = []
        self._counts: list[Ints] = []

    def add(
        self, true_ids: NDArray[np.uint32], found_ids: NDArray[np.uint32], void: Sequence[int] = ()
    ) -> None:
        """Count a window: ids (h, w) of one shape; void: more predicted ids that are void.

        Raises ItemError for an id that no segment has, and for another shape.
        """
        check_sizes(true_ids.shape, found_ids.shape)
        tables = _table(self.true.ids), _table(self.found.ids, void)
        codes = tables[0].take(true_ids, mode="clip") * self._stride
        codes += tables[1].take(found_ids, mode="clip")
        if (len(self.true.ids) + 2) * self._stride <= _DENSE:
            counts = np.bincount(codes.ravel())
            pairs = np.flatnonzero(counts)
            counts = counts[pairs]
        else:
            pairs, counts = np.unique(codes, return_counts=True)
        for what, places, table, ids in (
            ("truth", pairs // self._stride, tables[0], true_ids),
            ("prediction", pairs % self._stride, tables[1], found_ids),
        ):
            if (places == 0).any():
                unknown = int(ids[table.take(ids, mode="clip") == 0].flat[0])
                raise ItemError(
                    "unsupported", f"{what}: pixels of segment {unknown}, which is not in its list"
                )
        self._codes.append(pairs)
        self._counts.append(counts)

    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """Return true segment, predicted segment (from 1, 0 is void) and pixels of each pair, (n,) each."""
        codes, places = np.unique(np.concatenate([np.empty(0, np.int64), *self._codes]), return_inverse=True)
        pixels = np.zeros(len(codes), np.int64)
        np.add.at(pixels, places, np.concatenate([np.empty(0, np.int64), *self._counts]))
        return codes // self._stride - 1, codes % self._stride - 1, pixels


def check_sizes(true: tuple[int, ...], found: tuple[int, ...]) -> None:
    """Raise ItemError where truth and prediction have different (height, width)."""
    if true != found:
        text = f"prediction: {found[1]} x {found[0]} pixels, its truth {true[1]} x {true[0]}"
        raise ItemError("unsupported", text)


def _table(segment_ids: Ints, void: Sequence[int] = ()) -> Ints:
    """Return id -> 0 for one of no segment, 1 for void, and the place of its segment from 2, int64 (n,).

    The last row stands for all larger ids.
    """
    most = max([int(segment_ids.max(initial=0)), *void])
    table = np.zeros(most + 2, np.int64)  # pages of zeros that are not touched take no memory
    table[segment_ids] = np.arange(2, len(segment_ids) + 2)
    table[[VOID_ID, *void]] = 1
    return table


@dataclass(slots=True)
class PanopticScores:
    """The images counted so far; `a + b` holds those of both."""

    sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    """category_id -> sum of IoU, TP, FP, FN: float64 (4,)."""

    def add(self, overlaps: Overlaps) -> None:
        """Count one image, of which all windows are added.

        Raises ItemError, and counts nothing, where a predicted segment has no pixel.
        """
        true, found = overlaps.true, overlaps.found
        t, p, pixels = overlaps.pairs()
        true_area = np.bincount(t, pixels, len(true.ids) + 1).astype(np.int64)
        area = np.bincount(p, pixels, len(found.ids) + 1).astype(np.int64)
        if len(empty := np.flatnonzero(area[1:] == 0)):
            number = int(found.ids[empty[0]])
            raise ItemError("unsupported", f"prediction: segment {number} of its list has no pixel")
        in_void = np.bincount(p[t == 0], pixels[t == 0], len(found.ids) + 1).astype(np.int64)
        both = (t > 0) & (p > 0)
        t, p, pixels = t[both], p[both], pixels[both]
        same = true.categories[t - 1] == found.categories[p - 1]
        crowd = true.crowd[t - 1]
        iou = pixels / (area[p] + true_area[t] - pixels - in_void[p])
        match = same & ~crowd & (iou > 0.5)
        self._count(0, true.categories[t[match] - 1], iou[match])
        self._count(1, true.categories[t[match] - 1])
        missed = ~true.crowd
        missed[t[match] - 1] = False
        self._count(3, true.categories[missed])
        np.add.at(in_void, p[same & crowd], pixels[same & crowd])
        wrong = in_void[1:] / area[1:] <= 0.5
        wrong[p[match] - 1] = False
        self._count(2, found.categories[wrong])

    def _count(self, column: int, categories: Ints, values: NDArray[np.float64] | None = None) -> None:
        ones = np.ones(len(categories)) if values is None else values
        for category, value in zip(categories.tolist(), ones.tolist(), strict=True):
            self.sums.setdefault(category, np.zeros(4))[column] += value

    def __add__(self, other: "PanopticScores") -> "PanopticScores":
        """Return the counts of both shards."""
        total = {category: sums.copy() for category, sums in self.sums.items()}
        for category, sums in other.sums.items():
            total[category] = total.get(category, np.zeros(4)) + sums
        return PanopticScores(total)

    def per_class(self) -> dict[int, ClassFigures]:
        """Return the figures of each category that truth or predictions have."""
        found = {}
        for category, sums in sorted(self.sums.items()):
            iou, matched, wrong, missed = sums.tolist()
            if matched + wrong + missed:
                whole = matched + wrong / 2 + missed / 2
                sq = iou / matched if matched else 0.0
                counts = int(matched), int(wrong), int(missed)
                found[category] = ClassFigures(iou / whole, sq, matched / whole, *counts)
        return found

    def compute(self, things: Collection[int]) -> Mapping[str, PanopticFigures]:
        """Return the means over `all`, `things` and `stuff`; things: their category_ids."""
        figures = self.per_class()
        return {
            "all": _mean(list(figures.values())),
            "things": _mean([each for number, each in figures.items() if number in things]),
            "stuff": _mean([each for number, each in figures.items() if number not in things]),
        }


def _mean(figures: Sequence[ClassFigures]) -> PanopticFigures:
    pq, sq, rq = np.mean([each[:3] for each in figures], axis=0).tolist() if figures else [float("nan")] * 3
    return {"pq": pq, "sq": sq, "rq": rq, "classes": len(figures)}
