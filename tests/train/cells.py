"""A tiny COCO data set drawn in code: bright discs on a dark ground."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def write_cells(folder: Path, *, images: int, side: int = 96, cells: int = 6) -> Path:
    """Write `instances.json` and `images/` in the form that the training reads; returns the folder."""
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 4, "name": "cell"}],
    }
    for image_id in range(images):
        random = np.random.default_rng(image_id)
        pixels = random.integers(0, 30, (side, side, 3), dtype=np.uint8)
        taken = np.zeros((side, side), bool)
        for _ in range(cells):
            disc = _disc(side, *random.uniform((8, 8, 4), (side - 8, side - 8, 9))) & ~taken
            taken |= disc
            pixels[disc] += 150
            content["annotations"].append(_annotation(len(content["annotations"]), image_id, disc))
        name = f"cells-{image_id}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        content["images"].append({"id": image_id, "file_name": name, "width": side, "height": side})
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def _disc(side: int, x: float, y: float, radius: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    rows, columns = np.mgrid[:side, :side]
    inside: np.ndarray[Any, np.dtype[np.bool_]] = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return inside


def _annotation(number: int, image_id: int, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 4,
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }
