"""Label images: `masks/NAME.png` of 16 bits, 0 where nothing is; the best score lies on top.

instances  1, 2, … in the order of `instance_id`; `instances.csv` says what each is
classes    `category_id`; `classes.csv` has the names

An output of `predict` has label images already: they are copied under the names of their images.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from segray.errors import SettingsError
from segray.export.table import Image, Instance, LabelTable
from segray.export.target import Target
from segray.masks.spans import counts_of
from segray.output.io import read_file
from segray.output.names import PLAN
from segray.storage import StorageSettings, open_filesystem

FILES, FOLDERS = ("images.csv", "instances.csv", "classes.csv"), ("masks",)
MOST = 2**16 - 1


def check_values(table: LabelTable, pixels: str) -> None:
    """Raise SettingsError where 16 bits cannot hold the values."""
    if pixels == "classes":
        wrong = [number for number in table.categories() if not 0 < number <= MOST]
        if wrong:
            raise SettingsError(f"pixels: category_id {wrong[0]} is no value of a pixel (1 to {MOST:,})")
    elif (most := table.most_in_an_image()) > MOST:
        raise SettingsError(f"pixels: an image has {most:,} instances; a mask of 16 bits holds {MOST:,}")


def write_masks(
    table: LabelTable, target: Target, splits: Sequence[str | None], pixels: str, folder: Path
) -> None:
    """Write a label image for each image of each split (None: all), and what its values mean.

    folder: for temporary files. One label image is in memory at a time, 2 bytes a pixel.
    """
    for split in splits:
        where = "masks" if split is None else f"masks/{split}"
        for image in table.images(split):
            numbers = None if pixels == "classes" else _numbers(table, image)
            target.put(
                f"{where}/{image.name}.png",
                _png(paint(table.of_image(image, best_last=True), image, numbers)),
            )
    if pixels == "classes":
        rows = [("value", "category"), *table.categories().items()]
        target.put("classes.csv", csv_of(rows))
        return
    local = folder / "instances.csv"
    with local.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("image_id", "value", "instance_id", "category_id", "category", "score"))
        for split in splits:
            for image in table.images(split):
                out.writerows(_legend(table, image))
    target.put_local("instances.csv", local)


def _legend(table: LabelTable, image: Image) -> Iterator[Sequence[object]]:
    for value, each in enumerate(table.of_image(image), start=1):
        row = (value, each.instance_id, each.category_id, each.category, each.plain_score)
        yield (image.image_id, *row)


def copy_label_maps(
    table: LabelTable,
    target: Target,
    splits: Sequence[str | None],
    run: str,
    storage: StorageSettings,
    folder: Path,
) -> None:
    """Copy the label maps of an output of `predict` to the names of their images.

    Raises FileNotFoundError where one is missing.
    """
    filesystem, root = open_filesystem(run, storage)
    local = folder / "map"
    for split in splits:
        where = "masks" if split is None else f"masks/{split}"
        for image in table.images(split):
            path = f"{root.rstrip('/')}/labels/{image.image_id}"
            suffix = ".png" if filesystem.exists(f"{path}.png") else ".tif"
            filesystem.get_file(f"{path}{suffix}", str(local))
            target.put_local(f"{where}/{image.name}{suffix}", local)
    plan = json.loads(read_file(f"{run}/{PLAN}", storage, "run"))
    target.put("classes.csv", csv_of([("value", "category"), *enumerate(plan.get("classes", []))]))


def _numbers(table: LabelTable, image: Image) -> dict[str, int]:
    return {each.instance_id: value for value, each in enumerate(table.of_image(image), start=1)}


def paint(instances: Iterable[Instance], image: Image, numbers: dict[str, int] | None) -> NDArray[np.uint16]:
    """Return the label image, uint16 (height, width); numbers: value of each instance, None: its class.

    instances: by ascending score, those without one last: what a person drew covers the rest. Raises
    SettingsError for a value that 16 bits cannot hold.
    """
    flat = np.zeros(image.height * image.width, np.uint16)  # by columns, as the run lengths
    for each in instances:
        value = each.category_id if numbers is None else numbers[each.instance_id]
        if not 0 <= value <= MOST:
            what = "category_id" if numbers is None else "value"
            raise SettingsError(f"run: {what} {value:,} of {each.instance_id} is no pixel of 16 bits")
        edges = np.cumsum(counts_of([each.counts or ""])[0])
        for start, stop in zip(edges[0:-1:2].tolist(), edges[1::2].tolist(), strict=True):
            flat[start:stop] = value
    return flat.reshape(image.width, image.height).T


def _png(pixels: NDArray[np.uint16]) -> bytes:
    sink = io.BytesIO()
    Picture.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG")
    return sink.getvalue()


def csv_of(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as CSV."""
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows(rows)
    return sink.getvalue().encode()
