"""Score files of semantic models -> figures, draws of the bootstrap, and which images to draw.

The images stream by, a chunk of them in memory at a time; of each model one confusion matrix is kept, and for
each draw the weighted sums of hits, true and predicted pixels of each class.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.comparison.choose_images import ImageChoice
from segray.comparison.results import Floats, ModelResult, Results, most_frequent
from segray.comparison.score_file import ImageScore, common_error, in_step
from segray.comparison.settings import CompareSettings
from segray.evaluate.compare_pairs import Problem
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.precision_recall import Resampling, image_hash

Ints = NDArray[np.int64]
DRAWN = ("miou", "dice", "pixel_accuracy")
_CHUNK = 500
"""Images whose counts are in memory at a time."""
_WEIGHTS = 1 << 21
"""Draws x images whose weights are computed at a time."""


class DrawnCounts:
    """For each draw the weighted sum over images of hits, true and predicted pixels of each class.

    They are whole numbers in float64, exact below 2**53.
    """

    def __init__(self, classes: int, draws: int, seed: int) -> None:
        self._draws, self._seed = draws, seed
        self.sums = np.zeros((draws, 3, classes))

    def add(self, names: Sequence[str], counts: Ints) -> None:
        """Add images: counts (n, 3, classes), as `counts_of` returns them."""
        hashes = np.array([image_hash(name) for name in names], np.uint64)
        resampling = Resampling(hashes, self._draws, self._seed)
        flat = counts.reshape(len(names), -1).astype(np.float64)
        step = max(1, _WEIGHTS // max(1, len(names)))
        for start in range(0, self._draws, step):
            stop = min(start + step, self._draws)
            weights = resampling.weights(start, stop).astype(np.float64)
            self.sums[start:stop] += (weights @ flat).reshape(stop - start, *counts.shape[1:])

    def figures(self) -> tuple[dict[str, Floats], Floats]:
        """Return each of DRAWN in each draw, (draws,), and each class's IoU, (draws, classes)."""
        return figures_of(self.sums)


def counts_of(matrix: Ints) -> Ints:
    """Return hits, true and predicted pixels of each class, (…, 3, classes), of confusion matrices.

    matrix: (…, classes, classes + 1), as `SemanticScores` has them.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.stack([hits, matrix.sum(axis=-1), matrix[..., :-1].sum(axis=-2)], axis=-2)


def figures_of(sums: NDArray[np.floating | np.integer]) -> tuple[dict[str, Floats], Floats]:
    """Return DRAWN, (n,) each, and IoU, (n, classes), of sums (n, 3, classes); NaN where nothing counts.

    The formulas are those of `SemanticScores.compute`.
    """
    hits, true, found = (sums[:, part].astype(np.float64) for part in range(3))
    iou, dice = _share(hits, true + found - hits), _share(2 * hits, true + found)
    accuracy = _share(hits.sum(axis=1), true.sum(axis=1))
    return dict(zip(DRAWN, (_mean(iou), _mean(dice), accuracy), strict=True)), iou


def _share(part: Floats, whole: Floats) -> Floats:
    share: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share


def _mean(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


class _Model:
    """What is summed up for one model."""

    def __init__(self, classes: int, draws: int, seed: int) -> None:
        self.total, self.drawn = SemanticScores(classes), DrawnCounts(classes, draws, seed)

    def add(self, names: Sequence[str], scores: Sequence[ImageScore]) -> Floats:
        """Add some images; return the mIoU of each alone, (n,)."""
        matrices = np.stack([each.matrix(self.total.classes) for each in scores])
        self.total.matrix += matrices.sum(axis=0)
        counts = counts_of(matrices)
        self.drawn.add(names, counts)
        return figures_of(counts)[0]["miou"]

    def result(self, classes: Sequence[str]) -> ModelResult:
        """Return the figures over all images and of each class (shares of 1); `classes`: names from 0 up."""
        figures: Any = self.total.compute()
        metrics = {name: value for name, value in figures.items() if name != "per_class"}
        columns = {name: figures["per_class"][name] for name in ("iou", "dice", "recall", "precision")}
        of_classes = {
            name: {column: values[number] for column, values in columns.items()}
            for number, name in enumerate(classes)
        }
        drawn, iou = self.drawn.figures()
        return ModelResult(
            {name: float(metrics[name]) for name in (*DRAWN, "mean_accuracy", "frequency_weighted_iou")},
            of_classes,
            metrics,
            drawn,
            {name: {"iou": iou[:, number]} for number, name in enumerate(classes)},
            {"confusion": self.total.matrix.tolist()},
        )


def semantic_results(
    names: Sequence[str],
    files: Sequence[str],
    classes: Sequence[str],
    settings: CompareSettings,
    choice: ImageChoice,
) -> Results:
    """Return the figures of the models over the images that are in every score file without an error.

    names, files: of each model, and of its score file; choice: collects the images to draw.
    """
    models = [_Model(len(classes), settings.draws, settings.seed) for _ in files]
    problems, sizes, compared = list[Problem](), Counter[tuple[int, int]](), 0
    for chunk in _chunks(in_step(files, settings.storage)):
        good = list[tuple[ImageScore, ...]]()
        for scores in chunk:
            error = common_error(names, scores)
            if error is None:
                good.append(scores)
            else:
                problems.append(Problem(scores[0].name, error))
        if not good:
            continue
        compared += len(good)
        sizes.update(scores[0].size for scores in good)
        images = [scores[0].name for scores in good]
        columns = zip(*good, strict=True)
        alone = [model.add(images, scores) for model, scores in zip(models, columns, strict=True)]
        choice.offer(images, np.stack(alone, axis=1))
    found = [model.result(classes) for model in models]
    return Results(found, compared, problems, choice.chosen(), most_frequent(sizes))


def _chunks(rows: Iterator[tuple[ImageScore, ...]]) -> Iterator[list[tuple[ImageScore, ...]]]:
    waiting = list[tuple[ImageScore, ...]]()
    for row in rows:
        waiting.append(row)
        if len(waiting) == _CHUNK:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
