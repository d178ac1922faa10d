"""Runs with known distributions: the tables that drift reads, without pixels and masks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CLASSES = ("car", "house", "tree", "well")
Table = dict[str, Any]


@dataclass
class Archive:
    """Images of one place: those of one image are alike, as they are in the world."""

    images: Table
    instances: Table

    def part(self, which: NDArray[np.bool_]) -> "Archive":
        """Some of the images with their instances."""
        images = {name: np.asarray(column)[which] for name, column in self.images.items()}
        wanted = np.isin(self.instances["image_id"], images["image_id"])
        return Archive(images, {name: np.asarray(each)[wanted] for name, each in self.instances.items()})


def archive(
    seed: int,
    number: int,
    *,
    darker: float = 0.0,
    classes: Sequence[float] = (0.5, 0.3, 0.15, 0.05),
    dark_camera: str | None = None,
) -> Archive:
    """`number` annotated images of three cameras; 0 to about 20 instances each, half of them of one class."""
    random = np.random.default_rng(seed)
    ids = np.array([random.bytes(16).hex() for _ in range(number)])
    camera = random.choice(["left", "right", "top"], number)
    brightness = random.normal(120, 25, number) - darker - 60 * (camera == dark_camera)
    found = random.negative_binomial(2, 0.3, number)
    parent = np.repeat(np.arange(number), found)
    mixtures = random.dirichlet(np.array(classes) * 2, number)[parent]
    drawn = (random.random((len(parent), 1)) > mixtures.cumsum(1)).sum(1).clip(max=3)
    sizes = np.exp(random.normal(6, 0.5, number))[parent]
    images = {
        "image_id": ids,
        "status": np.full(number, "annotated"),
        "instances": found.astype(np.int32),
        "brightness": brightness.clip(0, 255).astype(np.float32),
        "sharpness": np.exp(random.normal(5, 1, number)).astype(np.float32),
        "camera": camera,
    }
    instances = {
        "image_id": ids[parent],
        "score": random.beta(6, 2, len(parent)).astype(np.float32),
        "category": np.array(CLASSES)[drawn],
        "area": (sizes * random.lognormal(0, 0.3, len(parent))).astype(np.int64) + 1,
    }
    return Archive(images, instances)


def halves(seed: int, number: int) -> tuple[Archive, Archive]:
    """One archive, split by chance."""
    whole = archive(seed, 2 * number)
    first = np.random.default_rng([seed, 1]).permutation(2 * number) < number
    return whole.part(first), whole.part(~first)


def write(folder: Path, made: Archive, parts: int = 1, verb: str | None = "annotate") -> str:
    """A finished run; its images are dealt to so many parts. Returns its address."""
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    part = np.arange(len(made.images["image_id"])) % parts
    for number in range(parts):
        own = made.part(part == number)
        for name, table in (("images", own.images), ("instances", own.instances)):
            pq.write_table(pa.table(table), folder / name / f"part-{number:06d}.parquet", row_group_size=300)
    (folder / "run.json").write_text(json.dumps({} if verb is None else {"verb": verb}))
    return str(folder)
