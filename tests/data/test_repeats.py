"""Repeat factors against a hand-computed example, and the orders that are drawn by them."""

import numpy as np

from segray.data.repeats import repeat_factors
from segray.train.sampler import order_of


def test_rare_classes_ask_for_the_root_of_what_is_missing() -> None:
    """Of four items all have class 0, one has class 1: f = 1/4, threshold 1 asks for 2."""
    counts = np.array([[9, 0], [9, 0], [5, 4], [9, 0]])
    np.testing.assert_allclose(repeat_factors(counts, 1.0), np.array([1, 1, 2, 1]) / 1.25)
    np.testing.assert_allclose(repeat_factors(counts, 0.25), np.ones(4))


def test_an_epoch_stays_as_long_and_shows_each_as_often_as_is_asked() -> None:
    repeats = repeat_factors(np.array([[9, 0]] * 7 + [[5, 4]]), 1.0)
    seen = np.zeros(8)
    for epoch in range(2000):
        order = order_of(8, 5, epoch, repeats)
        assert len(order) == 8
        seen += np.bincount(order, minlength=8)
    np.testing.assert_allclose(seen / 2000, repeats, atol=0.04)
    assert order_of(8, 5, 3, repeats).tolist() == order_of(8, 5, 3, repeats).tolist()
    assert order_of(8, 5, 3, repeats).tolist() != order_of(8, 5, 4, repeats).tolist()
    assert sorted(order_of(8, 5, 3)) == list(range(8))
