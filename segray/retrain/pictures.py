"""Panels of the held-out images on which champion and challenger differ most, for the report."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from segray.data.pair_reader import digest_of
from segray.errors import ItemError
from segray.retrain.matches import InstanceMatches
from segray.retrain.scoring import Scored
from segray.scenes.scene import Tiling
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode_step import decode_image
from segray.sources.item import Source
from segray.sources.manifest import look_up_rows
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings
from segray.train.reporting.samples import side_by_side

SURE = 0.5
"""Score above which detections are drawn and counted."""


def f1(matches: InstanceMatches) -> NDArray[np.float64]:
    """Return F1, 2 TP / (detections + truth), at IoU 0.5 of detections above SURE, float64 (images,).

    It is 1 for images without detections and truth.
    """
    images = len(matches.images)
    sure = (matches.score > SURE) & ~matches.ignored[0]
    hits = np.bincount(matches.image[sure & matches.matched[0]], minlength=images)
    whole = np.bincount(matches.image[sure], minlength=images) + matches.truth.sum(axis=0)
    return np.where(whole > 0, 2 * hits / np.maximum(whole, 1), 1.0)


def differing_pictures(
    challenger: Scored, champion: Scored | None, number: int, max_pixels: int, storage: StorageSettings
) -> list[tuple[str, bytes]]:
    """Return (caption, PNG) of at most `number` images of an instance model, except deleted ones.

    Without a champion the images on which the challenger is worst.
    """
    if not isinstance(challenger.matches, InstanceMatches) or not number:
        return []
    mine = f1(challenger.matches)
    theirs = np.ones_like(mine)
    if champion is not None:
        assert isinstance(champion.matches, InstanceMatches)
        theirs = f1(champion.matches)
    order = np.argsort(-np.abs(mine - theirs), kind="stable")[:number]
    chosen = [index for index in order.tolist() if mine[index] != theirs[index]]
    keys = [challenger.matches.images[index] for index in chosen]
    pixels = _pixels([challenger.names[key] for key in keys], max_pixels, storage)
    found = []
    for index, key, picture in zip(chosen, keys, pixels, strict=True):
        if isinstance(picture, ItemError):
            continue
        name = challenger.names[key]
        words = f"{name}: F1 {theirs[index]:.2f} of the champion, {mine[index]:.2f} of the challenger"
        if champion is None:
            words = f"{name}: F1 {mine[index]:.2f}"
        found.append((words, _drawn(name, key, picture, challenger, champion)))
    return found


def _drawn(
    name: str, key: str, picture: NDArray[np.uint8], challenger: Scored, champion: Scored | None
) -> bytes:
    assert challenger.scores is not None
    truth = [row for row in challenger.scores.truth if row["image_id"] == key]
    panels = [(f"truth: {len(truth)}", _masks(truth))]
    for who, scored in (("champion", champion), ("challenger", challenger)):
        if scored is not None and scored.scores is not None:
            rows = [
                row for row in scored.scores.predictions if row["image_id"] == key and row["score"] > SURE
            ]
            panels.append((f"{who}: {len(rows)}", _masks(rows)))
    file = io.BytesIO()
    Image.fromarray(side_by_side(name, picture, panels)).save(file, "PNG")
    return file.getvalue()


def _masks(rows: Sequence[dict[str, object]]) -> list[NDArray[np.bool_]]:
    return [coco_mask.decode(row["segmentation"]) > 0 for row in rows]


def _pixels(
    addresses: Sequence[str], max_pixels: int, storage: StorageSettings
) -> list[NDArray[np.uint8] | ItemError]:
    where = Source("", "", "file", "", -1)
    sources = look_up_rows(list(enumerate(addresses)), where, ".", storage)
    sandbox = DecodeSandbox()
    found: list[NDArray[np.uint8] | ItemError] = []
    for data in read_all(sources, storage):
        try:
            if isinstance(data, ItemError):
                raise data
            file = MemoryRanges(digest_of(data), memoryview(data))
            found.append(decode_image(sandbox, file, max_pixels, Tiling()).pixels)
        except ItemError as error:
            found.append(error)
    return found
