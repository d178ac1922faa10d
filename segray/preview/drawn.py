"""One image of a run for a notebook: some pictures with outlines or classes, side by side."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.errors import ItemError, NothingToDoError, SettingsError
from segray.output.io import read_file
from segray.palette import VOID, palette
from segray.preview.classes import coloured, lighter
from segray.preview.instances import Shown, instances_of
from segray.preview.label_maps import LabelMap, MapReader
from segray.preview.ledger import instance_files_of, offer_instances, read_ledger, rows_of
from segray.preview.outlines import rings_of
from segray.preview.pictures import PictureReader, Pixels
from segray.preview.runs import Run, copies_of, find_run
from segray.preview.sample import Sampler
from segray.storage import StorageSettings

_SHIFT = 2
"""Bits after the point of outlines' coordinates, see `outlines.UNIT`."""
_COLUMNS = 4
_MAX_PIXELS = 100_000_000


def drawn(url: str, storage: StorageSettings, images: int = 4, side: int = 512) -> Image.Image:
    """Return some images of a run, each at most `side` pixels long, or the curves of a training.

    Raises SettingsError for another run, NothingToDoError where no picture of the sample can be read.
    """
    run = find_run(url, storage)
    if run.verb == "train":
        return Image.open(io.BytesIO(read_file(f"{run.url}/curves.png", storage, "run")))
    if run.verb not in ("annotate", "import", "predict"):
        raise SettingsError(f"run: nothing of {run.verb} to draw; segray preview shows it")
    pictures = list(
        _label_maps(run, images, side) if run.verb == "predict" else _instances(run, images, side)
    )
    if not pictures:
        raise NothingToDoError(f"run: no picture of {run.shown} can be read")
    return Image.fromarray(_side_by_side(pictures))


def _instances(run: Run, images: int, side: int) -> Iterator[Pixels]:
    """Yield pictures of annotate with outlines."""
    sampler, files = Sampler(images), instance_files_of(run)
    ledger = read_ledger(run, sampler)
    offer_instances(run, files, sampler)
    reasons = sampler.chosen()
    shown = instances_of(run, files, list(reasons))
    names = sorted({name for each in shown.values() for name, _ in each.bins})
    colours = {each["name"]: each["colour"] for each in coloured(names)}
    for row, pixels in _pictures(run, rows_of(run, ledger, reasons), side):
        _outline(pixels, row, shown[row["image_id"]], colours)
        yield pixels


def _label_maps(run: Run, images: int, side: int) -> Iterator[Pixels]:
    """Yield pictures of predict, half covered by their classes; class 0 and void are left as they are."""
    sampler = Sampler(images)
    ledger = read_ledger(run, sampler)
    sampler.groups.pop("empty", None)
    rows = rows_of(run, ledger, sampler.chosen())
    with MapReader(run, _MAX_PIXELS) as reader:
        maps = dict(zip((row["image_id"] for row in rows), reader.read(rows), strict=True))
    for row, pixels in _pictures(run, rows, side):
        found = maps[row["image_id"]]
        if isinstance(found, LabelMap):
            _cover(pixels, found)
            yield pixels


def _pictures(run: Run, rows: Sequence[dict[str, Any]], side: int) -> Iterator[tuple[dict[str, Any], Pixels]]:
    with PictureReader(side, _MAX_PIXELS, run.storage, copies_of([run])) as reader:
        for row, picture in reader.read(rows):
            if not isinstance(picture, ItemError):
                yield row, picture.pixels.copy()


def _outline(pixels: Pixels, row: dict[str, Any], shown: Shown, colours: dict[str, list[int]]) -> None:
    texts = [(each["segmentation"] or {}).get("counts") or "" for each in shown.rows]
    rings = rings_of(texts, row["height"], row["width"], len(pixels) / row["height"])
    for each, found in zip(shown.rows, rings, strict=True):
        points = [np.array(ring, np.int32).reshape(-1, 1, 2) for ring in found or ()]
        cv2.polylines(pixels, points, True, colours[each["category"] or ""], 1, cv2.LINE_AA, _SHIFT)


def _cover(pixels: Pixels, found: LabelMap) -> None:
    table = np.array([lighter(each) for each in palette(VOID).tolist()], np.uint8)
    size = pixels.shape[1], pixels.shape[0]
    values = cv2.resize(found.values, size, interpolation=cv2.INTER_NEAREST)
    there = (values != 0) & (values != VOID)
    pixels[there] = (pixels[there].astype(np.uint16) + table[values[there]]) // 2


def _side_by_side(pictures: Sequence[Pixels]) -> NDArray[np.uint8]:
    """Return one picture of all, white where they differ in size."""
    height, width = (max(each.shape[axis] for each in pictures) for axis in range(2))
    rows = -(-len(pictures) // _COLUMNS)
    cols = min(len(pictures), _COLUMNS)
    whole = np.full((rows * height, cols * width, 3), 255, np.uint8)
    for number, each in enumerate(pictures):
        top, left = number // _COLUMNS * height, number % _COLUMNS * width
        whole[top : top + each.shape[0], left : left + each.shape[1]] = each
    return whole
