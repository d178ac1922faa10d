"""Folders of label pictures against each other: pairs by name, and every problem a line, never an end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segray.data.labels import LabelRules
from segray.errors import NothingToDoError, SettingsError
from segray.evaluate.compare_pairs import Comparison, Matched, compare_pairs, match_files
from segray.evaluate.confusion_matrix import SemanticScores
from segray.output.io import label_files
from segray.storage import StorageSettings
from tests import servers

RULES = LabelRules(classes=4)
PLENTY = 10**6
Bytes = NDArray[np.uint8]


def label(seed: int, values: tuple[int, ...] = (0, 1, 2, 3, 255)) -> Bytes:
    return np.random.default_rng(seed).choice(values, (12, 17)).astype(np.uint8)


def write(path: Path, pixels: Bytes) -> Bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return tmp_path / "truth"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return tmp_path / "predictions"


def compared(predictions: object, truth: object, **options: Any) -> tuple[Comparison, Matched]:
    storage = options.pop("storage", StorageSettings())
    found = label_files(str(predictions), storage, "predictions")
    matched = match_files(label_files(str(truth), storage, "labels"), found)
    rules = options.pop("rules", RULES)
    return compare_pairs(matched.pairs, rules, PLENTY, storage, **options), matched


def told(comparison: Comparison, matched: Matched) -> dict[str, str]:
    return {problem.name: problem.reason for problem in (*matched.problems, *comparison.problems)}


def test_pairs_of_one_name_whatever_the_suffix_and_folder(truth: Path, predictions: Path) -> None:
    names = [("a.png", "a.png"), ("b.tif", "b.png"), ("val/a.png", "val/a.PNG"), ("c.d.png", "c.d.bmp")]
    expected = SemanticScores(4)
    for seed, (true, found) in enumerate(names):
        expected.add(
            write(truth / true, label(seed)), write(predictions / found, label(seed + 50, (0, 1, 2, 3)))
        )
    write(predictions / "val/b.png", label(0))
    write(predictions / ".c.png", label(0))
    (truth / "notes.txt").write_text("not a picture")
    result, matched = compared(predictions, truth)
    assert np.array_equal(result.scores.matrix, expected.matrix)
    assert expected.matrix.sum() > 500
    assert (result.compared, result.problems, matched.problems, matched.extra) == (4, (), [], 1)


def test_more_pictures_than_one_read_fetches(truth: Path, predictions: Path) -> None:
    """Of 80, each has its own prediction: 12 pixels right, the others wrong."""
    for number in range(80):
        true = np.full((12, 17), number % 4, np.uint8)
        found = (true + 1) % 4
        found[:, 0] = true[:, 0]
        write(truth / f"{number}.png", true)
        write(predictions / f"{number}.png", found)
    result, _ = compared(predictions, truth)
    assert result.compared == 80
    assert result.scores.compute()["pixel_accuracy"] == pytest.approx(1 / 17)


def test_every_problem_is_a_line_and_the_rest_is_scored(truth: Path, predictions: Path) -> None:
    good = write(truth / "good.png", label(1, (0, 1))), write(predictions / "good.png", label(2, (0, 1)))
    for name in ("missing", "size", "turned", "cut", "unreadable", "colour", "value", "twice", "both"):
        write(truth / f"{name}.png", label(3))
        write(predictions / f"{name}.png", label(4))
    (predictions / "missing.png").unlink()
    write(predictions / "size.png", label(4)[:-1])
    write(predictions / "turned.png", label(4).T)
    whole = (predictions / "cut.png").read_bytes()
    (predictions / "cut.png").write_bytes(whole[: len(whole) // 2])
    (truth / "unreadable.png").write_bytes(b"not a picture")
    write(predictions / "colour.png", np.random.default_rng(0).integers(0, 9, (12, 17, 3)).astype(np.uint8))
    write(truth / "value.png", np.full((12, 17), 4, np.uint8))
    write(predictions / "twice.tif", label(4))
    (truth / "both.png").write_bytes(b"")
    (predictions / "both.png").write_bytes(b"")
    (truth / "gone.png").symlink_to(truth / "nowhere.png")
    result, matched = compared(predictions, truth)

    problems = told(result, matched)
    assert problems.keys() == {
        "missing", "size", "turned", "cut", "unreadable", "colour", "value", "twice", "both", "gone"
    }  # fmt: skip
    assert problems["missing"] == "missing: no prediction of this name"
    assert problems["size"] == "prediction: 17 x 11 pixels, its truth 17 x 12"
    assert problems["turned"] == "prediction: 12 x 17 pixels, its truth 17 x 12"
    assert problems["cut"].startswith("prediction: PNG: the file ends early")
    assert problems["unreadable"].startswith("truth: not an image")
    assert problems["colour"].startswith("prediction: a colour picture")
    assert problems["value"].startswith("truth: value 4 in 204 pixels")
    assert "twice.png and twice.tif" in problems["twice"]
    assert problems["both"] == "truth: the file is empty"
    assert problems["gone"].startswith("truth: a symbolic link to nothing")
    assert not any("\n" in reason for reason in problems.values())
    assert (result.compared, len(problems), matched.labels) == (1, 10, 11)
    alone = SemanticScores(4)
    alone.add(*good)
    assert np.array_equal(result.scores.matrix, alone.matrix)


def test_what_is_no_class_in_a_prediction_counts_as_wrong(truth: Path, predictions: Path) -> None:
    write(truth / "a.png", np.array([[0, 0, 1, 1, 255]], np.uint8))
    write(predictions / "a.png", np.array([[0, 255, 1, 9, 9]], np.uint8))
    figures = compared(predictions, truth)[0].scores.compute()
    assert figures["pixels"] == 4
    assert figures["pixel_accuracy"] == pytest.approx(2 / 4)
    assert figures["per_class"]["recall"][:2] == pytest.approx([1 / 2, 1 / 2])
    assert figures["per_class"]["precision"][:2] == pytest.approx([1, 1])


def test_each_side_has_its_rules(truth: Path, predictions: Path) -> None:
    mask, found = label(1, (0, 255)), label(2, (0, 1))
    write(truth / "a.png", mask)
    write(predictions / "a.png", found)
    binary = LabelRules(classes=2, values="binary")
    expected = SemanticScores(2)
    expected.add(mask // 255, found)
    by_index, _ = compared(predictions, truth, rules=binary)
    assert np.array_equal(by_index.scores.matrix, expected.matrix)
    write(predictions / "a.png", found * 255)
    by_mask, _ = compared(predictions, truth, rules=binary, prediction_rules=binary)
    assert np.array_equal(by_mask.scores.matrix, expected.matrix)


def test_parts_of_a_collection_add(truth: Path, predictions: Path) -> None:
    for number in range(6):
        write(truth / f"{number % 2}/{number}.png", label(number))
        write(predictions / f"{number % 2}/{number}.png", label(number + 9))
    (predictions / "1/3.png").unlink()
    write(predictions / "1/more.png", label(0))
    whole, matched = compared(predictions, truth)
    pairs = matched.pairs
    parts = [compare_pairs(some, RULES, PLENTY, StorageSettings()) for some in (pairs[:2], pairs[2:])]
    both = parts[1] + parts[0]
    assert np.array_equal(both.scores.matrix, whole.scores.matrix)
    assert both.compared == whole.compared == 5
    assert both.digest() == whole.digest() != parts[0].digest()
    for folder in (truth, predictions):
        (folder / "0/0.png").rename(folder / "0/9.png")
    renamed = compared(predictions, truth)[0]
    assert np.array_equal(renamed.scores.matrix, whole.scores.matrix)
    assert renamed.digest() != whole.digest()
    for folder in (truth, predictions):
        (folder / "0/9.png").rename(folder / "0/0.png")
    assert compared(predictions, truth)[0].digest() == whole.digest()
    write(predictions / "0/0.png", label(99))
    assert compared(predictions, truth)[0].digest() != whole.digest()


def test_a_label_at_another_scale_fits_its_picture(truth: Path, predictions: Path) -> None:
    """Each truth pixel stands for 2 x 2 of the picture; another shape stays a problem."""
    small = write(truth / "a.png", label(1))
    write(truth / "b.png", label(1).T)
    large = write(predictions / "a.png", np.random.default_rng(2).integers(0, 4, (24, 34)).astype(np.uint8))
    write(predictions / "b.png", large)
    expected = SemanticScores(4)
    expected.add(small.repeat(2, axis=0).repeat(2, axis=1), large)
    result, _ = compared(predictions, truth, fit=True)
    assert np.array_equal(result.scores.matrix, expected.matrix)
    (problem,) = result.problems
    assert problem.name == "b"
    assert "another shape, not another scale" in problem.reason


def test_folders_in_object_storage(s3_server: servers.Server, truth: Path, predictions: Path) -> None:
    for number in range(3):
        for folder in (truth, predictions):
            write(folder / f"val/{number}.png", label(number))
    (predictions / "val/2.png").unlink()
    for folder in (truth, predictions):
        for path in folder.rglob("*.png"):
            s3_server.put(f"folders/{path.relative_to(truth.parent).as_posix()}", path.read_bytes())
    urls = s3_server.url("folders/predictions"), s3_server.url("folders/truth/")
    result, matched = compared(*urls, storage=s3_server.storage)
    assert np.array_equal(result.scores.matrix, compared(predictions, truth)[0].scores.matrix)
    assert told(result, matched) == {"val/2": "missing: no prediction of this name"}
    assert result.compared == 2


def test_folders_that_are_none(truth: Path, predictions: Path) -> None:
    write(truth / "a.png", label(1))
    with pytest.raises(SettingsError, match=r"^predictions: .*predictions: no such file, folder"):
        compared(predictions, truth)
    predictions.mkdir()
    with pytest.raises(NothingToDoError, match="labels: no label images"):
        compared(truth, predictions)
    with pytest.raises(SettingsError, match=r"^labels: .*a\.png: not a folder"):
        compared(truth, truth / "a.png")
    result, matched = compared(predictions, truth)
    assert (result.compared, len(matched.problems)) == (0, 1)
    assert result.scores.compute()["pixels"] == 0
