"""`--boxes`: the boxes of a COCO file become masks by SAM; a model in the place of a detector.

The boxes are flat arrays, 28 bytes for each and 24 for each image (10^7 boxes take 280 MB), which Ray's
object store shares among the workers of a machine. An image's own are found by its name.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segray.annotate.instances import Found, annotated_table, found_instances
from segray.annotate.sam_detector import SamMasks
from segray.bulk.batches import Image, images_of
from segray.bulk.results import Outcome
from segray.data.coco_file import ImageId, box_of, entry_of, known_id, score_of
from segray.data.coco_stream import CocoStream
from segray.errors import ItemError, SettingsError
from segray.log import say
from segray.models.device import Precision
from segray.models.weights import LoadedModel, name_of
from segray.storage import StorageSettings

_LEFT_OUT = "crowds, or no valid box, score, image or category"
_MOST = 1e9
"""Largest coordinate and score, far beyond any image: a float32 holds it."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of one image; n of them."""

    size: tuple[int, int]
    """Height and width of the image in the file."""
    corners: NDArray[np.float32]
    """(n, 4): x0, y0, x1, y1 in pixels."""
    categories: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class BoxTable:
    """The boxes of all images, those of an image one after another."""

    names: NDArray[np.uint64]
    """(images,): hashes of `file_name`, ascending."""
    sizes: NDArray[np.int32]
    """(images, 2): height, width."""
    starts: NDArray[np.int64]
    """(images + 1,): where the boxes of an image begin."""
    boxes: Boxes
    """Those of all images; without a size."""
    categories: Mapping[int, str]
    """Names by id."""

    @cached_property
    def digest(self) -> str:
        """Return a sha256, hex, over all arrays and the names of the categories."""
        found = hashlib.sha256(json.dumps(sorted(self.categories.items())).encode())
        every = self.boxes.corners, self.boxes.categories, self.boxes.scores
        for part in (self.names, self.sizes, self.starts, *every):
            found.update(np.ascontiguousarray(part).view(np.uint8).data)
        return found.hexdigest()

    def of(self, address: str) -> Boxes | None:
        """Return the boxes of the image whose name in the file is the longest end of its address."""
        parts = address.split("/")
        for first in range(len(parts)):
            key = _hash("/".join(parts[first:]))
            row = int(np.searchsorted(self.names, key))
            if row < len(self.names) and self.names[row] == key:
                some = slice(int(self.starts[row]), int(self.starts[row + 1]))
                size = int(self.sizes[row, 0]), int(self.sizes[row, 1])
                every = self.boxes
                return Boxes(size, every.corners[some], every.categories[some], every.scores[some])
        return None


def load_boxes(address: str, storage: StorageSettings, refiner: LoadedModel) -> LoadedModel:
    """Return the boxes of a COCO file as a model, whose masks `refiner` makes.

    Crowds and annotations without a valid box, score, image or category are left out, and told. Raises
    SettingsError.
    """
    file = CocoStream(address, storage, "boxes")
    images, categories = file.header(None)
    large = [number for number in categories if not -(2**31) <= number < 2**31]
    if large:
        raise SettingsError(f"{file.where}: category ids have 32 bits, {large[0]} has more")
    by_name = sorted(images, key=lambda number: _hash(images[number].name))
    rows = {number: row for row, number in enumerate(by_name)}
    names = np.array([_hash(images[number].name) for number in by_name], np.uint64)
    if len(np.unique(names)) < len(names):
        raise SettingsError(f"{file.where}: two images have one file_name")
    places, numbers, corners, scores, lost = array("q"), array("i"), array("f"), array("f"), 0
    for each in file.annotations():
        try:
            row, category, score, box = _row(each, rows, categories)
        except ItemError:
            lost += 1
            continue
        places.append(row)
        numbers.append(category)
        corners.extend(box)
        scores.append(score)
    if lost:
        say(f"{file.where}: {lost:,} annotations left out: {_LEFT_OUT}", "warning")
    if not len(places):
        raise SettingsError(f"{file.where}: it has no boxes")
    table = _sorted(names, [images[number].size for number in by_name], places, numbers, corners, scores)
    table = replace(table, categories=dict(categories))
    return LoadedModel(name_of(address), "file", table, dict(categories), None, table.digest, refiner=refiner)


def _row(
    annotation: Any, rows: Mapping[ImageId, int], categories: Mapping[int, str]
) -> tuple[int, int, float, tuple[float, ...]]:
    """Return row of the image, category, score and corners. Raises ItemError for what is left out."""
    image = known_id(rows, entry_of(annotation, "image_id"))
    category = known_id(categories, entry_of(annotation, "category_id"))
    if image is None or category is None or known_id((0, 1), entry_of(annotation, "iscrowd") or 0) != 0:
        raise ItemError("unsupported", _LEFT_OUT)
    left, top, width, height = box_of(entry_of(annotation, "bbox"))
    given = entry_of(annotation, "score")
    score = 1.0 if given is None else score_of(given)
    corners = left, top, left + width, top + height
    if not (width and height) or max(map(abs, (*corners, score))) > _MOST:
        raise ItemError("unsupported", _LEFT_OUT)
    return rows[image], category, score, corners


def _sorted(names: Any, sizes: Any, places: Any, numbers: Any, corners: Any, scores: Any) -> BoxTable:
    rows = np.frombuffer(places, np.int64)
    order = np.argsort(rows, kind="stable")
    boxes = Boxes(
        (0, 0),
        np.frombuffer(corners, np.float32).reshape(-1, 4)[order],
        np.frombuffer(numbers, np.int32)[order],
        np.frombuffer(scores, np.float32)[order],
    )
    starts = np.searchsorted(rows[order], np.arange(len(names) + 1)).astype(np.int64)
    return BoxTable(names, np.array(sizes, np.int32), starts, boxes, {})


def _hash(name: str) -> np.uint64:
    plain = name.removeprefix("./").encode("utf-8", "surrogateescape")
    return np.uint64(int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big"))


class BoxPredictor:
    """DECODED -> ANNOTATED by the boxes of a file; see `model_step.Predictor`."""

    def __init__(self, model: LoadedModel, device: str, precision: Precision, threads: int | None) -> None:
        """Load the refiner of a model from `load_boxes`; device and precision: resolved."""
        assert model.refiner is not None
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.table = model, model.module
        self.sam = SamMasks(model.refiner.module, torch.device(device), precision)

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED, in the order of the rows."""
        outcomes: list[Outcome] = [None] * table.num_rows
        columns = (table[name].to_pylist() for name in ("uri", "member", "tile"))
        places = list(zip(*columns, strict=True))
        for row, image in images_of(table).items():
            outcomes[row] = self._outcome(image, *places[row])
        return annotated_table(table, outcomes, self.model.categories)

    def _outcome(self, image: Image, uri: str, member: str | None, tile: int | None) -> Found | ItemError:
        if tile is not None:
            return ItemError("unsupported", "boxes are for whole images; raise tile_above")
        boxes = self.table.of(uri if member is None else f"{uri}/{member}")
        if boxes is None:
            return ItemError("missing", f"{self.model.name} has no image of this name")
        if boxes.size != image.shape[:2]:
            height, width = boxes.size
            return ItemError("unsupported", f"its boxes are for an image of {width} x {height} pixels")
        masks = self.sam.masks(image, boxes.corners)
        return found_instances(boxes.categories, boxes.scores, boxes.corners, masks)
