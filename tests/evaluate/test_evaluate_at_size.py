"""A model over real images; its detections in one process and by shard on Ray, against pycocotools."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.evaluate.random_coco import STATS, pycocotools
from tests.evaluate.test_compare_instances import evaluate, metrics

NUCLEI = Path(__file__).parents[1] / "data/nuclei"


@pytest.fixture(scope="module")
def scored(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, scored on the bundled images."""
    output = tmp_path_factory.mktemp("scored")
    options = ("--weights", "nuclei-small", "--data", NUCLEI, "--split", "all", "--output", output)
    assert evaluate(*options, "--annotate", '{"include": ["[0-6]*.png"]}') == 3
    return output


def compared(folder: Path) -> dict[str, Any]:
    """What does not depend on time and place."""
    left_out = ("settings", "seconds", "finished_at", "weights", "predictions", "versions")
    return {name: value for name, value in metrics(folder).items() if name not in left_out}


def results(run: Path, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The detections of a run as COCO results."""
    uris = {row["image_id"]: row["uri"] for row in pq.read_table(run / "images").to_pylist()}
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    return [
        {
            "image_id": ids[uris[row["image_id"]].rpartition("/")[2]],
            "category_id": 1,
            "score": row["score"],
            "segmentation": row["segmentation"],
        }
        for row in pq.read_table(run / "instances").to_pylist()
    ]


def with_boxes(run: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with the detector's own boxes."""
    boxes = pq.read_table(run / "instances")["box"].to_pylist()
    return [row | {"bbox": box} for row, box in zip(rows, boxes, strict=True)]


def test_real_detections_have_the_figures_of_pycocotools(scored: Path) -> None:
    record = metrics(scored)
    truth = json.loads((NUCLEI / "instances.json").read_text())
    lost = {each["name"] for each in record["failed"]}
    truth["images"] = [image for image in truth["images"] if image["file_name"] not in lost]
    ids = {image["id"] for image in truth["images"]}
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in ids]
    rows = results(scored / "predictions", truth)
    for kind, boxes in (("segm", False), ("bbox", True)):
        given = with_boxes(scored / "predictions", rows) if boxes else rows
        figures = [record["metrics"][kind][name] for name in STATS]
        found = [-1 if value is None else value for value in figures]
        assert found == pytest.approx(pycocotools(truth, given, kind), abs=1e-6)
    assert record["weights"] == "nuclei-small"
    assert 0.3 < record["metrics"]["segm"]["ap"] < 0.7


def test_both_ways_give_the_same(scored: Path, tmp_path: Path) -> None:
    """In shards of two images: here, on Ray, and here with all of them in one."""
    given = ("--predictions", scored / "predictions", "--labels", NUCLEI / "instances.json", "--output")
    assert evaluate(*given, tmp_path / "whole") == 3
    assert evaluate(*given, tmp_path / "shards", "--shard", 2) == 3
    assert evaluate(*given, tmp_path / "ray", "--shard", 2, "--ray-above", 1) == 3
    whole = compared(tmp_path / "whole")
    assert compared(tmp_path / "shards") == whole == compared(tmp_path / "ray") == compared(scored)
    assert whole["counts"]["compared"] > 4
