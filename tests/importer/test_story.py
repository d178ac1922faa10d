"""Label, review, import, train, evaluate: the circle that a user walks, with real images and a real Ray."""

import json
import shutil
from pathlib import Path

import pytest

from segray.cli import main
from tests.importer.made import bring, counts, encoded, export, pixels, rows
from tests.readme_data import NUCLEI
from tests.train.test_instances_job import OPTIONS

IMAGES = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    folder = tmp_path_factory.mktemp("nuclei")
    (folder / "photos").mkdir()
    for file in sorted((NUCLEI / "images").glob("*.png"))[:IMAGES]:
        shutil.copy(file, folder / "photos")
    command = [
        "annotate",
        str(folder / "photos"),
        "--weights",
        "nuclei-small",
        "--output",
        str(folder / "run"),
    ]
    assert main(command) == 0
    return folder / "run"


@pytest.mark.parametrize("kind", ["coco", "yolo", "masks"])
def test_a_real_run_comes_back_as_it_was(kind: str, run: Path, tmp_path: Path) -> None:
    file = export(run, kind, tmp_path / ("one.json" if kind == "coco" else "one"))
    assert bring(file, kind, tmp_path / "labels", run) == 0
    before, after = rows(run, "instances"), rows(tmp_path / "labels", "instances")
    assert len(before) == len(after) > 50
    for old, new in zip(before, after, strict=True):
        assert new == {**old, "score": None, "box": old["bbox"]}
    for old, new in zip(rows(run, "images"), rows(tmp_path / "labels", "images"), strict=True):
        assert {name: new[name] for name in old if name != "empty_masks"} == {
            name: value for name, value in old.items() if name != "empty_masks"
        }


def test_label_review_train_evaluate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program takes every second instance away and widens the first of each image; then one epoch."""
    file = export(run, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][::2]
    first = {each["image_id"]: each for each in reversed(content["annotations"])}
    for each in first.values():
        mask = pixels(each)
        mask[:, 1:] |= mask[:, :-1].copy()
        each["segmentation"] = encoded(mask)
    for place, image in enumerate(content["images"]):
        image["split"] = ("train", "val", "test")[place]
    file.write_text(json.dumps(content))
    labels = tmp_path / "labels"
    assert bring(file, "coco", labels, run) == 0
    found = counts(labels)
    assert (found["changed"], found["added"]) == (IMAGES, 0)
    assert found["removed"] == len(rows(run, "instances")) - len(content["annotations"])
    trained = ["train", "--data", str(labels), "--output", str(tmp_path / "model"), *OPTIONS, "--epochs", "1"]
    assert main([*trained, "--batch-size", "1"]) == 0
    assert (tmp_path / "model/model.pt").exists()
    scores = tmp_path / "scores"
    assert (
        main(["evaluate", "--predictions", str(run), "--labels", str(labels), "--output", str(scores)]) == 0
    )
    record = json.loads((scores / "metrics.json").read_text())
    assert record["instances"]["labels"] == len(content["annotations"])
    assert record["instances"]["predictions"] == len(rows(run, "instances"))
    assert 0.3 < record["metrics"]["segm"]["ap"] < 0.95  # half of what it found is not there
    assert "images are left out" not in capsys.readouterr().err
