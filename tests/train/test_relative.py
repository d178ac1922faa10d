"""Relative addresses: workers of Ray Train run in their own folder; their words must reach the driver."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segray.cli import main
from segray.output.names import METRICS, MODEL
from segray.output.store import Store
from segray.storage import StorageSettings
from segray.train import trainer
from segray.train.identity import CHECKPOINT, holds
from tests.train.cells import write_cells
from tests.train.squares import EPOCHS, train
from tests.train.test_instances_job import OPTIONS

pytestmark = pytest.mark.usefixtures("ray_session")


def test_an_instance_model_from_relative_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All ways to name a COCO file."""
    cells = write_cells(tmp_path / "cells", images=3)
    content = json.loads((cells / "instances.json").read_text())
    for image, split in zip(content["images"], ("train", "train", "val"), strict=True):
        image["split"] = split
    (cells / "instances.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    for data, *more in (["cells"], ["./cells/"], ["cells/instances.json", "--root", "cells/images"]):
        assert main(["train", "--data", data, "--output", "o", *OPTIONS, *more, "--dry-run"]) == 0
    monkeypatch.chdir(cells)
    assert main(["train", "--data", ".", "--output", "../o", *OPTIONS, "--dry-run"]) == 0
    assert capsys.readouterr().err.count("3 images, 1 categories") == 4


def test_a_worker_that_finds_no_output_says_so_to_the_driver(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on another machine: in the worker's folder the output's name means nothing."""
    begin = trainer.train

    def elsewhere(run: trainer.Run, *others: Any) -> None:
        begin(replace(run, output="nowhere"), *others)

    monkeypatch.setattr(trainer, "train", elsewhere)
    assert train(data, tmp_path / "out", "--epochs", 1) == 1
    told = capsys.readouterr().err
    assert "segray: output: nowhere does not exist on the machine" in told
    assert "a folder that all machines share" in told
    assert not (tmp_path / "out/run.json").exists()


def test_training_that_ends_without_a_model_has_failed_whatever_lies_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of another run do not pass for this one's."""
    other = [{"epoch": epoch, "miou": 0.9, "images_per_s": 1.0} for epoch in range(1, EPOCHS + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other))
    monkeypatch.setattr(trainer, "train", lambda *_: None)
    assert train(data, tmp_path, "--epochs", EPOCHS) == 1
    told = capsys.readouterr().err
    assert f"training ended after 0 of {EPOCHS} epochs in {tmp_path}, and no worker reported why" in told
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("name", ["model.pt"])
def test_a_run_that_is_done_but_has_lost_its_model_is_not_called_done(
    name: str, data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kept in ("run.json", "metrics.jsonl", "_segray/plan.json", "_segray/survey.parquet"):
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).write_bytes((whole / kept).read_bytes())
    assert train(data, tmp_path, "--epochs", EPOCHS) == 2
    assert "holds run.json, but its model.pt is gone" in capsys.readouterr().err


def test_the_names_of_files_are_found_without_reading_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path), StorageSettings())
    assert not holds(store, CHECKPOINT)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.pt").touch()
    (tmp_path / "model.pt").touch()
    assert holds(store, CHECKPOINT)
    assert holds(store, MODEL)
    assert not holds(store, METRICS)
