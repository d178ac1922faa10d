"""Semantic scores against a matrix worked by hand, a loop over pixels, and torchmetrics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)
from torchmetrics.segmentation import DiceScore

from segray.evaluate.confusion_matrix import SemanticScores

CLASSES = 5
Bytes = NDArray[np.uint8]


def scored(truth: Any, prediction: Any, classes: int = CLASSES) -> SemanticScores:
    scores = SemanticScores(classes)
    scores.add(truth, prediction)
    return scores


def maps(seed: int, agreement: float = 0.6, void: float = 0.2, classes: int = CLASSES) -> tuple[Bytes, Bytes]:
    """Truth with void, and a prediction that is right in a share of the pixels; (3, 20, 31) each."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (3, 20, 31)).astype(np.uint8)
    prediction = random.integers(0, classes, truth.shape).astype(np.uint8)
    prediction = np.where(random.random(truth.shape) < agreement, truth, prediction)
    return np.where(random.random(truth.shape) < void, 255, truth).astype(np.uint8), prediction


def adversarial() -> dict[str, tuple[Bytes, Bytes]]:
    truth, prediction = maps(7)
    background, one = np.zeros_like(truth), np.full_like(truth, 3)
    return {
        "random": (truth, prediction),
        "wrong nearly everywhere": maps(8, agreement=0.0),
        "right everywhere": (truth, np.where(truth == 255, 0, truth).astype(np.uint8)),
        "empty prediction": (truth, background),
        "class absent from both": (
            np.where(truth == 2, 255, truth).astype(np.uint8),
            np.where(prediction == 2, 1, prediction).astype(np.uint8),
        ),
        "class absent from the truth": (np.where(truth == 2, 1, truth).astype(np.uint8), prediction),
        "class never predicted": (truth, np.where(prediction == 4, 0, prediction).astype(np.uint8)),
        "one class only": (one, one),
        "one class, never found": (one, background),
        "one pixel that is not void": (
            np.where(np.arange(truth.size) == 5, 3, 255).astype(np.uint8),
            one.ravel(),
        ),
    }


