"""The choice against plain loops, and in scenes where what is right is known."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from segray.selection.choose import candidates_of, combined, quotas, shares_below, spread

Floats = NDArray[np.float64]


def poured(sizes: list[int], budget: int) -> list[int]:
    """One at a time to the groups in turn, while they have room."""
    given = [0] * len(sizes)
    for group in itertools.cycle(range(len(sizes))):
        if sum(given) == min(budget, sum(sizes)):
            return given
        given[group] += given[group] < sizes[group]
    return given


def test_quotas_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        sizes = rng.integers(0, 9, rng.integers(1, 6)).tolist()
        assert quotas(sizes, budget := int(rng.integers(1, 30))) == poured(sizes, budget)


def test_shares_below_are_those_of_a_plain_loop() -> None:
    values = np.array([3, 1, np.nan, 1, 2, 0, 3], np.float32)
    known = values[~np.isnan(values)]
    plain = [np.nan if np.isnan(each) else (known < each).sum() / (len(known) - 1) for each in values]
    np.testing.assert_allclose(shares_below(values), plain)
    one = np.array([0.5, np.nan])
    np.testing.assert_allclose(combined([one, np.array([1.0, np.nan])]), [0.75, 0])
    np.testing.assert_allclose(combined([one, np.array([np.nan, 0.4])]), [0.5, 0.4])


def reference(score: Floats, features: Floats, budget: int, rng: np.random.Generator) -> list[int]:
    """Weighted k-means++ by the letter: all distances anew in each step."""
    chosen = [int(score.argmax())]
    while len(chosen) < budget:
        gaps = [min(((row - features[each]) ** 2).sum() for each in chosen) for row in features]
        likely = np.array(gaps) * score**2
        likely[chosen] = 0
        ends = np.cumsum(likely)
        chosen.append(int(np.argmax(ends > rng.random() * ends[-1])))
    return chosen


def test_spread_is_weighted_k_means_plus_plus() -> None:
    rng = np.random.default_rng(2)
    for seed in range(10):
        score, features = rng.uniform(0.1, 1, 40), rng.normal(size=(40, 5)).astype(np.float32)
        found = spread(score, np.zeros(40, np.int32), features, None, [12], np.random.default_rng(seed))
        assert found.index.tolist() == reference(
            score, features.astype(np.float64), 12, np.random.default_rng(seed)
        )
        assert np.isnan(found.distance[0])
        nearest = np.linalg.norm(features[found.index[5]] - features[found.index[:5]], axis=1).min()
        assert found.distance[5] == pytest.approx(nearest, rel=1e-5)


def test_of_near_copies_one_is_chosen() -> None:
    """Eight kinds of images, thirty copies each, with the same score."""
    rng = np.random.default_rng(3)
    kinds = np.repeat(10 * np.eye(8, dtype=np.float32), 30, axis=0)
    features = kinds + rng.normal(0, 0.01, kinds.shape).astype(np.float32)
    for seed in range(20):
        found = spread(
            np.ones(240), np.zeros(240, np.int32), features, None, [8], np.random.default_rng(seed)
        )
        assert {each // 30 for each in found.index.tolist()} == set(range(8))


def test_what_is_like_a_labelled_image_comes_last() -> None:
    features = np.repeat(10 * np.eye(3, dtype=np.float32), [50, 2, 2], axis=0)
    features += np.random.default_rng(4).normal(0, 0.01, features.shape).astype(np.float32)
    labelled = 10 * np.eye(3, dtype=np.float32)[:1]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found = spread(np.ones(54), np.zeros(54, np.int32), features, labelled, [2], rng)
        assert found.index.min() >= 50
        assert len({(each - 50) // 2 for each in found.index.tolist()}) == 2


def test_without_features_the_scores_decide() -> None:
    score = np.random.default_rng(5).uniform(size=30)
    found = spread(score, np.zeros(30, np.int32), None, None, [30], np.random.default_rng(0))
    assert found.index.tolist() == np.argsort(-score).tolist()
    assert np.isnan(found.distance).all()


def test_groups_take_turns() -> None:
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(3, dtype=np.int32), [50, 5, 20])
    features = rng.normal(size=(75, 4)).astype(np.float32)
    budgets = quotas([50, 5, 20], 24)
    found = group[spread(rng.uniform(size=75), group, features, None, budgets, rng).index]
    assert np.bincount(found).tolist() == budgets == [10, 5, 9]
    assert sorted(found[:3].tolist()) == [0, 1, 2]
    assert np.abs(np.bincount(found[:12], minlength=3) - np.array(budgets) / 2).max() <= 1


def test_equal_images_are_all_chosen_once() -> None:
    features = np.zeros((6, 3), np.float32)
    found = spread(np.zeros(6), np.zeros(6, np.int32), features, None, [6], np.random.default_rng(0))
    assert sorted(found.index.tolist()) == list(range(6))


def test_candidates_are_the_most_unsure_of_each_group() -> None:
    rng = np.random.default_rng(7)
    score, group = rng.uniform(size=400), (np.arange(400) % 2).astype(np.int32)
    score[rng.choice(400, 50)] = np.nan
    found = candidates_of(score, group, [3, 2], 50, rng)
    for number, wanted in ((0, 30), (1, 20)):
        own = np.where(group == number, score, np.nan)
        assert set(found[group[found] == number]) == set(np.argsort(-np.nan_to_num(own, nan=-1))[:wanted])
    assert len(candidates_of(score, group * 0, [5], None, rng)) == 50
    assert len(candidates_of(score[:60], group[:60] * 0, [10], None, rng)) == max(
        20, (~np.isnan(score[:60])).sum() // 2
    )


def test_ties_are_drawn_by_the_seed() -> None:
    score, group = np.zeros(1000), np.zeros(1000, np.int32)
    found = [candidates_of(score, group, [5], 50, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert found[0].tolist() == found[1].tolist() != found[2].tolist()
    assert found[0].max() > 500
