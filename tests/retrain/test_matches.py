"""AP and mIoU of weighted images against pycocotools and summed matrices on images really repeated."""

import math
import time
import tracemalloc

import numpy as np
import pytest

from segray.evaluate.average_precision import InstanceScores
from segray.evaluate.confusion_matrix import SemanticScores
from segray.retrain.matches import ConfusionMatrices, InstanceMatches, average_precision
from tests.retrain.made import SIDE, dense_matches, disc, draws, random_scores, repeated


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_weights_of_one_are_pycocotools(seed: int, ties: bool) -> None:
    scores = random_scores(seed, ties=ties)
    assert average_precision(InstanceMatches.of(scores)) == pytest.approx(scores.compute()["ap"], abs=1e-12)
    assert 0.1 < scores.compute()["ap"] < 0.9


@pytest.mark.parametrize("most", [1, 3])
def test_most_detections_an_image(most: int) -> None:
    scores = random_scores(3)
    few = scores.compute(most)["ap"]
    assert average_precision(InstanceMatches.of(scores, most)) == pytest.approx(few, abs=1e-12)
    assert few != scores.compute()["ap"]


def test_boxes() -> None:
    scores = random_scores(4)
    boxes = scores.figures("bbox", 500).overall["ap"]
    assert average_precision(InstanceMatches.of(scores, kind="bbox")) == pytest.approx(boxes, abs=1e-12)
    assert boxes != scores.compute()["ap"]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repeated_images(seed: int, ties: bool) -> None:
    scores = random_scores(seed, ties=ties)
    matches, weights = InstanceMatches.of(scores), draws(seed, 8, 12)
    expected = [repeated(scores, row.tolist()).compute()["ap"] for row in weights]
    assert matches.figure(weights) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert len({round(ap, 6) for ap in expected}) == len(expected)


def test_many_draws_are_the_same_one_by_one() -> None:
    """Draws are ranked in blocks."""
    matches, weights = dense_matches(1, 40, 30), draws(1, 700, 40)
    together = matches.figure(weights)
    assert together.tolist() == [average_precision(matches, row) for row in weights]
    assert together.std() > 0.001


def test_a_category_without_truth_in_a_draw_leaves_the_mean() -> None:
    scores = InstanceScores()
    for name, category, moved in (("a", 1, 0.0), ("b", 2, 30.0)):
        scores.add_image(name, (SIDE, SIDE))
        scores.add_truth(name, disc(40, 40, 8), category)
        scores.add_prediction(name, disc(40 + moved, 40, 8), category, 0.5)
    scores.add_image("c", (SIDE, SIDE))
    weights = np.array([[1, 1, 1], [2, 0, 0], [0, 1, 1], [0, 0, 3]])
    assert InstanceMatches.of(scores).figure(weights) == pytest.approx([0.5, 1, 0, math.nan], nan_ok=True)


def test_nothing_at_all() -> None:
    empty = InstanceMatches.of(InstanceScores())
    assert np.isnan(empty.figure(np.zeros((2, 0), np.int64))).all()
    scores = InstanceScores()
    scores.add_image("a", (SIDE, SIDE))
    assert math.isnan(average_precision(InstanceMatches.of(scores)))
    scores.add_prediction("a", disc(40, 40, 8), 1, 0.5)
    assert math.isnan(average_precision(InstanceMatches.of(scores)))


def test_which_images_differ() -> None:
    scores, other = random_scores(5), random_scores(5)
    other.predictions[3]["score"] += 0.001
    other.predictions.pop()
    places = sorted({sorted(other.images).index(scores.predictions[n]["image_id"]) for n in (3, -1)})
    found = InstanceMatches.of(scores).differing(InstanceMatches.of(other))
    assert np.flatnonzero(found).tolist() == places
    assert not InstanceMatches.of(scores).differing(InstanceMatches.of(scores)).any()


@pytest.mark.parametrize("weights", [[[1, 2]], [[1.0] * 40], [[-1] * 40], [1] * 40])
def test_wrong_weights_are_refused(weights: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="weight"):
        dense_matches(1, 40, 3).figure(np.array(weights))


def test_ten_thousand_draws_are_quick_and_small() -> None:
    """65 images x 50 detections: 3 s of processor time on an idle core, 20 s at most; 500 MB."""
    matches, weights = dense_matches(2, 65, 50), draws(2, 10_000, 65)
    tracemalloc.start()
    start = time.process_time()
    matches.figure(weights)
    assert time.process_time() - start < 20
    assert tracemalloc.get_traced_memory()[1] < 500 << 20
    tracemalloc.stop()


def pictures(seed: int, number: int = 5) -> dict[str, SemanticScores]:
    random = np.random.default_rng(seed)
    scores = {}
    for name in range(number):
        truth = random.choice([0, 1, 2, 255], (20, 20), p=[0.6, 0.3, 0.05, 0.05])
        found = np.where(random.random((20, 20)) < 0.8, truth, random.choice([0, 1, 3, 255], (20, 20)))
        scores[str(name)] = SemanticScores(4)
        scores[str(name)].add(truth, found)
    return scores


def test_miou_of_repeated_images() -> None:
    scores = pictures(1)
    matrices, weights = ConfusionMatrices.of(scores), draws(1, 20, 5)
    expected = []
    for row in weights:
        total = SemanticScores(4)
        for name, weight in zip(sorted(scores), row, strict=True):
            total = sum([scores[name]] * int(weight), total)
        expected.append(total.compute()["miou"])
    assert matrices.figure(weights) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < min(expected) < max(expected) < 0.9


def test_miou_edges() -> None:
    scores = pictures(2)
    scores["void"] = SemanticScores(4)
    matrices = ConfusionMatrices.of(scores)
    assert np.isnan(matrices.figure(np.array([[0, 0, 0, 0, 0, 3]]))).all()
    assert np.isnan(ConfusionMatrices.of({}).figure(np.zeros((2, 0), np.int64))).all()
    other = ConfusionMatrices.of(pictures(2) | {"3": pictures(7)["3"], "void": scores["void"]})
    assert matrices.differing(other).tolist() == [False, False, False, True, False, False]
    with pytest.raises(ValueError, match="different classes"):
        ConfusionMatrices.of({"a": SemanticScores(2), "b": SemanticScores(3)})
