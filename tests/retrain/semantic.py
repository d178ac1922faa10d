"""A semantic retraining of bright squares, in seconds."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.train.squares import UNET, squares

TRAIN: dict[str, Any] = {
    **{
        "arch": "unet",
        "arch_settings": json.loads(UNET),
        "size": 32,
        "lr": 0.02,
        "batch_size": 2,
        "loaders": 1,
    },
    **{"augment": {"preset": "off"}, "precision": "fp32", "schedule": "constant"},
}


def write_squares(folder: Path, train: int, held_out: int = 12) -> Path:
    """Pictures and label maps, with splits; those that are there stay as they are."""
    for split, number, seed in (("train", train, 0), ("val", 4, 1), ("test", held_out, 2)):
        squares(folder / "squares", split, number, seed)
    return folder / "squares"


def write_config(folder: Path, *, epochs: int, where: Path | None = None, **changed: Any) -> Path:
    """`retrain.yaml`; where: absolute addresses below it, in place of relative ones."""
    base = "" if where is None else f"{where}/"
    settings = {
        **{"data": f"{base}squares", "registry": f"{base}registry", "model": "squares"},
        **{
            "output": f"{base}rounds",
            "min_new": 3,
            "train": {**TRAIN, "epochs": epochs},
            "gate": {"draws": 1000},
        },
    }
    path = folder / "retrain.yaml"
    path.write_text(yaml.safe_dump({**settings, **changed}))
    return path