def agree(ours: list[float], theirs: torch.Tensor, defined: NDArray[Any]) -> None:
    """torchmetrics says 0 where a class has nothing to divide by; we say NaN, and nowhere else."""
    assert [not math.isnan(value) for value in ours] == (defined > 0).tolist()
    expected = theirs.double().numpy()[defined > 0]
    assert np.array(ours)[defined > 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", adversarial())
def test_the_same_as_torchmetrics(case: str) -> None:
    truth, prediction = adversarial()[case]
    figures, pair = scored(truth, prediction).compute(), (torch.tensor(prediction), torch.tensor(truth).int())
    rules: dict[str, Any] = {"num_classes": CLASSES, "ignore_index": 255}
    counted = truth != 255
    true = np.bincount(truth[counted], minlength=CLASSES)
    found = np.bincount(prediction[counted], minlength=CLASSES)
    per_class = figures["per_class"]
    agree(per_class["iou"], multiclass_jaccard_index(*pair, average="none", **rules), true + found)
    agree(per_class["dice"], multiclass_f1_score(*pair, average="none", **rules), true + found)
    agree(per_class["recall"], multiclass_recall(*pair, average="none", **rules), true)
    agree(per_class["precision"], multiclass_precision(*pair, average="none", **rules), found)

    ours = [figures[name] for name in ("miou", "dice", "pixel_accuracy", "frequency_weighted_iou")]
    theirs = [
        multiclass_jaccard_index(*pair, average="macro", **rules),
        multiclass_f1_score(*pair, average="macro", **rules),
        multiclass_accuracy(*pair, average="micro", **rules),
        multiclass_jaccard_index(*pair, average="weighted", **rules),
    ]
    assert ours == pytest.approx([value.item() for value in theirs], abs=1e-6)
    recalls = multiclass_recall(*pair, average="none", **rules)[torch.tensor(true > 0)]  # macro: of all found
    assert figures["mean_accuracy"] == pytest.approx(recalls.mean().item(), abs=1e-6)
    assert figures["pixels"] == counted.sum()


def test_dice_over_all_pictures_together() -> None:
    truth, prediction = maps(3, void=0.0)
    theirs = DiceScore(CLASSES, average="macro", input_format="index", aggregation_level="global")
    theirs.update(torch.tensor(prediction).long(), torch.tensor(truth).long())
    assert scored(truth, prediction).compute()["dice"] == pytest.approx(theirs.compute().item(), abs=1e-6)


def test_predictions_that_are_no_class_count_as_wrong() -> None:
    """The oracle knows them as one more class, of which only the row of the truth is looked at."""
    truth, prediction = maps(4)
    holes = np.where(np.random.default_rng(4).random(truth.shape) < 0.3, 255, prediction).astype(np.uint8)
    figures = scored(truth, holes).compute()
    rules: dict[str, Any] = {"num_classes": CLASSES + 1, "ignore_index": 255, "average": "none"}
    pair = torch.tensor(np.where(holes == 255, CLASSES, holes)), torch.tensor(truth).int()
    for name, theirs in (
        ("iou", multiclass_jaccard_index(*pair, **rules)),
        ("dice", multiclass_f1_score(*pair, **rules)),
        ("recall", multiclass_recall(*pair, **rules)),
        ("precision", multiclass_precision(*pair, **rules)),
    ):
        ours = figures["per_class"][name]  # type: ignore[literal-required]
        assert ours == pytest.approx(theirs[:CLASSES].tolist(), abs=1e-6)
    counted = truth != 255
    assert figures["pixel_accuracy"] == pytest.approx((truth == holes)[counted].mean())
    whole = scored(truth, prediction).compute()
    assert figures["miou"] < whole["miou"]
    assert figures["pixels"] == whole["pixels"]


def test_a_matrix_worked_by_hand() -> None:
    """Ten pixels, two void. Class 0: 2 of 4 found, 1 more claimed; class 1: 3 of 4 found, 1 more claimed."""
    truth = [0, 0, 0, 0, 1, 1, 1, 1, 255, 255]
    found = [0, 0, 1, 9, 1, 1, 1, 0, 0, 1]
    scores = scored(truth, found, classes=3)
    assert scores.matrix.tolist() == [[2, 1, 0, 1], [1, 3, 0, 0], [0, 0, 0, 0]]
    figures = scores.compute()
    assert figures["per_class"]["iou"] == pytest.approx([2 / 5, 3 / 5, math.nan], nan_ok=True)
    assert figures["per_class"]["dice"] == pytest.approx([4 / 7, 6 / 8, math.nan], nan_ok=True)
    assert figures["per_class"]["recall"] == pytest.approx([2 / 4, 3 / 4, math.nan], nan_ok=True)
    assert figures["per_class"]["precision"] == pytest.approx([2 / 3, 3 / 4, math.nan], nan_ok=True)
    assert figures["pixels"] == 8
    assert figures["pixel_accuracy"] == pytest.approx(5 / 8)
    assert figures["mean_accuracy"] == pytest.approx(5 / 8)
    assert figures["miou"] == pytest.approx((2 / 5 + 3 / 5) / 2)
    assert figures["dice"] == pytest.approx((4 / 7 + 6 / 8) / 2)
    assert figures["frequency_weighted_iou"] == pytest.approx((4 * 2 / 5 + 4 * 3 / 5) / 8)


@pytest.mark.parametrize("ignore_index", [255, -1, 0, 7])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64])
def test_every_integer_type_as_a_loop_counts_it(kind: type, ignore_index: int) -> None:
    truth, prediction = (each[0].astype(kind) for each in maps(5))
    prediction[0, :6] = np.array([5, 6, 200, 254, 255, 100]).astype(kind)
    if kind is np.uint8 and ignore_index == -1:
        truth[truth == 255] = 0  # a byte holds no -1
    elif ignore_index != 0:
        truth[truth == 255] = ignore_index
    else:
        truth[truth == 255] = 1
    if kind is not np.uint8:
        prediction[1, :3] = -1, -100, 300
    scores = SemanticScores(CLASSES, ignore_index)
    scores.add(truth, prediction)
    expected = np.zeros((CLASSES, CLASSES + 1), np.int64)
    for true, found in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if true != ignore_index:
            expected[true, found if 0 <= found < CLASSES else CLASSES] += 1
    assert np.array_equal(scores.matrix, expected)
    assert scores.matrix[:, -1].sum() > 0


