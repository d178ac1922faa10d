"""A COCO data set with all that COCO allows: polygons, both kinds of run lengths, overlaps, a crowd."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from segray.data.coco_listing import list_coco
from segray.data.pair_reader import CocoExample, CocoReading
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.storage import StorageSettings

HEIGHT, WIDTH = 60, 80
CATEGORIES = [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}]


def polygon(x: float, y: float, side: float) -> list[list[float]]:
    """A square."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def plain_lengths(mask: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    """Uncompressed run lengths, by columns."""
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def write_mixed(folder: Path) -> Path:
    """One picture, 60 x 80, with five annotations; the JSON lies beside it. Returns the JSON."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    disc = ((rows - 30) ** 2 + (columns - 40) ** 2 <= 144).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(disc))
    crowd = (columns > 60).astype(np.uint8)
    segmentations = [
        (polygon(5.5, 6.25, 20), 7, 0),
        (polygon(20, 20, 18) + polygon(2, 40, 9), 7, 0),  # two parts, over the disc and the first square
        ({"size": packed["size"], "counts": packed["counts"].decode()}, 3, 0),
        (plain_lengths(np.roll(disc, 15, axis=1)), 3, 0),
        (plain_lengths(crowd), 7, 1),
    ]
    annotations = [
        {"id": 10 + place, "image_id": 1, "category_id": category, "iscrowd": crowd, "segmentation": each}
        for place, (each, category, crowd) in enumerate(segmentations)
    ]
    image = {"id": 1, "file_name": "one.png", "height": HEIGHT, "width": WIDTH}
    content = {"images": [image], "annotations": annotations, "categories": CATEGORIES}
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def read_coco(data: Path) -> list[tuple[Pair, CocoExample]]:
    """Return each image of a COCO file or folder with its instances, as training reads them."""
    storage = StorageSettings()
    listing = list_coco(str(data), storage)
    examples = CocoReading(listing.categories, 10_000_000, storage).reader().read(listing.pairs)
    found = []
    for pair, example in zip(listing.pairs, examples, strict=True):
        assert not isinstance(example, ItemError), example
        found.append((pair, example))
    return found
