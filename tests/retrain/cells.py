"""A retraining of discs drawn in code, in seconds; and what changes its labels between two rounds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segray.cli import main
from tests.train.cells import write_cells
from tests.train.test_instances_job import ARCH

TRAIN: dict[str, Any] = {
    **{"arch": "compact-maskrcnn", "arch_settings": json.loads(ARCH), "size": 96, "min_size": 96},
    **{"max_size": 96, "batch_size": 2, "lr": 0.005, "clip": 5, "schedule": "constant", "warmup_steps": 10},
    **{"augment": {"preset": "off"}, "loaders": 1, "precision": "fp32"},
}


def splits_of(number: int) -> list[str]:
    """Of that many pictures: half are held out, a sixth chooses the epoch."""
    return [("test", "train", "val", "test", "train", "test")[place % 6] for place in range(number)]


def write_labels(folder: Path, images: int) -> None:
    """So many pictures with their labels; those that are there stay as they are."""
    fresh = folder.with_name(f"{folder.name}-{images}")
    write_cells(fresh, images=images)
    content = json.loads((fresh / "instances.json").read_text())
    for image, split in zip(content["images"], splits_of(images), strict=True):
        image["split"] = split
        image["camera"] = "left" if image["id"] % 2 else "right"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for path in (fresh / "images").iterdir():
        if not (folder / "images" / path.name).exists():
            path.rename(folder / "images" / path.name)
    (folder / "instances.json").write_text(json.dumps(content))


def shuffle_labels(folder: Path, seed: int) -> int:
    """Give each picture that trains the labels of another one; returns how many."""
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"] if image["split"] == "train"]
    shift = int(np.random.default_rng(seed).integers(1, len(ids)))
    moved = dict(zip(ids, ids[shift:] + ids[:shift], strict=True))
    for annotation in content["annotations"]:
        annotation["image_id"] = moved.get(annotation["image_id"], annotation["image_id"])
    path.write_text(json.dumps(content))
    return len(ids)


def write_config(folder: Path, *, epochs: int, **changed: Any) -> Path:
    """`retrain.yaml` with relative addresses, as a user writes it."""
    settings = {
        **{"data": "cells", "registry": "registry", "model": "cells", "output": "rounds", "min_new": 4},
        **{"train": {**TRAIN, "epochs": epochs}, "pictures": 2, "gate": {"draws": 1000}},
    }
    path = folder / "retrain.yaml"
    path.write_text(yaml.safe_dump({**settings, **changed}))
    return path


def retrain(*options: object) -> int:
    """The command, in this process and the present folder."""
    return main(["retrain", "--config", "retrain.yaml", *map(str, options)])
