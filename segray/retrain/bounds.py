"""Bootstrap over images: bounds of a gain, the error level of each look, and the detectable gain."""

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from statistics import NormalDist

import numpy as np

from segray.evaluate.matching import Floats, Ints
from segray.retrain.matches import Matches

POWER = 0.8
"""The share of cases in which a gain of `detectable` is seen."""
_WEIGHTS = 4_000_000
"""Draws x images that are held at a time: 32 MB."""
_ALMOST_NORMAL = 100_000
"""Degrees of freedom from which Student's distribution is the normal one, to five digits."""


def look_level(level: float, look: int, promotions: int = 0) -> float:
    """Return the error probability that look k = 1, 2, 3 … at one holdout may spend.

    With m promotions among the looks before:

        level / (k (k + 1)) / ((m + 1) (m + 2)) / C(k - 1, m)

    The total is spent over the looks, as in Lan and DeMets, "Discrete sequential boundaries for clinical
    trials" (Biometrika 1983); since every look tests another challenger, the union bound joins them, not the
    joint distribution of one growing sample. There are C(k - 1, m) ways in which m of the k - 1 answers
    before were promotions. Over all of them, all m and all k without end, the levels add up to less than
    `level`, since 1 / (k (k + 1)) and 1 / ((m + 1) (m + 2)) both add up to at most 1.

    What that covers. Each challenger, and the champion, may depend on all earlier answers, as long as an
    answer is one bit and nothing else of the holdout reaches training. What can be compared is then a tree
    of answers, settled before the holdout is opened; each comparison in it is paid for, so noise is promoted
    with a probability of at most `level` (Blum and Hardt, "The Ladder", ICML 2015, count answers in this
    way; Dwork et al., "The reusable holdout", Science 2015, show what goes wrong without). With `promotions`
    left at 0 this holds up to the first promotion only.

    What it does not cover. The bounds themselves are approximate on few images (tests simulate them). People
    or programs that train on what the report shows of held-out images. Images that are not independent, as
    neighbours in one scene are. A new version of a holdout that shares most of its images with the old one:
    its looks should go on counting.

    Raises ValueError for a look below 1, or promotions that do not fit before it.
    """
    if look < 1 or not 0 <= promotions < look:
        raise ValueError(
            f"look {look} after {promotions} promotions: looks count from 1, each has one answer"
        )
    ways = math.comb(look - 1, promotions)
    return level / (look * (look + 1)) / ((promotions + 1) * (promotions + 2)) / ways


def seed_of(holdout: str, look: int) -> int:
    """Return the seed of the draws: the same for a rerun, another one at the next look."""
    return int.from_bytes(sha256(f"{holdout}\n{look}".encode()).digest()[:8], "big")


def bootstrap(models: Sequence[Matches], draws: int, seed: int) -> list[Floats]:
    """Return the score of each model in each draw, (draws,): the same images, drawn with replacement."""
    images = len(models[0].images)
    if not images:
        return [np.full(draws, np.nan) for _ in models]
    random, parts = np.random.default_rng(seed), []
    step = max(1, _WEIGHTS // images)
    for start in range(0, draws, step):
        weights = _drawn(random, min(step, draws - start), images)
        parts.append([model.figure(weights) for model in models])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _drawn(random: np.random.Generator, draws: int, images: int) -> Ints:
    """How often each image came, (draws, images); each row adds up to the number of images."""
    chosen = random.integers(images, size=(draws, images)) + np.arange(draws)[:, None] * images
    return np.bincount(chosen.ravel(), minlength=draws * images).reshape(draws, images)


def lower_bound(figure: float, drawn: Floats, level: float, differing: int) -> float:
    """Return what `figure` exceeds but for a probability of `level`, -inf where nothing can be said.

    The lower of two bounds, since each is too bold somewhere: the percentile bound (Efron and Tibshirani
    1993, chapter 13), which knows skewness and resolves nothing below 1 / draws (there it is the lowest
    draw), and Student's bound with the bootstrap's standard error, which resolves any level. `differing` is
    the number of images on which the models differ: its degrees of freedom plus one. A NaN draw counts as
    the worst.
    """
    known = drawn[np.isfinite(drawn)]
    if differing < 2 or len(known) < 2 or not math.isfinite(figure):
        return -math.inf
    if max(1, math.floor(level * (len(drawn) + 1))) <= len(drawn) - len(known):
        return -math.inf
    ordered = np.sort(np.where(np.isfinite(drawn), drawn, -np.inf))
    percentile = float(ordered[max(0, math.floor(level * (len(drawn) + 1)) - 1)])
    student = figure - student_quantile(level, differing - 1) * float(known.std(ddof=1))
    return min(percentile, student)


def interval(drawn: Floats, level: float) -> tuple[float, float]:
    """Return the percentile interval that leaves level / 2 on each side; NaN without any finite draw."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [level / 2, 1 - level / 2])
    return float(low), float(high)


def least_differing(level: float) -> int:
    """Return on how many images two models must differ before any outcome can be significant at `level`.

    If the models were equal, each image would favour either with probability 1/2: even a challenger that wins
    on all n of them has a sign test of 2**-n (Fisher, "The Design of Experiments", 1935).
    """
    return math.ceil(-math.log2(level))


def detectable(standard_error: float, level: float, differing: int, margin: float = 0.0) -> float:
    """Return the true gain that passes the gate in 80 of 100 cases; infinity with fewer than two images.

    margin + (t(level) + z(0.8)) standard errors: the sample size formula of a one-sided test, solved for the
    effect (Cohen, "Statistical Power Analysis", 1988).
    """
    if differing < 2:
        return math.inf
    return margin + (student_quantile(level, differing - 1) + NormalDist().inv_cdf(POWER)) * standard_error


@lru_cache(256)
def student_quantile(tail: float, degrees: int) -> float:
    """Return t with P(T > t) = tail of Student's distribution, to about five digits.

    With t = sqrt(n) tan(a) its density is cos(a)**(n - 1) up to a factor; that is summed on a grid.
    Raises ValueError for fewer than 1 degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    if degrees >= _ALMOST_NORMAL:
        return -NormalDist().inv_cdf(tail)
    edges = np.linspace(np.pi / 2, -np.pi / 2, 400_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1)
    above = np.concatenate(([0.0], density.cumsum())) / density.sum()
    return math.sqrt(degrees) * math.tan(float(np.interp(tail, above, edges)))
