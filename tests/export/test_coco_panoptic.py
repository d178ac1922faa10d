"""`export --as coco-panoptic`: the same segments under the names of the images, by split too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from segray import schema
from segray.cli import main
from tests.export import made as of_annotate
from tests.panoptic.made import ids_of_png, made, table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of panoptic with splits."""
    folder = tmp_path_factory.mktemp("run")
    found = made(folder)
    path = found.instances / "images/part-000001.parquet"
    rows = pq.read_table(path).to_pylist()
    splits = dict(zip(sorted(row["image_id"] for row in rows), ("train", "val", "train", None), strict=True))
    declared = schema.with_kept(schema.IMAGES, ["split"])
    table(path, [{**row, "split": splits[row["image_id"]]} for row in rows], declared)
    arguments = ("--instances", str(found.instances), "--maps", str(found.maps))
    assert main(["panoptic", *arguments, "--output", str(folder / "out")]) == 0
    return folder / "out"


def export(run: Path, output: Path, *more: str) -> int:
    return main(["export", str(run), "--as", "coco-panoptic", "--output", str(output), *more])


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_it_holds_the_run(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out") == 0
    here, there = (content(folder / "panoptic.json") for folder in (tmp_path / "out", run))
    assert here["categories"] == there["categories"]
    assert here["images"] == there["images"]
    for own, old in zip(here["annotations"], there["annotations"], strict=True):
        assert own["segments_info"] == old["segments_info"]
        assert own["file_name"] == f"{own['image_id'] - 1:05d}.png"
        files = tmp_path / "out/panoptic" / own["file_name"], run / "panoptic" / old["file_name"]
        assert files[0].read_bytes() == files[1].read_bytes()
        ids = {info["id"]: info["area"] for info in own["segments_info"]}
        values, areas = np.unique(ids_of_png(files[0]), return_counts=True)
        assert {key: area for key, area in zip(values.tolist(), areas.tolist(), strict=True) if key} == ids
    assert export(run, tmp_path / "out") == 0, "the same export again does nothing"
    assert export(run, tmp_path / "out", "--split", "val") == 2
    named = ("--relative-to", "/photos", "--prefix", "val/")
    assert export(run, tmp_path / "named", *named) == 0
    assert content(tmp_path / "named/panoptic.json")["images"][1]["file_name"] == "val/00001.jpg"
    scores = ("--predictions", str(run), "--labels", str(tmp_path / "out/panoptic.json"))
    assert main(["evaluate", *scores, "--output", str(tmp_path / "scores")]) == 0
    assert content(tmp_path / "scores/metrics.json")["metrics"]["all"]["pq"] == 1


def test_by_split(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out", "--by-split") == 0
    names = {split: ["00000", "00002"] * (split == "train") or ["00001"] for split in ("train", "val")}
    for split, own in {**names, "unsplit": ["00003"]}.items():
        listed = content(tmp_path / f"out/panoptic_{split}.json")["annotations"]
        assert [each["file_name"] for each in listed] == [f"{name}.png" for name in own]
        assert sorted(path.stem for path in (tmp_path / f"out/panoptic_{split}").iterdir()) == own


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-score", "0.7"], "set --min-score and --void of panoptic"),
        (["--pixels", "classes"], "pixels: coco-panoptic does not have it"),
        (["--segmentation", "rle"], "segmentation: coco-panoptic does not have it"),
    ],
)
def test_options_that_make_no_sense(
    more: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err


def test_run_and_format_must_fit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--as", "coco", "--output", str(tmp_path / "a.json")]) == 2
    assert "is an output of panoptic; it can be exported as coco-panoptic" in capsys.readouterr().err
    assert export(of_annotate.made(tmp_path / "run").folder, tmp_path / "out") == 2
    assert "is no output of panoptic, which coco-panoptic needs" in capsys.readouterr().err
