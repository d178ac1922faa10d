"""Scores of semantic segmentation, as an accumulator that adds: shards are counted apart and merged.

All figures are computed from one confusion matrix. A pixel whose truth is `ignore_index` is left out. A
prediction that is not a class (a model's or a file's own void, 255 say) is wrong: it is counted in an extra
last column, where it lowers recall, IoU and Dice of the true class and is not a false positive of any other.
"""

from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segray.palette import VOID

_NO_CLASS = 255
"""The value of predictions that are not a class, while pixels are counted."""

Ints = NDArray[np.int64]


class PerClass(TypedDict):
    """One figure in 0..1 for each class, by its index; NaN where the denominator is 0."""

    iou: list[float]
    dice: list[float]
    recall: list[float]
    """The accuracy of the class: the share of its true pixels that were predicted."""
    precision: list[float]


class SemanticFigures(TypedDict):
    """Figures in 0..1; NaN where no pixel counts."""

    pixels: int
    """Number of pixels that count."""
    pixel_accuracy: float
    mean_accuracy: float
    miou: float
    dice: float
    frequency_weighted_iou: float
    per_class: PerClass


class SemanticScores:
    """The pixels counted so far; `a + b` holds those of both."""

    def __init__(self, classes: int, ignore_index: int = VOID, matrix: ArrayLike | None = None) -> None:
        """Start with zeros, or with a copy of counts, int64 (classes, classes + 1).

        Raises ValueError for a number of classes outside 1..255 and for a matrix of another shape.
        """
        if not 1 <= classes <= _NO_CLASS:
            raise ValueError(f"{classes} classes: 1 to {_NO_CLASS} can be scored")
        shape = (classes, classes + 1)
        self.classes, self.ignore_index = classes, ignore_index
        self.matrix: Ints = np.zeros(shape, np.int64) if matrix is None else np.array(matrix, np.int64)
        """(classes, classes + 1) int64 pixels: rows are truth, columns prediction, the last one 'no class'.

        `torch.from_numpy` shares its memory, so an all-reduce of that tensor in place merges the ranks.
        """
        if self.matrix.shape != shape or (self.matrix < 0).any():
            raise ValueError(f"a matrix of shape {self.matrix.shape} does not count {classes} classes")

    def add(self, truth: ArrayLike, prediction: ArrayLike) -> None:
        """Count class indices, two integer arrays (or CPU tensors) of one shape; uint8 is the fastest.

        Raises ValueError, and counts nothing, for other shapes or types and for a truth that is neither a
        class nor `ignore_index`.
        """
        true, found = np.asarray(truth), np.asarray(prediction)
        if true.shape != found.shape:
            raise ValueError(f"truth of shape {true.shape}, prediction of shape {found.shape}")
        for name, values in (("truth", true), ("prediction", found)):
            if values.dtype.kind not in "iub":
                raise ValueError(f"{name} is {values.dtype}, not class indices")
        pairs = self._true_bytes(true).astype(np.uint16) << 8 | self._found_bytes(found)
        counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        unknown = np.flatnonzero(counts[self.classes : _NO_CLASS].any(axis=1))
        if len(unknown):
            raise self._unknown(self.classes + int(unknown[0]))
        self.matrix[:, :-1] += counts[: self.classes, : self.classes]
        self.matrix[:, -1] += counts[: self.classes, self.classes :].sum(axis=1)

    def __add__(self, other: "SemanticScores") -> "SemanticScores":
        """Return the counts of both shards. Raises ValueError if they were counted by different rules."""
        if (self.classes, self.ignore_index) != (other.classes, other.ignore_index):
            raise ValueError(
                f"{self.classes} classes (ignoring {self.ignore_index}) and {other.classes} classes "
                f"(ignoring {other.ignore_index}) do not add"
            )
        return SemanticScores(self.classes, self.ignore_index, self.matrix + other.matrix)

    def compute(self) -> SemanticFigures:
        """Return all figures; a class that is in neither truth nor prediction is left out of the means.

        With n_ij the pixels of true class i predicted as j, t_i those of true class i and f_i those predicted
        as i (both among the pixels that count), after Long, Shelhamer and Darrell, "Fully Convolutional
        Networks for Semantic Segmentation" (CVPR 2015, section 5): pixel accuracy is sum(n_ii) / sum(t_i),
        mean accuracy the mean of n_ii / t_i over the classes with truth, IoU_i = n_ii / (t_i + f_i - n_ii),
        `miou` its mean, and frequency-weighted IoU sum(t_i IoU_i) / sum(t_i). Dice_i = 2 n_ii / (t_i + f_i)
        (Dice 1945; the F1 score), and `dice` is its mean.
        """
        hits, true, found = self.matrix.diagonal(), self.matrix.sum(axis=1), self.matrix[:, :-1].sum(axis=0)
        pixels = int(true.sum())
        iou, dice = _shares(hits, true + found - hits), _shares(2 * hits, true + found)
        recall, precision = _shares(hits, true), _shares(hits, found)
        return {
            "pixels": pixels,
            "pixel_accuracy": float(hits.sum()) / pixels if pixels else float("nan"),
            "mean_accuracy": _mean(recall),
            "miou": _mean(iou),
            "dice": _mean(dice),
            "frequency_weighted_iou": float(np.nansum(true * iou)) / pixels if pixels else float("nan"),
            "per_class": {
                "iou": iou.tolist(),
                "dice": dice.tolist(),
                "recall": recall.tolist(),
                "precision": precision.tolist(),
            },
        }

    def _true_bytes(self, true: NDArray[Any]) -> NDArray[np.uint8]:
        if true.dtype == np.uint8 and self.ignore_index == _NO_CLASS:
            return true  # other unknown values appear in the counts
        ignored = true == self.ignore_index
        unknown = ((true < 0) | (true >= self.classes)) & ~ignored
        if unknown.any():
            raise self._unknown(int(true[unknown].flat[0]))
        return np.where(ignored, _NO_CLASS, true).astype(np.uint8)

    def _found_bytes(self, found: NDArray[Any]) -> NDArray[np.uint8]:
        if found.dtype == np.uint8:
            return found
        return np.where((found < 0) | (found >= self.classes), _NO_CLASS, found).astype(np.uint8)

    def _unknown(self, value: int) -> ValueError:
        return ValueError(
            f"truth holds {value}: neither a class (0 to {self.classes - 1}) nor {self.ignore_index}, "
            "which is ignored"
        )


def _shares(part: Ints, whole: Ints) -> NDArray[np.float64]:
    """Return part / whole (classes,) float64, NaN where whole is 0."""
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
