"""`segray train` on a real Ray: pictures of bright squares, from a folder to a model file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segray import cluster
from segray.models.modelfile import load_model_file
from segray.models.semantic import classes_of
from segray.output.lease import Lease
from segray.output.store import Store
from segray.status import lines as lines_of
from segray.status import status_of
from segray.storage import StorageSettings
from segray.train import trainer
from tests.train.squares import EPOCHS, SCORED, STEPS, TRAINED, figures, lines, train

pytestmark = pytest.mark.usefixtures("ray_session")


def test_from_pictures_to_a_model_that_finds_squares(data: Path, whole: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    state = status_of(str(whole), StorageSettings())
    assert (state.verb, state.state, state.counts["done"]) == ("train", "finished", EPOCHS)
    assert f"{EPOCHS} of {EPOCHS} epochs; best: epoch {record['best']['epoch']}" in lines_of(state)[1]
    assert record["data"]["listed"] == TRAINED + SCORED + 1
    counts = [record["data"][name] for name in ("train", "val", "test", "rejected")]
    assert counts == [TRAINED, SCORED, 0, 1]
    found = lines(whole)
    epochs = range(1, EPOCHS + 1)
    assert [(line["epoch"], line["step"]) for line in found] == [(each, each * STEPS) for each in epochs]
    assert record["best"]["miou"] == max(line["miou"] for line in found) > 0.7
    confusion = np.array(record["confusion"])  # of the best epoch, as its IoU is
    union = confusion.sum(axis=0)[:2] + confusion.sum(axis=1) - confusion.diagonal()
    assert np.allclose(confusion.diagonal() / union, record["best"]["iou"])
    assert len(record["classes"]) == 2
    model = load_model_file(whole / "model.pt")
    with Image.open(data / "images/val/0.png") as image, Image.open(data / "labels/val/0.png") as label:
        pixels, truth = np.asarray(image), np.asarray(label) == 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.card.image_mean, model.card.image_std))
    normal = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        guess = classes_of(model.module(normal[None]))[0].numpy() == 1
    assert (guess & truth).sum() / (guess | truth).sum() > 0.6


def test_what_a_person_looks_at(whole: Path) -> None:
    panels = sorted((whole / "samples").iterdir())
    assert len(panels) == 4
    for panel in panels:
        with Image.open(panel) as image:
            colours = set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))
        assert (128, 0, 0) in colours
    with Image.open(whole / "curves.png") as image:
        assert image.width > 1000
    (file,) = (whole / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("val/miou")]
    assert np.allclose(shown, [(line["step"], line["miou"]) for line in lines(whole)])


def test_a_run_is_made_longer_by_two_workers_and_learns_what_one_learns(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """13 pictures in batches of 2: an uneven share for each."""
    assert train(data, tmp_path / "out", "--epochs", 2) == 0
    assert train(data, tmp_path / "out", "--epochs", EPOCHS, "--workers", 2) == 0
    parts, undisturbed = (figures((each / "metrics.jsonl").read_text()) for each in (tmp_path / "out", whole))
    assert np.allclose(parts, undisturbed, atol=1e-4)
    assert json.loads((tmp_path / "out/run.json").read_text())["epochs"] == EPOCHS


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of change of all files."""
    files = [path for path in folder.rglob("*") if path.is_file() and "lease" not in path.name]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray seems not to run, and must not be started."""

    def start(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "_in_cluster", lambda _: False)
    monkeypatch.setattr(cluster.RayStart, "_connect", start)


@pytest.mark.usefixtures("no_ray")
def test_a_run_that_is_done_does_nothing(data: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(whole)
    assert train(data, whole, "--epochs", EPOCHS) == 0
    assert train(data, whole, "--epochs", EPOCHS, "--max-rejects", 0, "--loaders", 3, "--workers", 2) == 3
    assert train(data, whole, "--epochs", 1) == 0
    assert contents(whole) == before
    told = capsys.readouterr().err
    assert told.count("nothing to do, 4 epochs were trained before: best mIoU") == 3


@pytest.mark.usefixtures("no_ray")
def test_other_settings_are_refused_before_ray_starts_and_all_are_named(
    data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(whole)
    other = ("--lr", 0.03, "--augment.preset", "light", "--loss", "focal", "--epochs", 9, "--workers", 2)
    assert train(data, whole, *other) == 2
    told = capsys.readouterr().err
    assert "was begun with other settings; use another --output" in told
    for line in ("  lr: 0.02 there, 0.03 now", "  augment.preset: off there, light now",
                 "  loss: bce_dice there, focal now"):  # fmt: skip
        assert f"segray: {line}\n" in told
    assert told.count(" there, ") == 3
    assert "Traceback" not in told
    assert contents(whole) == before


def test_other_data_are_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One label was corrected, and all lies elsewhere."""
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(whole, tmp_path / "out")
    Image.new("L", (36, 40)).save(tmp_path / "data/labels/train/3.png")
    assert train(tmp_path / "data", tmp_path / "out", "--epochs", EPOCHS) == 2
    told = capsys.readouterr().err
    assert "was begun with other data; use another --output" in told
    digest = json.loads((whole / "run.json").read_text())["data"]["digest"][:16]
    assert f"  data: 13 train, 5 val, 0 test (sha256 {digest}) there, 13 train, 5 val, 0 test (sha256" in told


