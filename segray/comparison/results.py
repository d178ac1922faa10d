"""What is known of each model once all are scored, and how the others differ from the first.

A draw of the bootstrap gives every image a weight that depends on its name, the draw and the seed alone
(`evaluate.precision_recall.Resampling`). All models are drawn over the same images with the same weights, so
the difference of two models' figures in a draw is a paired difference, and its percentiles are an interval
in which what is hard for both has cancelled.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.evaluate.compare_pairs import Problem
from segray.evaluate.precision_recall import bounds

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """The figures of one model over the images that all models could do."""

    overall: Mapping[str, float]
    """In 0..1; the first one is the figure that models are compared by."""
    classes: Mapping[str, Mapping[str, float]]
    """Class -> figures, the first likewise."""
    metrics: Mapping[str, Any]
    """All figures, as metrics.json of `segray evaluate` has them."""
    drawn: Mapping[str, Floats]
    """Figure -> its value in each draw, (draws,); of some of `overall`."""
    class_drawn: Mapping[str, Mapping[str, Floats]]
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further entries for metrics.json."""


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """An image to draw."""

    name: str
    scores: tuple[float, ...]
    """Of each model on this image alone: mIoU, or F1 of instances at IoU 0.5; NaN where there is none."""
    why: str


@dataclass(frozen=True, slots=True)
class Results:
    """The figures of all models."""

    models: Sequence[ModelResult]
    compared: int
    """Images in the scores."""
    problems: Sequence[Problem]
    """The others."""
    images: Sequence[ChosenImage]
    size: tuple[int, int]
    """Most frequent height and width of the images."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs on this device; figures are None where it could not be measured."""

    input: tuple[int, int]
    """Height and width of the images."""
    images_per_s: float | None = None
    """Median of the rounds."""
    rates: tuple[float, ...] = ()
    """Of each round."""
    peak_bytes: int | None = None
    """The most of any round."""
    loaded_bytes: int | None = None
    gflops: float | None = None
    error: str | None = None


def most_frequent(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    """Return the size that most images have, of equally frequent ones the largest; (0, 0) without any."""
    return max(sizes, key=lambda each: (sizes[each], each)) if sizes else (0, 0)


def intervals(drawn: Mapping[str, Floats]) -> dict[str, list[float]]:
    """Return low and high of each figure, of 95 percent of the draws; empty without draws."""
    return {name: bounds(each) for name, each in drawn.items() if len(each)}


def differences(
    figures: Mapping[str, float],
    drawn: Mapping[str, Floats],
    first: Mapping[str, float],
    first_drawn: Mapping[str, Floats],
) -> dict[str, dict[str, float]]:
    """Return for each figure that is drawn the difference to the first model, with low and high."""
    found = {}
    for name, each in drawn.items():
        if name not in first_drawn:
            continue
        found[name] = {"difference": figures[name] - first[name]}
        if len(each):
            low, high = bounds(each - first_drawn[name])
            found[name] |= {"low": low, "high": high}
    return found
