"""Curves and thresholds against COCOeval and a plain loop; intervals against images really repeated."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray.evaluate.precision_recall import Category, Resampling, image_hash, ranked
from tests.evaluate.random_coco import RandomSet
from tests.evaluate.test_matching import scores_of
from tests.retrain.made import random_scores, repeated


def categories(made: RandomSet) -> dict[int, Category]:
    return dict(ranked(scores_of(made).matches("segm"), "segm", 100))


@pytest.mark.parametrize("seed", [2, 5, 7])
def test_curves_are_those_of_pycocotools(seed: int) -> None:
    made = RandomSet(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = made.truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(row) for row in made.results]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    compared = 0
    for place, number in enumerate(evaluation.params.catIds):
        expected = evaluation.eval["precision"][:, :, place, 0, -1]
        if number not in categories(made) or expected.max() < 0:
            continue
        category, reached = categories(made)[number], expected > 0
        np.testing.assert_allclose(category.precision(0), expected, atol=1e-12)
        for iou in (0, 5):
            precision, scores = category.curve(iou)
            np.testing.assert_allclose(precision, expected[iou], atol=1e-12)
            above = reached[iou] & (np.arange(101) > 0)  # at 0 COCOeval has the first score
            theirs = evaluation.eval["scores"][iou, :, place, 0, -1]
            np.testing.assert_allclose(scores[above], theirs[above], atol=1e-12)
            compared += above.sum()
    assert compared > 20


@pytest.mark.parametrize("seed", [2, 5, 7])
def test_the_best_threshold_is_that_of_a_plain_loop(seed: int) -> None:
    found = 0
    for category in categories(RandomSet(seed)).values():
        hits, counted = category.hits(0, 0)
        true = np.isin(np.arange(len(category.score)), hits)
        kept = np.ones(len(true), bool) if counted is None else counted
        rows: list[tuple[float, ...]] = []
        for score in sorted({*category.score.tolist()}, reverse=True):
            sure = category.score >= score
            right, number = (sure & true).sum(), (sure & kept).sum()
            rows.append((2 * right / max(number + category.truth(0)[0], 1), -len(rows), score))
        best = category.best_f1()
        if rows:
            assert (best.f1, best.score) == pytest.approx((max(rows)[0], max(rows)[2]))
            found += best.f1 > 0
    assert found


def test_draws_are_images_repeated() -> None:
    scores = random_scores(3)
    names = sorted(scores.images)
    resampling = Resampling(np.array([image_hash(name) for name in names], np.uint64), 30, 7)
    weights = resampling.weights(0, 30)
    expected = []
    for row in weights.tolist():
        found = repeated(scores, row).figures("segm").overall
        expected.append([found[name] for name in ("ap", "ap50", "ap75", "ar")])
    overall, _ = resampling.intervals(dict(ranked(scores.matches("segm"), "segm", 100)))
    bounds = np.percentile(expected, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(list(overall.values()), bounds, atol=1e-12)
    assert overall["ap"][0] < scores.figures("segm").overall["ap"] < overall["ap"][1]


def test_weights_are_poisson_and_belong_to_the_name() -> None:
    hashes = np.array([image_hash(f"{number}.jpg") for number in range(2_000)], np.uint64)
    weights = Resampling(hashes, 100, 0).weights(0, 100)
    for count, share in enumerate((0.3679, 0.3679, 0.1839, 0.0613)):
        assert (weights == count).mean() == pytest.approx(share, abs=0.005)
    assert np.abs(np.corrcoef(weights.astype(float)) - np.eye(100)).max() < 0.12
    np.testing.assert_array_equal(Resampling(hashes[:50], 100, 0).weights(3, 9), weights[3:9, :50])
    assert (Resampling(hashes, 100, 1).weights(0, 100) != weights).mean() > 0.5
