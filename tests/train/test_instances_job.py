"""`segray train` of an instance model on a real Ray: from a COCO folder to a model file that annotates."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segray.cli import main
from segray.data.coco_file import read_truth
from segray.models.weights import load_weights
from segray.storage import StorageSettings
from tests.train.cells import write_cells
from tests.train.squares import lines

ARCH = (
    '{"stem_width": 8, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "fpn_width": 16, "box_width": 32,'
    ' "mask_widths": [16]}'
)
OPTIONS = (
    "--arch", "compact-maskrcnn", "--arch-settings", ARCH, "--size", "96", "--min-size", "96",
    "--max-size", "96", "--batch-size", "2", "--lr", "0.005", "--clip", "5", "--schedule", "constant",
    "--warmup-steps", "10",
    "--augment.preset", "off", "--loaders", "1", "--precision", "fp32", "--max-rejects", "1",
)  # fmt: skip
EPOCHS, TRAINED, SCORED = 12, 10, 2


def train(data: object, output: object, *options: object) -> int:
    """The command in this process; returns its exit code."""
    return main(["train", "--data", str(data), "--output", str(output), *OPTIONS, *map(str, options)])


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures to train with, two to score, one held out, one that cannot be read."""
    folder = write_cells(tmp_path_factory.mktemp("coco") / "cells", images=TRAINED + SCORED + 2)
    content = json.loads((folder / "instances.json").read_text())
    splits = ["train"] * TRAINED + ["val"] * SCORED + ["test", "train"]
    for image, split in zip(content["images"], splits, strict=True):
        image["split"] = split
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "images" / content["images"][-1]["file_name"]).write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(cells: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The output of one worker, made in two runs; not to be changed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert train(cells, output, "--epochs", 1) == 0
    assert train(cells, output, "--epochs", EPOCHS) == 0
    return output


def test_from_coco_to_a_model_that_finds_cells(cells: Path, whole: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    assert record["data"]["listed"] == TRAINED + SCORED + 2
    counts = [record["data"][name] for name in ("train", "val", "test", "rejected")]
    assert counts == [TRAINED, SCORED, 1, 1]
    found = lines(whole)
    assert [line["epoch"] for line in found] == list(range(1, EPOCHS + 1))
    assert record["best"]["ap"] == max(line["ap"] for line in found)
    assert record["best"]["ap50"] > 0.2
    model = load_weights(str(whole / "model.pt"), StorageSettings())
    pixels = np.asarray(Image.open(cells / "images/cells-10.png"))
    with torch.inference_mode():
        (guess,) = model.module([torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255])
    assert guess["scores"].max() > 0.5
    assert {path.name for path in (whole / "samples").iterdir()} == {"cells-10.png", "cells-11.png"}


def test_the_splits_are_read_back(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (whole / "splits.json").read_bytes()
    held_out = read_truth(data, "splits.json", "test")
    assert [Path(image.name).name for image in held_out.images.values()] == ["cells-12.png"]
    shutil.copytree(whole, tmp_path / "out")
    assert train(whole / "splits.json", tmp_path / "out", "--epochs", 1) == 0
    assert f"nothing to do, {EPOCHS} epochs were trained before: best AP 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--loss", "focal", "--classes", '["a"]'),
            ("loss: is for semantic models", "classes: is for semantic"),
        ),
        (("--augment.noise", 5), ("augment.noise: is for semantic models",)),
        (("--arch-settings", '{"width": 3}'), ("arch_settings: compact-maskrcnn has no setting width",)),
        (("--arch", "unet", "--arch-settings", "{}"), ("data",)),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    cells: Path, tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = cells / "instances.json" if "unet" in options else cells
    assert train(data, tmp_path / "out", *options) == 2
    told = capsys.readouterr().err
    assert all(each in told for each in words), told
    assert not (tmp_path / "out").exists()
