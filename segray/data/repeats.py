"""Repeat factors: how often each item of an epoch is drawn, more often where it has rare classes."""

import numpy as np
from numpy.typing import NDArray


def repeat_factors(counts: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    """Return (items,) float64, how often each is drawn, 1 in the mean; `counts` (items, classes) int64
    pixels.

    Repeat factor sampling of Gupta et al. 2019, LVIS, https://arxiv.org/abs/1908.03195, section 3.4: a class
    that is in a share f of the items has the factor max(1, sqrt(threshold / f)), an item the largest factor
    of its classes. Divided by their mean here, so that the length of an epoch does not change.
    """
    present = counts > 0
    share = present.mean(axis=0)
    asked = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    factors = np.where(present, asked, 1.0).max(axis=1, initial=1.0)
    return np.asarray(factors / factors.mean(), np.float64)


def drawn(repeats: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return (items,) int64 indices in no order, each as often as `repeats`, randomly rounded down or up.

    Systematic sampling: one random number for all, so that the total is exact.
    """
    reached = np.cumsum(repeats) + random.random()
    reached[-1] = len(repeats) + reached[0] - repeats[0]  # not off by a rounding error
    times = np.diff(np.floor(reached), prepend=0.0).astype(np.int64)
    return np.repeat(np.arange(len(repeats)), times)
