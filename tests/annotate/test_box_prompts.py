"""Boxes of a COCO file become masks, in the rows of their images."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segray.annotate.box_prompts import BoxPredictor, load_boxes
from segray.annotate.sam_detector import SamMasks
from segray.annotate.settings import AnnotateSettings
from segray.annotate.task import Annotate
from segray.errors import SettingsError
from segray.models.sam import SegmentAnything
from segray.models.weights import LoadedModel
from segray.storage import StorageSettings
from tests.bulk.pictures import Image, decoded, picture_row, smooth
from tests.sam_models import made

STORAGE = StorageSettings()


@pytest.fixture(scope="module")
def sam() -> LoadedModel:
    return LoadedModel("sam", "sam", SegmentAnything(made("sam2"), "sam2"), {1: "object"}, None, "1" * 64)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images = [
        {"id": 9, "file_name": "a/one.png", "height": 60, "width": 80},
        {"id": 2, "file_name": "one.png", "height": 60, "width": 80},
        {"id": 5, "file_name": "small.png", "height": 6, "width": 8},
    ]
    annotations: list[dict[str, Any]] = [
        {"image_id": 2, "category_id": 7, "bbox": [5, 5, 20, 30], "score": 0.5},
        {"image_id": 9, "category_id": 3, "bbox": [10, 4, 40, 40]},
        {"image_id": 2, "category_id": 3, "bbox": [30, 10, 40, 45]},
        {"image_id": 2, "category_id": 3, "bbox": [0, 0, 40, 45], "iscrowd": 1},
        {"image_id": 2, "category_id": 3},
        {"image_id": 77, "category_id": 3, "bbox": [0, 0, 9, 9]},
    ]
    for number, each in enumerate(annotations):
        each["id"] = number
    categories = [{"id": 3, "name": "roof"}, {"id": 7, "name": "tree"}]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def row(number: int, image: Image, uri: str, **more: Any) -> dict[str, Any]:
    return picture_row(f"{number:032x}", image) | {"uri": uri} | more


def test_an_image_gets_the_masks_of_its_boxes(file: Path, sam: LoadedModel) -> None:
    model = pickle.loads(pickle.dumps(load_boxes(str(file), STORAGE, sam)))
    image = smooth(np.random.default_rng(0), 60, 80)
    table = decoded(
        row(0, image, "file:///d/one.png"),
        row(1, image, "file:///d/a.tar", member="a/one.png"),
        row(2, image, "file:///d/two.png"),
        row(3, image, "file:///d/small.png"),
    )
    found = BoxPredictor(model, "cpu", "fp32", 1).predict(table).to_pylist()
    assert [each["status"] for each in found] == ["annotated", "annotated", "rejected", "rejected"]
    assert [each["error_type"] for each in found] == [None, None, "missing", "unsupported"]
    assert "8 x 6 pixels" in found[3]["error"]
    masks = SamMasks(sam.module, torch.device("cpu"), "fp32")
    for instances, boxes, names in (
        (found[0], [[5, 5, 25, 35], [30, 10, 70, 55]], {("tree", 0.5), ("roof", 1.0)}),
        (found[1], [[10, 4, 50, 44]], {("roof", 1.0)}),
    ):
        expected = masks.masks(image, np.array(boxes, np.float32))
        assert instances["instances"] + instances["empty_masks"] == len(boxes)
        counts = [each["segmentation"]["counts"] for each in instances["found"]]
        filled = [each for each, area in zip(expected.counts, expected.area, strict=True) if area]
        assert sorted(counts) == sorted(filled)
        assert {(each["category"], each["score"]) for each in instances["found"]} == names


def test_other_boxes_are_another_identity(file: Path, sam: LoadedModel) -> None:
    before = load_boxes(str(file), STORAGE, sam)
    file.write_text(file.read_text().replace("30, 10, 40, 45", "30, 10, 40, 46"))
    assert load_boxes(str(file), STORAGE, sam).digest != before.digest
    file.write_text(file.read_text().replace('"bbox"', '"rectangle"'))
    with pytest.raises(SettingsError, match=r"labels.json: it has no boxes"):
        load_boxes(str(file), STORAGE, sam)


def test_a_renamed_category_is_another_identity(file: Path, sam: LoadedModel) -> None:
    before = load_boxes(str(file), STORAGE, sam)
    file.write_text(file.read_text().replace("roof", "house"))
    assert load_boxes(str(file), STORAGE, sam).digest != before.digest


def test_a_score_of_zero_stays_and_bad_rows_are_left_out(
    file: Path, sam: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"image_id": 2, "category_id": 7, "bbox": [5, 5, 20, 30]}
    bad: list[Any] = [{"score": wrong} for wrong in ("abc", [1], float("nan"), float("inf"), 1e300)]
    ids: list[Any] = [2**40, [7], {}, None, True]
    bad += [{"category_id": wrong} for wrong in ids]
    ids = [[2], {}, None, 2**70]
    bad += [{"image_id": wrong} for wrong in ids]
    bad += [{"bbox": wrong} for wrong in ([0, 0, 1e300, 5], [0, 0, float("nan"), 5], "abcd", [5, 5, 0, 3])]
    bad += [{"iscrowd": [1]}]
    content = json.loads(file.read_text())
    content["annotations"] = [good | {"score": 0.0}, good | {"score": None}, "text", *(good | e for e in bad)]
    file.write_text(json.dumps(content))
    found = load_boxes(str(file), STORAGE, sam).module.boxes
    assert found.scores.tolist() == [0, 1]
    assert np.isfinite(found.corners).all()
    assert f"{len(bad) + 1} annotations left out: crowds, or no valid box, score" in capsys.readouterr().err


def test_a_category_of_more_than_32_bits_is_an_error_of_the_settings(file: Path, sam: LoadedModel) -> None:
    file.write_text(file.read_text().replace('"id": 7', f'"id": {2**40}'))
    with pytest.raises(SettingsError, match="category ids have 32 bits, 1099511627776 has more"):
        load_boxes(str(file), STORAGE, sam)


@pytest.mark.parametrize("more", [{}, {"refine": "sam2-tiny", "weights": "coco-v2"}])
def test_boxes_need_a_refiner_and_no_weights(more: dict[str, str]) -> None:
    settings = AnnotateSettings(sources=["p"], output="o", boxes="b.json", **more)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="boxes: with --refine"):
        Annotate(settings).check()
