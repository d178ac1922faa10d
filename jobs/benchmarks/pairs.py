"""Folders of pictures and label maps to train on: the bundled real images, tiled; bright is a class."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.benchmarks.measure import Options
from jobs.benchmarks.pictures import BUNDLED, DIFFERENT, tiled
from segray.data.labels import LabelRules
from segray.data.pairs import Pair, list_pairs
from segray.storage import StorageSettings
from segray.train.transforms.semantic import SemanticTransform
from segray.train.transforms.strength import AugmentSettings

SIZE = (480, 640)
"""Height and width."""
VAL = 2
SEED = 0
RULES = LabelRules(2, "binary", ())
SMALLEST_SCALE = 0.75
"""Crops lie inside the pictures: with void pixels, the mean of the workers' losses is not the loss."""


def pairs_of(options: Options, number: int) -> Path:
    """A folder of `number` pairs in train and VAL in val; made once and then used again."""
    folder = options.scratch / f"pairs-{number}"
    if folder.exists():
        return folder
    real = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(BUNDLED.glob("*.png"))]
    for split, items, different in (("train", number, min(number, DIFFERENT)), ("val", VAL, VAL)):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(items):
            image, label = images / f"{index:06d}.jpg", labels / f"{index:06d}.png"
            if index >= different:
                os.link(images / f"{index % different:06d}.jpg", image)
                os.link(labels / f"{index % different:06d}.png", label)
                continue
            pixels = tiled(real, SIZE, seed=index + (DIFFERENT if split == "val" else 0))
            Image.fromarray(pixels).save(image, quality=90)
            grey = pixels.mean(axis=2)
            Image.fromarray(np.where(grey > grey.mean(), 255, 0).astype(np.uint8)).save(label)
    return folder


def split_pairs(folder: Path) -> tuple[list[Pair], list[Pair]]:
    """Those of train and those of val, in the order that `segray train` gives them."""
    pairs = list_pairs(str(folder), StorageSettings()).pairs
    return [pair for pair in pairs if pair.split == "train"], [pair for pair in pairs if pair.split == "val"]


def transform(size: int, fill: tuple[int, ...]) -> SemanticTransform:
    """As `segray train` makes it of FRAMING_FLAGS."""
    return SemanticTransform(size, "crop", AugmentSettings(smallest_scale=SMALLEST_SCALE), SEED, fill)


FRAMING_FLAGS = ("--fit", "crop", "--seed", SEED, "--augment.smallest-scale", SMALLEST_SCALE)
