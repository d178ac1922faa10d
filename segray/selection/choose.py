"""From measures to a choice: the most unsure images first, different ones among them, groups alike.

Uncertainty alone takes near copies of one hard image, spread alone takes outliers. So the most unsure are
candidates (Zhdanov, 2019, arXiv 1901.05954: informativeness first, then diversity), and among them images are
drawn one by one with probability proportional to (score x distance)^2, where distance is that from the
nearest image that is chosen or labelled: k-means++ (Arthur and Vassilvitskii, 2007), as BADGE uses it for
active learning (Ash et al., 2020), with weights.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_FACTOR = 10
"""Candidates for each image of the budget: where there are so many, near copies are left out cheaply."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choice, k images in the order in which they were drawn."""

    index: Ints
    """(k,) index in the pool."""
    distance: Floats
    """(k,) distance from the nearest image chosen before, or labelled; NaN where there is none."""


def shares_below(values: NDArray[np.float32]) -> Floats:
    """Return for each value the share of the others that are smaller, 0..1; NaN remains NaN."""
    known = np.sort(values[~np.isnan(values)])
    found = np.searchsorted(known, values, side="left") / max(1, len(known) - 1)
    shares: Floats = np.where(np.isnan(values), np.nan, found)
    return shares


def combined(shares: Sequence[Floats]) -> Floats:
    """Return the mean over the criteria that an image has, 0 without any; each (n,)."""
    if not shares:
        raise ValueError("no criterion")
    table = np.stack(shares)
    known = ~np.isnan(table)
    mean: Floats = np.where(known, table, 0).sum(0) / known.sum(0).clip(min=1)
    return mean


def quotas(sizes: Sequence[int], budget: int) -> list[int]:
    """Split a budget over groups of these sizes: alike, and what a small group lacks goes to the others.

    Of what cannot be divided the first groups get one more.
    """
    total = min(budget, sum(sizes))
    levels = range(1, max(sizes, default=0) + 1)
    level = bisect_right(levels, total, key=lambda each: sum(min(size, each) for size in sizes))
    given = [min(size, level) for size in sizes]
    for group in [group for group, size in enumerate(sizes) if size > level][: total - sum(given)]:
        given[group] += 1
    return given


def candidates_of(
    score: Floats,
    group: NDArray[np.int32],
    budgets: Sequence[int],
    most: int | None,
    rng: np.random.Generator,
) -> Ints:
    """Return the most unsure images of each group, in the order of the pool; ties are drawn.

    score: (n,), NaN for images that cannot be selected. most: candidates altogether; None: see `_number`.
    """
    rows = np.flatnonzero(~np.isnan(score))
    rows = rows[np.lexsort((rng.random(len(rows)), -score[rows], group[rows]))]
    ends = np.searchsorted(group[rows], np.arange(len(budgets) + 1))
    found = []
    for budget, first, last in zip(budgets, ends, ends[1:], strict=False):
        wanted = _number(last - first, budget) if most is None else max(budget, most * budget // sum(budgets))
        found.append(rows[first:last][:wanted])
    return np.sort(np.concatenate(found))


def _number(images: int, budget: int) -> int:
    """Return how many candidates a group has: 10 x budget, but not more than half of it, or 2 x budget."""
    return min(_FACTOR * budget, max(2 * budget, images // 2))


def spread(
    score: Floats,
    group: NDArray[np.int32],
    features: NDArray[np.float32] | None,
    labelled: NDArray[np.float32] | None,
    budgets: Sequence[int],
    rng: np.random.Generator,
) -> Chosen:
    """Draw from m candidates until each group has its budget.

    score: (m,) above 0 counts; group: (m,); features: (m, f), labelled: (k, f) of images that are labelled
    already, both None without features. The most unsure image comes first, and groups take turns.
    """
    near = _nearest(len(score), features, labelled)
    free, taken = np.ones(len(score), bool), np.zeros(len(budgets), np.int64)
    share = np.array([max(1, budget) for budget in budgets])
    index, distance = list[int](), list[float]()
    for _ in range(sum(budgets)):
        turn = np.where(taken < np.array(budgets), taken / share, np.inf).argmin()
        weight = np.where(free & (group == turn), np.maximum(score, 1e-3) ** 2, 0.0)
        pick = _drawn(weight, near, rng)
        index.append(pick)
        distance.append(float(np.sqrt(near[pick])) if np.isfinite(near[pick]) else float("nan"))
        free[pick] = False
        taken[turn] += 1
        if features is not None:
            near = np.minimum(near, _squares(features, features[pick]))
    return Chosen(np.array(index, np.int64), np.array(distance, np.float64))


def _drawn(weight: Floats, near: Floats, rng: np.random.Generator) -> int:
    """Return the row that is drawn by weight x squared distance; without distances that of most weight."""
    if not np.isfinite(near[weight > 0]).any():
        return int(weight.argmax())
    likely = weight * np.where(np.isfinite(near), near, 1.0)
    if not likely.any():  # all that are left equal a chosen one
        likely = weight
    total = np.cumsum(likely)
    row = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
    return row if row < len(likely) and likely[row] > 0 else int(likely.argmax())


def _nearest(
    images: int, features: NDArray[np.float32] | None, labelled: NDArray[np.float32] | None
) -> Floats:
    """Return each candidate's squared distance from the nearest labelled image; infinite without one."""
    near = np.full(images, np.inf)
    if features is not None and labelled is not None:
        for row in labelled:
            near = np.minimum(near, _squares(features, row))
    return near


def _squares(features: NDArray[np.float32], one: NDArray[np.float32]) -> Floats:
    """Return squared distances of m rows from one, float64 (m,); infinite where features are missing."""
    found = ((features - one) ** 2).sum(1, dtype=np.float64)
    return np.where(np.isnan(found), np.inf, found)