def test_tensors_and_the_most_classes() -> None:
    truth, prediction = maps(6, classes=255)
    prediction[0, 0, :2] = 254, 255
    truth[0, 0, :2] = 254
    scores = scored(truth, prediction, classes=255)
    assert scores.matrix[254, 254] >= 1
    assert scores.matrix[254, 255] >= 1
    assert np.array_equal(
        scored(torch.from_numpy(truth), torch.from_numpy(prediction).long(), 255).matrix, scores.matrix
    )


def test_shards_merge_in_any_order() -> None:
    shards = [maps(seed) for seed in range(6)]
    parts = [scored(*shard) for shard in shards]
    whole = scored(np.stack([truth for truth, _ in shards]), np.stack([found for _, found in shards]))
    merged = (parts[5] + parts[3]) + (parts[1] + (parts[0] + parts[4]) + parts[2])
    one_by_one = SemanticScores(CLASSES)
    for shard in shards:
        one_by_one.add(*shard)
    for scores in (merged, one_by_one, sum(parts, SemanticScores(CLASSES))):
        assert np.array_equal(scores.matrix, whole.matrix)
        assert scores.compute() == whole.compute()
    assert parts[0].compute() != whole.compute()
    assert np.array_equal(parts[0].matrix, scored(*shards[0]).matrix)  # adding leaves the parts as they were


def test_a_matrix_that_is_given_is_copied() -> None:
    scores = scored(*maps(1))
    copy = SemanticScores(CLASSES, matrix=scores.matrix)
    copy.add([0], [0])
    assert copy.matrix.sum() == scores.matrix.sum() + 1


def test_a_matrix_must_count_the_classes() -> None:
    with pytest.raises(ValueError, match="does not count 4 classes"):
        SemanticScores(4, matrix=[[0, 2], [1, 0]])
    with pytest.raises(ValueError, match="does not count 1 classes"):
        SemanticScores(1, matrix=[[-1, 2]])


def test_an_all_reduce_of_the_matrix_merges() -> None:
    one, other = scored(*maps(1)), scored(*maps(2))
    together = (one + other).matrix
    torch.from_numpy(one.matrix).add_(torch.from_numpy(other.matrix))  # what an all-reduce does in place
    assert np.array_equal(one.matrix, together)


def test_nothing_that_counts_is_not_a_number() -> None:
    truth, prediction = maps(9)
    void, empty = np.full_like(truth, 255), np.zeros((0, 4), np.uint8)
    for scores in (SemanticScores(CLASSES), scored(void, prediction), scored(empty, empty)):
        figures: dict[str, Any] = {**scores.compute()}
        assert figures.pop("pixels") == 0
        per_class = figures.pop("per_class")
        values = [*figures.values(), *(value for listed in per_class.values() for value in listed)]
        assert len(values) == 5 + 4 * CLASSES
        assert all(math.isnan(value) for value in values)


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [
        ([[0, 1]], [0, 1], r"truth of shape \(1, 2\), prediction of shape \(2,\)"),
        ([0.0, 1.0], [0, 1], "truth is float64"),
        ([0, 1], [0.2, 0.9], "prediction is float64"),
        ([0, 5], [0, 1], "truth holds 5"),
        ([0, -1], [0, 1], "truth holds -1"),
        ([0, 511], [0, 1], "truth holds 511"),  # 255 in its lower byte
        (np.array([0, 77], np.uint8), [0, 1], "truth holds 77"),
    ],
)
def test_what_is_no_truth_is_refused_and_not_counted(truth: Any, prediction: Any, words: str) -> None:
    scores = scored([0, 1], [0, 1])
    with pytest.raises(ValueError, match=words):
        scores.add(truth, prediction)
    assert scores.compute()["pixels"] == 2


def test_other_rules_do_not_add() -> None:
    with pytest.raises(ValueError, match=r"5 classes .* and 4 classes"):
        SemanticScores(5) + SemanticScores(4)
    with pytest.raises(ValueError, match="ignoring -1"):
        SemanticScores(5) + SemanticScores(5, ignore_index=-1)
    for classes in (0, 256):
        with pytest.raises(ValueError, match=f"{classes} classes: 1 to 255"):
            SemanticScores(classes)
