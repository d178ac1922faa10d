"""YOLO segmentation labels: `labels/NAME.txt`, a line an instance, `class x y x y …` in shares of the sides.

Format: https://docs.ultralytics.com/datasets/segment/. Outlines are OpenCV's outer contours, through the
centres of pixels. Readers multiply with the image's size, cut to whole pixels and fill the outline: what they
get are the pixels of the mask with its holes filled. A line holds one ring: the parts of a mask are joined by
bridges between their nearest points, which readers draw one pixel wide.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from segray.export.table import Image, Instance, LabelTable
from segray.export.target import Target
from segray.masks.spans import bounds, crop

Ring = NDArray[np.float64]
FILES, FOLDERS = ("classes.txt", "data.yaml", "images.csv"), ("labels",)

_CORNERS = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]
"""Of a ring in a pixel: a line of fewer than three points is no outline, and one of no area no object."""

_COMPARED = 1_000
"""Points of a ring among which the nearest are sought."""


def write_yolo(table: LabelTable, target: Target, splits: Sequence[str | None]) -> None:
    """Write the labels of each split (None: all), the classes, and which image each file belongs to."""
    categories = table.categories()
    index = {number: place for place, number in enumerate(categories)}
    names = list(categories.values())
    target.put("classes.txt", "".join(f"{' '.join(name.split())}\n" for name in names).encode())
    target.put("data.yaml", _data(names, splits).encode())
    for split in splits:
        folder = "labels" if split is None else f"labels/{split}"
        for image in table.images(split):
            lines = [yolo_line(each, index[each.category_id], image) for each in table.of_image(image)]
            target.put(f"{folder}/{image.name}.txt", "".join(lines).encode())


def _data(names: Sequence[str], splits: Sequence[str | None]) -> str:
    """Return data.yaml: images are looked for in `images`, beside `labels`."""
    folders = {split: f"images/{split}" for split in splits if split is not None}
    data: dict[str, Any] = {"path": ".", **(folders or {"train": "images", "val": "images"})}
    text: str = yaml.safe_dump({**data, "names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True)
    return text


def yolo_line(instance: Instance, index: int, image: Image) -> str:
    """Return the line of an instance."""
    ring = outline(instance) / (image.width, image.height)
    return f"{index} {' '.join(f'{value:.7g}' for value in ring.ravel())}\n"


def outline(instance: Instance) -> Ring:
    """Return one ring around all parts of a mask, float64 (points, 2) of x, y; pixel centres at halves."""
    spans = instance.spans
    window = bounds(spans)
    pixels = crop(spans, window).astype(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    shift = np.array([window.col_start, window.row_start])
    rings = [_widened(contour.reshape(-1, 2) + shift) for contour in contours]
    return joined(rings)


def _widened(points: NDArray[np.integer[Any]]) -> Ring:
    """Return a contour through pixel centres; of one or two pixels, a ring of four points inside them."""
    ring: Ring = points + np.full(2, 0.5)
    if len(ring) < 3:
        ring = points[[0, 0, -1, -1]] + np.array(_CORNERS)
    return ring


def joined(rings: Sequence[Ring]) -> Ring:
    """Join rings, (points, 2) each, into one, the longest first, by bridges that are walked both ways.

    Bridges are between the nearest of at most `_COMPARED` points of each ring.
    """
    whole, *others = sorted(rings, key=len, reverse=True)
    for ring in others:
        steps = [-(-len(each) // _COMPARED) for each in (whole, ring)]
        distance = ((whole[:: steps[0], None, :] - ring[None, :: steps[1], :]) ** 2).sum(2)
        nearest = np.unravel_index(int(distance.argmin()), distance.shape)
        here, there = (int(place) * step for place, step in zip(nearest, steps, strict=True))
        turned = np.roll(ring, -there, axis=0)
        whole = np.concatenate([whole[: here + 1], turned, turned[:1], whole[here:]])
    return whole
