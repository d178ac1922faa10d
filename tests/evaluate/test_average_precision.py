"""COCO mask AP against a case worked by hand and against COCOeval called directly."""

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray.evaluate.average_precision import InstanceScores
from segray.masks.types import Rle

SIZE = (120, 160)


def rectangle(x: int, y: int, width: int, height: int) -> Rle:
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle: Rle = coco_mask.encode(mask)
    return rle


def scene(
    image_id: str,
    truth: list[tuple[int, int, int, int]],
    found: list[tuple[tuple[int, int, int, int], float]],
) -> InstanceScores:
    scores = InstanceScores()
    scores.add_image(image_id, SIZE)
    for box in truth:
        scores.add_truth(image_id, rectangle(*box), 1)
    for box, score in found:
        scores.add_prediction(image_id, rectangle(*box), 1, score)
    return scores


def random_scene(image_id: str, seed: int, count: int = 12) -> InstanceScores:
    """Boxes of all COCO sizes in two categories; predictions are moved copies, some lost, some false."""
    random = np.random.default_rng(seed)
    scores = InstanceScores()
    scores.add_image(image_id, SIZE)
    for _ in range(count):
        width, height = (int(side) for side in random.integers(4, 110, 2))
        x, y = int(random.integers(0, 160 - width)), int(random.integers(0, 120 - min(height, 119)))
        category = int(random.integers(1, 3))
        scores.add_truth(image_id, rectangle(x, y, width, height), category)
        if random.random() < 0.8:
            moved = rectangle(x + int(random.integers(0, 4)), y, width, height)
            scores.add_prediction(image_id, moved, category, float(random.random()))
        if random.random() < 0.3:
            scores.add_prediction(image_id, rectangle(0, 0, 9, 9), category, float(random.random()))
    return scores


def coco_eval(scores: InstanceScores) -> list[float]:
    """The oracle: COCOeval as its own demo calls it, with its summary."""
    numbers = {name: number for number, name in enumerate(scores.images, start=1)}
    truth, categories = COCO(), [{"id": 1}, {"id": 2}]
    truth.dataset = {
        "info": {},
        "images": [{"id": numbers[name], "height": h, "width": w} for name, (h, w) in scores.images.items()],
        "categories": categories,
        "annotations": [
            row | {"id": number, "image_id": numbers[row["image_id"]]}
            for number, row in enumerate(scores.truth, start=1)
        ],
    }
    truth.createIndex()
    rows: list[Any] = [
        {key: row[key] for key in ("category_id", "segmentation", "score")}
        | {"image_id": numbers[row["image_id"]]}
        for row in scores.predictions
    ]
    evaluation = COCOeval(truth, truth.loadRes(rows), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats[:6]]


def test_a_case_worked_by_hand() -> None:
    """Two nuclei; the better-scored prediction is false, the next exact, the last has IoU 8/12.

    At IoU 0.50 to 0.65 precision is 0, 1/2, 2/3 at recalls 0, 1/2, 1: interpolated 2/3 everywhere. From
    0.70 on only recall 1/2 is reached, with precision 1/2 at 51 of the 101 recall points.
    """
    scores = scene(
        "a",
        [(0, 0, 10, 10), (40, 40, 10, 10)],
        [((80, 80, 10, 10), 0.9), ((0, 0, 10, 10), 0.8), ((42, 40, 10, 10), 0.7)],
    ).compute()
    assert scores["ap50"] == pytest.approx(2 / 3)
    assert scores["ap75"] == pytest.approx(51 / 101 / 2)
    assert scores["ap"] == pytest.approx((4 * (2 / 3) + 6 * (51 / 101 / 2)) / 10)
    assert scores["ap_small"] == pytest.approx(scores["ap"])
    assert math.isnan(scores["ap_large"])


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_cocoeval(seed: int) -> None:
    scores = sum((random_scene(str(n), 10 * seed + n) for n in range(4)), InstanceScores())
    computed = scores.compute(detections_per_image=100)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [computed[name] for name in names] == pytest.approx(coco_eval(scores), abs=1e-12)
    assert 0.2 < computed["ap"] < 0.95


def test_shards_merge_in_any_order() -> None:
    shards = [random_scene(f"image-{n}", n) for n in range(6)]
    forward = sum(shards, InstanceScores())
    pairs = (shards[5] + shards[3]) + (shards[1] + (shards[0] + shards[4]) + shards[2])
    assert pairs.compute() == forward.compute()
    assert forward.compute() != shards[0].compute()


def test_dense_images_count_beyond_a_hundred_detections() -> None:
    boxes = [(8 * column, 8 * row, 6, 6) for column in range(20) for row in range(10)]
    scores = scene("dense", boxes, [(box, 1 - number / 1000) for number, box in enumerate(boxes)])
    assert scores.compute()["ap"] == pytest.approx(1.0)
    assert scores.compute(detections_per_image=100)["ap"] == pytest.approx(51 / 101)


def test_false_findings_in_an_image_without_truth_count() -> None:
    alone = scene("a", [(0, 0, 10, 10)], [((0, 0, 10, 10), 0.5)])
    empty = scene("b", [], [((0, 0, 10, 10), 0.9)])
    assert alone.compute()["ap"] == pytest.approx(1.0)
    assert (alone + empty).compute()["ap"] == pytest.approx(0.5)


def test_nothing_found_is_zero_and_no_truth_is_not_a_number() -> None:
    assert scene("a", [(0, 0, 10, 10)], []).compute()["ap"] == 0.0
    assert math.isnan(InstanceScores().compute()["ap"])
    assert math.isnan(scene("a", [], []).compute()["ap"])


def test_an_image_scored_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="image a is scored twice"):
        scene("a", [], []) + scene("a", [], [])
    with pytest.raises(ValueError, match="image a is scored twice"):
        scene("a", [], []).add_image("a", SIZE)
