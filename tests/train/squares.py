"""Pictures of bright squares with their labels, and `segray train` on them in few seconds of training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segray.cli import main

UNET = '{"width": 4, "depth": 2, "norm": "group", "groups": 2}'
SMALL = (
    "--size", "32", "--arch-settings", UNET, "--lr", "0.02", "--batch-size", "2", "--loaders", "1",
    "--augment.preset", "off", "--precision", "fp32", "--schedule", "constant", "--max-rejects", "1",
)  # fmt: skip
"""With group norm and a constant rate neither the number of workers nor that of epochs changes a step."""
TRAINED, SCORED = 13, 5
STEPS = 7
"""Of an epoch; the last batch is one picture, so that of two workers one has none."""
EPOCHS = 4


def squares(folder: Path, split: str, number: int, seed: int) -> None:
    """Noise with a bright square each, which the label holds as 255."""
    random = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part / split).mkdir(parents=True, exist_ok=True)
    for index in range(number):
        pixels = random.integers(0, 90, (40, 36, 3), np.uint8)
        label = np.zeros((40, 36), np.uint8)
        row, col, side = random.integers(2, 20), random.integers(2, 16), random.integers(10, 18)
        pixels[row : row + side, col : col + side] += 120
        label[row : row + side, col : col + side] = 255
        Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
        Image.fromarray(label).save(folder / "labels" / split / f"{index}.png")


def write_squares(folder: Path) -> Path:
    """13 pictures to train with, 5 to score, one that cannot be read."""
    squares(folder, "train", TRAINED, 0)
    squares(folder, "val", SCORED, 1)
    (folder / "images/train/broken.png").write_bytes(b"no picture")
    Image.new("L", (36, 40)).save(folder / "labels/train/broken.png")
    return folder


def train(data: object, output: object, *options: object) -> int:
    """The command in this process; returns its exit code. Later options win over those in SMALL."""
    return main(["train", *arguments(data, output, *options)])


def arguments(data: object, output: object, *options: object) -> list[str]:
    """Of the command, as `train` gives them."""
    return ["--data", str(data), "--output", str(output), *SMALL, *map(str, options)]


def figures(text: str) -> list[list[float]]:
    """What metrics.jsonl says of each epoch that must not depend on who did it: no time, no speed."""
    names = ("epoch", "step", "train_loss", "val_loss", "miou", "dice", "pixel_accuracy", "lr")
    return [[line[name] for name in names] for line in map(json.loads, text.splitlines())]


def lines(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
