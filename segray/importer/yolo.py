"""YOLO labels, segmentation and detection: a folder of `labels/…/NAME.txt` with classes.txt or data.yaml.

Format: https://docs.ultralytics.com/datasets/segment/ and …/detect/. An outline passes through the centres of
pixels and is filled as readers do it (`cv2.fillPoly`); a box is the pixels whose centre is inside. A row of
the run whose outline comes back as it was exported keeps its own mask, with holes and parts.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from segray.data.pair_folders import SPLIT_NAMES
from segray.errors import ItemError, SettingsError
from segray.export.table import Image, Instance
from segray.export.yolo import yolo_line
from segray.importer.categories import Categories
from segray.importer.drawn import Draw, Drawn, Looked, box, failing, pasted
from segray.importer.files import read_small
from segray.importer.pile import Pile
from segray.output.io import files_below
from segray.sources.item import Source
from segray.sources.names import one_line
from segray.sources.read_step import read_all
from segray.storage import StorageSettings, canonical_uri, shown

_AT_ONCE = 256
_NO_LABELS = ("classes.txt", "train.txt", "val.txt", "test.txt")


def read_yolo(url: str, categories: Categories, storage: StorageSettings, folder: Path) -> Iterator[Looked]:
    """Yield the images that have a label file. Raises SettingsError without any, or without class names."""
    root = url.rstrip("/")
    names = _class_names(root, storage)
    categories.declare((number + 1, name) for number, name in sorted(names.items()))
    listed = named_images(root, storage, folder)
    texts = files_below(root, (".txt",), storage)
    files = [file for file in texts if "/labels/" in file.uri[len(canonical_uri(root)) :]]
    files = files or [file for file in texts if file.uri.rpartition("/")[2] not in _NO_LABELS]
    if not files:
        raise SettingsError(f"file: {shown(url)} holds no labels/*.txt")
    left = iter(files)
    while some := list(islice(left, _AT_ONCE)):
        for file, data in zip(some, read_all(some, storage), strict=True):
            name, split = place_of(file.uri.removeprefix(canonical_uri(root) + "/"))
            about = listed.of(name)
            drawn = _drawn_of(file, data, names)
            image_id = about[0]["image_id"] if len(about) == 1 else None
            yield Looked(name, drawn, image_id, split=split, is_stem=True, shown=_shown)
    listed.close()


def place_of(path: str) -> tuple[str, str | None]:
    """Return name (without suffix) and split of a file: train/labels/a.txt, labels/val/b.txt."""
    *folders, file = path.split("/")
    splits = [SPLIT_NAMES[each.lower()] for each in folders if each.lower() in SPLIT_NAMES]
    return file.rpartition(".")[0] or file, splits[0] if splits else None


def named_images(root: str, storage: StorageSettings, folder: Path) -> Pile:
    """Return the rows of images.csv, which our own exports have, by the name of their file."""
    found = Pile(folder, "images")
    text = read_small(f"{root}/images.csv", storage)
    rows = csv.DictReader(io.StringIO(text or "", newline=""))
    found.add((str(row.get("name")), {"image_id": row.get("image_id")}) for row in rows)
    found.settle()
    return found


def _class_names(root: str, storage: StorageSettings) -> dict[int, str]:
    """Return the names of the classes by index, of data.yaml or classes.txt."""
    for name in ("data.yaml", "dataset.yaml"):
        if (text := read_small(f"{root}/{name}", storage)) is not None:
            try:
                names = yaml.safe_load(text)["names"]
                pairs = names.items() if isinstance(names, dict) else enumerate(names)
                return {int(number): str(each) for number, each in pairs}
            except (yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError) as error:
                raise SettingsError(
                    f"file: {shown(root)}/{name} has no names: {one_line(str(error))}"
                ) from error
    for name in ("classes.txt", "obj.names"):
        if (text := read_small(f"{root}/{name}", storage)) is not None:
            return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    raise SettingsError(f"file: {shown(root)} has neither data.yaml nor classes.txt, which name the classes")


def _drawn_of(file: Source, data: bytes | ItemError, names: dict[int, str]) -> list[Drawn]:
    if isinstance(data, ItemError):
        return [Drawn("labels", failing(data.reason), None)]
    lines = data.decode("utf-8", "replace").splitlines()
    return [_line(number, line, names) for number, line in enumerate(lines, start=1) if line.strip()]


def _line(number: int, line: str, names: dict[int, str]) -> Drawn:
    where = f"line {number}"
    try:
        first, *rest = line.split()
        index, values = int(float(first)), np.array(rest, np.float64)
        if not np.isfinite(values).all() or len(values) < 4:
            raise ValueError(f"{len(values)} numbers")
    except (ValueError, OverflowError) as error:
        return Drawn(where, failing(f"not `class x y …`: {one_line(str(error))}"), None)
    if index not in names:
        return Drawn(where, failing(f"class {index} has no name; there are {len(names)}"), None)
    values = values[: len(values) - len(values) % 2]  # the last of an odd number is a score
    return Drawn(where, _box(values) if len(values) == 4 else _ring(values.reshape(-1, 2)), names[index])


def _box(values: NDArray[np.float64]) -> Draw:
    x, y, box_width, box_height = values

    def draw(height: int, width: int) -> str:
        sides = (x - box_width / 2) * width, (y - box_height / 2) * height
        return box(*sides, (x + box_width / 2) * width, (y + box_height / 2) * height)(height, width)

    return draw


def _ring(ring: NDArray[np.float64]) -> Draw:
    def draw(height: int, width: int) -> str:
        if not np.abs(ring).max() <= 2:  # NaN neither
            raise ItemError("unsupported", f"coordinate {np.abs(ring).max():g}; they are shares of the sides")
        points = (ring * (width, height)).astype(np.int32)
        left, top = points.min(axis=0)
        right, bottom = points.max(axis=0) + 1
        crop = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(crop, [points - (left, top)], [1])
        return pasted(crop.astype(bool), int(top), int(left))(height, width)

    return draw


def _shown(image: Image, rows: Sequence[Instance]) -> list[str]:
    found: list[Any] = [yolo_line(row, 0, image).split()[1:] for row in rows]
    rings = [np.array(values, np.float64).reshape(-1, 2) for values in found]
    return [_ring(ring)(image.height, image.width) for ring in rings]
