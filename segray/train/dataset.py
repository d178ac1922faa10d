"""COCO instance data held in memory: every image as uint8 pixels and one integer map of its instances."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from segray.data.splits import SPLITS, split_of


@dataclass(frozen=True)
class InstanceImage:
    """One image with its truth; 256x256 pixels with masks take 0.45 MB."""

    name: str
    digest: str
    """sha256 of the file's bytes, hex."""
    pixels: Tensor
    """uint8 (3, height, width), RGB."""
    instances: Tensor
    """int32 (height, width): 0 is background, i the i-th instance; a later mask covers an earlier one."""
    categories: Tensor
    """int64 (instances,): category id of instance i at i - 1."""
    split: str | None = None
    """The split that the data names for it; `split_of` decides where it names none."""

    @property
    def kind(self) -> tuple[int, int, bool]:
        """Height, width and whether the image has colour: a cheap name for the kind of microscope."""
        spread = self.pixels.amax(0).float() - self.pixels.amin(0).float()
        return self.pixels.shape[1], self.pixels.shape[2], bool(spread.mean() > 2)


def load_coco(folder: Path) -> tuple[list[InstanceImage], dict[int, str]]:
    """Read `folder/instances.json` and `folder/images/`; return images sorted by digest, and category names.

    Crowd regions are left out. An image may name its `split`, for data where chance would put pictures of one
    place on both sides. Raises OSError for a file that is missing and ValueError for broken JSON or a split
    of another name.
    """
    truth = json.loads((folder / "instances.json").read_text())
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd", 0):
            annotations[annotation["image_id"]].append(annotation)
    images = [
        _read_image(folder / "images" / entry["file_name"], annotations[entry["id"]], entry.get("split"))
        for entry in truth["images"]
    ]
    names = {int(category["id"]): str(category["name"]) for category in truth["categories"]}
    return sorted(images, key=lambda image: image.digest), names


def split_images(images: list[InstanceImage], *, seed: int) -> dict[str, list[InstanceImage]]:
    """Return the images of each split: the one that the data names, else by `split_of`."""
    splits: dict[str, list[InstanceImage]] = {name: [] for name in SPLITS}
    for image in images:
        splits[image.split or split_of(image.digest, seed=seed)].append(image)
    return splits


def _read_image(path: Path, annotations: list[dict[str, Any]], split: str | None) -> InstanceImage:
    if split is not None and split not in SPLITS:
        raise ValueError(f"{path.name}: split {split!r} is none of {', '.join(SPLITS)}")
    content = path.read_bytes()
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    instances = np.zeros(pixels.shape[:2], np.int32)
    for number, annotation in enumerate(annotations, start=1):
        instances[coco_mask.decode(annotation["segmentation"]).astype(bool)] = number
    return InstanceImage(
        name=path.name,
        digest=hashlib.sha256(content).hexdigest(),
        pixels=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        instances=torch.from_numpy(instances),
        categories=torch.tensor([annotation["category_id"] for annotation in annotations], dtype=torch.int64),
        split=split,
    )
