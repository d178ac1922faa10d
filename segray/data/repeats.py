"""Which items of an epoch come more often than others, because they hold what is rare."""

import numpy as np
from numpy.typing import NDArray


def repeat_factors(counts: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    """(items,) how often each is to be seen, 1 in the mean; `counts` (items, classes) pixels.

    Repeat factor sampling of Gupta et al. 2019, LVIS, https://arxiv.org/abs/1908.03195, section 3.4: a class
    that is in a share f of the items asks for max(1, sqrt(threshold / f)), an item takes the most that one of
    its classes asks for. Divided by their mean here, so that an epoch stays as long as it is.
    """
    present = counts > 0
    share = present.mean(axis=0)
    asked = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    factors = np.where(present, asked, 1.0).max(axis=1, initial=1.0)
    return np.asarray(factors / factors.mean(), np.float64)


def drawn(repeats: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """(items,) indices in no order, each as often as `repeats` says, rounded down or up by chance.

    Systematic sampling: one random number for all, so that the total is exact.
    """
    reached = np.cumsum(repeats) + random.random()
    reached[-1] = len(repeats) + reached[0] - repeats[0]  # not off by a rounding
    times = np.diff(np.floor(reached), prepend=0.0).astype(np.int64)
    return np.repeat(np.arange(len(repeats)), times)