@pytest.mark.usefixtures("no_ray")
def test_a_model_of_unknown_origin_is_not_written_over(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt").write_bytes(b"of somebody else")
    assert train(data, tmp_path) == 2
    assert "holds model.pt, but its _segray/plan.json is gone or damaged" in capsys.readouterr().err


@pytest.mark.usefixtures("no_ray")
def test_a_second_live_run_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lease(Store(str(tmp_path), StorageSettings())):
        assert train(data, tmp_path) == 2
    assert "is being written by another run (process " in capsys.readouterr().err


@pytest.mark.usefixtures("no_ray")
def test_all_problems_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert train(tmp_path / "none", tmp_path / "file" / "out", "--device", "cuda") == 2
    told = capsys.readouterr().err
    assert ("output: " in told, "none: the file is not there" in told, "device: " in told) == (True,) * 3


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--schedule", "step"), "schedule step: set either milestones or every"),
        (
            ("--schedule-settings", '{"power": "steep"}'),
            "schedule_settings.power: Input should be a valid number",
        ),
        (
            ("--schedule-settings", '{"warmup_steps": 3}'),
            "schedule_settings: poly does not take warmup_steps; it takes power, floor",
        ),
        (("--optimizer-settings", '{"betas": [0.9, 1.0]}'), "optimizer: betas are (0.9, 1.0), but must be"),
        (("--loss-settings", '{"smooth": 0}'), "loss bce_dice: smooth is 0.0, but must be above 0"),
        (("--class-weights", "root"), "loss bce_dice: does not take class_weights with 1 outputs"),
        (("--loss", "ce", "--class-weights", "1,2"), "loss ce: does not take class_weights with 2 outputs"),
        (
            ("--class-weights", "1,b"),
            "class_weights: is neither one of auto, none, inverse, root nor numbers",
        ),
        (("--loss", "focal", "--class-weights", "1.5"), "loss focal: 1 class_weights for 2 classes"),
    ],
)
def test_constants_that_do_not_fit_are_refused_before_any_work(
    data: Path, tmp_path: Path, options: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "out", "--schedule", "poly", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", 9, "--loaders", 5), "workers: 9 with 5 loaders each do not fit into 4 CPUs"),
        (("--device", "cuda"), "workers: 1 with a GPU each are requested, there are 0"),
        (("--workers", 1, "--arch-settings", '{"norm": "sync"}'), "norm sync needs GPUs"),
    ],
)
def test_workers_that_do_not_fit_are_refused_before_any_work(
    data: Path, tmp_path: Path, options: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "out", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_that_was_lost_after_the_survey_ends_the_run_in_words(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "data")
    lost = tmp_path / "data/images/train/7.png"
    begin = trainer.train

    def lose(*arguments: Any) -> None:
        lost.rename(tmp_path / "kept.png")
        begin(*arguments)

    monkeypatch.setattr(trainer, "train", lose)
    assert train(tmp_path / "data", tmp_path / "out", "--epochs", 1) == 1
    told = capsys.readouterr().err
    assert "segray: images/train/7.png: " in told
    assert "it could be read when the data were scanned: restore it and run the same command again" in told
    assert "Traceback" not in told
