"""Pieces of the real microscope images of `tests/data/nuclei`, as label maps and as COCO."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

NUCLEI = Path(__file__).parents[1] / "data/nuclei"
SIDE = 64
SPLITS = ("train",) * 4 + ("val",) * 2


def write_pieces(folder: Path) -> Path:
    """Write six pieces of 64 x 64 pixels with the most nuclei, each of another image.

    `images/` and `labels/` with splits below them, of label maps (255: nucleus), and `instances.json`.
    """
    content = json.loads((NUCLEI / "instances.json").read_text())
    by_image: dict[int, list[Any]] = {}
    for each in content["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each["segmentation"])
    small = [each for each in content["images"] if each["height"] == each["width"] == 256]
    others = [each for each in content["images"] if each not in small]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, split) in enumerate(zip(small + others, SPLITS, strict=False)):
        masks = np.stack([coco_mask.decode(each) for each in by_image[image["id"]]]).astype(bool)
        window = _fullest(np.asarray(masks.any(axis=0), bool))
        pixels = np.asarray(Image.open(NUCLEI / "images" / image["file_name"]).convert("RGB"))[window]
        inside = [mask[window] for mask in masks if mask[window].sum() > 40]
        name = f"{split}/{number}.png"
        _save(folder / "images" / name, pixels)
        _save(folder / "labels" / name, 255 * np.any(inside, axis=0).astype(np.uint8))
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE, "split": split})
        for mask in inside:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            counts = {"size": rle["size"], "counts": rle["counts"].decode()}
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append(row | {"segmentation": counts})
    made = {"images": images, "annotations": annotations, "categories": content["categories"]}
    (folder / "instances.json").write_text(json.dumps(made))
    return folder


def _fullest(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The window on a grid of half its side in which the mask has the most pixels."""
    starts = [
        (row, col)
        for row in range(0, mask.shape[0] - SIDE + 1, SIDE // 2)
        for col in range(0, mask.shape[1] - SIDE + 1, SIDE // 2)
    ]
    row, col = max(starts, key=lambda at: int(mask[at[0] : at[0] + SIDE, at[1] : at[1] + SIDE].sum()))
    return slice(row, row + SIDE), slice(col, col + SIDE)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
