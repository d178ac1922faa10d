"""Divergence of two distributions over the same bins, and the divergence of noise alone."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from segray.drift.profile import Counts

Shares = NDArray[np.float64]

LEAST_SHARE = 0.1
"""Neighbouring bins are merged until one has this share of both samples: at most ten bins, as usual."""
LEAST_CLASS = 0.01
LEAST_EXPECTED = 5
"""Expected number of independent values in a bin for the chi-square approximation (Cochran, Some methods for
strengthening the common chi-square tests, 1954)."""


def psi(run: Counts, against: Counts) -> float:
    """Return the population stability index of counts (bins,), sum of (p - q) ln(p / q): 0 for equal shares.

    Siddiqi, Credit Risk Scorecards (2006); it is Jeffreys' divergence, in nats, unbounded. An empty bin on
    one side would make it infinite, so half a value is added to each bin (Krichevsky and Trofimov, The
    performance of universal encoding, 1981): p = (n_i + 1/2) / (n + bins / 2).
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (run, against))
    return float(np.sum((p - q) * np.log(p / q)))


def js(run: Counts, against: Counts) -> float:
    """Return the Jensen-Shannon divergence of counts (bins,) in bits: 0 for equal, 1 for disjoint shares.

    Lin, Divergence measures based on the Shannon entropy (1991): the mean, over both sides, of the
    Kullback-Leibler divergence from their mean; an empty bin adds nothing. Needs a value on each side.
    """
    p, q = run / run.sum(), against / against.sum()
    middle = (p + q) / 2
    return max(0.0, (_kullback_leibler(p, middle) + _kullback_leibler(q, middle)) / 2)


def _kullback_leibler(p: Shares, q: Shares) -> float:
    held = p > 0
    return float(np.sum(p[held] * np.log2(p[held] / q[held])))


def psi_of_noise(bins: int, run: float, against: float, chance: float) -> float:
    """Return the value that the index of two samples of one distribution exceeds with this probability.

    It is about (1 / run + 1 / against) times a chi-square variable with bins - 1 degrees of freedom, for
    samples of `run` and `against` independent values (Yurdakul and Naranjo, Statistical properties of the
    population stability index, 2020).
    """
    return chi_square(bins - 1, chance) * (1 / run + 1 / against) if bins > 1 else 0.0


def js_of_noise(bins: int, run: float, against: float, chance: float) -> float:
    """Return the value that the divergence of two such samples exceeds with this probability.

    Near equality both are the same sum of squares, the divergence 1 / (8 ln 2) of the index.
    """
    return psi_of_noise(bins, run, against, chance) / (8 * math.log(2))


def chi_square(degrees: int, chance: float) -> float:
    """Return the value that a chi-square variable exceeds with this probability, from 3 degrees within 1 %.

    By the cube root's normal approximation (Wilson and Hilferty, The distribution of chi-square, 1931).
    """
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + NormalDist().inv_cdf(1 - chance) * math.sqrt(spread)) ** 3)


def merged_bins(run: Counts, against: Counts, values: float) -> list[tuple[int, int]]:
    """Return (first, last) of the neighbouring bins to merge, from counts (bins,) of both samples.

    values: number of independent values of the smaller sample. A merged bin has at least `LEAST_SHARE` of the
    mean of both sides' shares and `LEAST_EXPECTED` expected values; the rest goes to the last one.
    """
    least = max(LEAST_SHARE, LEAST_EXPECTED / values)
    mean = _mean_share(run, against)
    merged: list[tuple[int, int]] = []
    first, held = 0, 0.0
    for index, share in enumerate(mean):
        held += float(share)
        if held >= least - 1e-12:
            merged.append((first, index))
            first, held = index + 1, 0.0
    if first < len(mean):
        start, _ = merged.pop() if merged else (0, 0)
        merged.append((start, len(mean) - 1))
    return merged


def common_classes(run: Counts, against: Counts, values: float) -> NDArray[np.bool_]:
    """Return which classes, bool (classes,), are compared by themselves; the others are merged into one."""
    enough: NDArray[np.bool_] = _mean_share(run, against) >= max(LEAST_CLASS, LEAST_EXPECTED / values)
    return enough


def _mean_share(run: Counts, against: Counts) -> Shares:
    shares: Shares = (run / run.sum() + against / against.sum()) / 2
    return shares
