"""`segray train` on a real Ray: pictures of bright squares, from a folder to a model file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segray.cli import main
from segray.models.semanticfile import classes_of, load_semantic

pytestmark = pytest.mark.usefixtures("ray_session")

UNET = '{"width": 4, "depth": 2, "norm": "group", "groups": 2}'
SMALL = (
    "--size", "32", "--arch-settings", UNET, "--lr", "0.02", "--batch-size", "5", "--loaders", "1",
    "--augment.preset", "off", "--precision", "fp32",
)  # fmt: skip
TRAINED, SCORED = 13, 5


def squares(folder: Path, split: str, number: int, seed: int) -> None:
    """Noise with a bright square each, which the label holds as 255."""
    random = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part / split).mkdir(parents=True)
    for index in range(number):
        pixels = random.integers(0, 90, (40, 36, 3), np.uint8)
        label = np.zeros((40, 36), np.uint8)
        row, col, side = random.integers(2, 20), random.integers(2, 16), random.integers(10, 18)
        pixels[row : row + side, col : col + side] += 120
        label[row : row + side, col : col + side] = 255
        Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
        Image.fromarray(label).save(folder / "labels" / split / f"{index}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("squares")
    squares(folder, "train", TRAINED, 0)
    squares(folder, "val", SCORED, 1)
    (folder / "images/train/broken.png").write_bytes(b"no picture")
    Image.new("L", (40, 36)).save(folder / "labels/train/broken.png")
    return folder


def train(data: Path, output: Path, *options: object) -> int:
    return main(["train", "--data", str(data), "--output", str(output), *SMALL, *map(str, options)])


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """One worker, four epochs; not to be changed."""
    output = tmp_path_factory.mktemp("trained") / "out"
    assert train(data, output, "--epochs", 4) == 3  # one pair is broken
    return output


def test_from_pictures_to_a_model_that_finds_squares(data: Path, trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["data"]["listed"] == TRAINED + SCORED + 1
    assert (record["data"]["train"], record["data"]["val"], record["data"]["rejected"]) == (
        TRAINED,
        SCORED,
        1,
    )
    found = lines(trained)
    assert [(line["epoch"], line["step"]) for line in found] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert record["best"]["miou"] == max(line["miou"] for line in found) > 0.7
    model = load_semantic("model.pt", (trained / "model.pt").read_bytes())
    with Image.open(data / "images/val/0.png") as image, Image.open(data / "labels/val/0.png") as label:
        pixels, truth = np.asarray(image), np.asarray(label) == 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.card.image_mean, model.card.image_std))
    normal = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        guess = classes_of(model.module(normal[None]))[0].numpy() == 1
    assert (guess & truth).sum() / (guess | truth).sum() > 0.6


def test_goes_on_where_it_stopped(data: Path, trained: Path, tmp_path: Path) -> None:
    """Two epochs, then two more, at a constant rate: what four give at once."""
    constant = ("--schedule", "constant", "--max-rejects", 1)
    for output, epochs in (("parts", 2), ("parts", 4), ("whole", 4)):
        assert train(data, tmp_path / output, "--epochs", epochs, *constant) == 0
    names = ("epoch", "step", "train_loss", "val_loss", "miou")
    parts, whole = ([[line[name] for name in names] for line in lines(tmp_path / each)]
                    for each in ("parts", "whole"))  # fmt: skip
    assert np.allclose(parts, whole, rtol=1e-5)


def test_two_workers_learn_what_one_learns(data: Path, trained: Path, tmp_path: Path) -> None:
    """13 pictures in batches of 5, an uneven share for each, group norm: the same losses."""
    assert train(data, tmp_path / "out", "--epochs", 4, "--workers", 2, "--max-rejects", 1) == 0
    one, two = ([line["train_loss"] for line in lines(each)] for each in (trained, tmp_path / "out"))
    assert np.allclose(one, two, atol=1e-4)
    assert [line["step"] for line in lines(tmp_path / "out")] == [3, 6, 9, 12]
