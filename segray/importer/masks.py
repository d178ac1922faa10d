"""Label images, corrected in a paint program: `masks/NAME.png` of numbers, or in the colours of a table.

instances.csv says what the numbers are: `image_id` (or `name`), `value`, `instance_id`, `category_id`,
`category`. A number without a row is a new instance, if there is one class alone. A picture in colours is
read by the column `colour` (`#rrggbb`) of instances.csv or classes.csv, else by the palette of PASCAL VOC,
which `predict` writes. Rows of the run that others hide, as `export` paints them, keep their masks.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.data.coco_file import whole_id
from segray.errors import ItemError, SettingsError
from segray.export.masks import paint
from segray.export.table import Image, Instance
from segray.importer.categories import Categories
from segray.importer.drawn import Drawn, Looked, by_value, failing
from segray.importer.files import read_small
from segray.importer.pile import Pile
from segray.importer.rejects import Rejects
from segray.importer.yolo import named_images, place_of
from segray.masks.spans import encoded
from segray.output.io import files_below
from segray.palette import VOID, palette
from segray.sources.item import Source
from segray.sources.label_image import read_stored
from segray.sources.read_step import read_all
from segray.storage import StorageSettings, canonical_uri, shown

SUFFIXES = (".png", ".tif", ".tiff")
INSTANCES, CLASSES = "instances.csv", "classes.csv"
_AT_ONCE = 16
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A label image of the folder and what is known of its image."""

    source: Source
    name: str
    split: str | None
    image_id: str | None
    data: bytes | ItemError


def mask_files(root: str, storage: StorageSettings, folder: Path) -> Iterator[MaskFile]:
    """Yield the label images of a folder. Raises SettingsError where there is none."""
    below = f"{root}/masks" if files_below(f"{root}/masks", SUFFIXES, storage) else root
    files = files_below(below, SUFFIXES, storage)
    if not files:
        raise SettingsError(f"file: {shown(root)} holds no masks/*.png")
    listed = named_images(root, storage, folder)
    left = iter(files)
    while some := list(islice(left, _AT_ONCE)):
        for source, data in zip(some, read_all(some, storage), strict=True):
            name, split = place_of(source.uri.removeprefix(canonical_uri(below) + "/"))
            about = listed.of(name)
            image_id = about[0]["image_id"] if len(about) == 1 else None
            yield MaskFile(source, name, split, image_id, data)
    listed.close()


def table_of(root: str, name: str, needed: Sequence[str], storage: StorageSettings) -> list[dict[str, str]]:
    """Return the rows of a table of the folder; empty without one.

    Raises SettingsError for a lost column, and for a `value` that is no whole number.
    """
    text = read_small(f"{root}/{name}", storage)
    if text is None:
        return []
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if lost := [column for column in needed if column not in (reader.fieldnames or [])]:
        raise SettingsError(f"file: {shown(root)}/{name} has no column {', '.join(lost)}")
    rows = list(reader)
    for place, row in enumerate(rows, start=1):
        value = _whole(row["value"])
        if value is None:
            where = f"file: {shown(root)}/{name}, row {place}"
            raise SettingsError(f"{where}: value {row['value']!r} is no whole number")
        row["value"] = str(value)
    return rows


def values_of(data: bytes, colours: Mapping[int, int], max_pixels: int) -> Values:
    """Return the numbers of a label image, (height, width).

    colours: 0xrrggbb -> number. Raises ItemError for a broken image, a lossy one, or an unknown colour.
    """
    try:
        stored = read_stored(data, max_pixels)
    except ItemError as error:
        if "colour picture" not in error.reason:
            raise
        stored = read_stored(data, max_pixels, coloured=True)
    if stored.lossy:
        raise ItemError("unsupported", f"{stored.form} changes the values it stores; save it as PNG")
    return stored.values if stored.values.ndim == 2 else _by_colour(stored.values, colours)


def _by_colour(pixels: Values, colours: Mapping[int, int]) -> Values:
    wide = pixels.astype(np.uint32)
    codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    keys = np.array(sorted(colours), np.uint32)
    place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
    unknown = keys[place] != codes
    if unknown.any():
        first = int(codes[unknown][0])
        raise ItemError(
            "unsupported",
            f"{int(unknown.sum()):,} pixels in colours of no class, #{first:06x} for one; "
            "paint without smooth edges",
        )
    numbers: Values = np.array([colours[key] for key in keys.tolist()], np.int32)[place]
    return numbers


def colours_of(rows: Sequence[Mapping[str, str]]) -> dict[int, int]:
    """Return 0xrrggbb -> value, by the column `colour`, else by the palette. Raises SettingsError."""
    named = {row["value"]: row["colour"] for row in rows if row.get("colour")}
    try:
        given = {int(colour.strip().lstrip("#"), 16): int(value) for value, colour in named.items()}
    except ValueError as error:
        raise SettingsError(f"file: a colour is #rrggbb: {error}") from error
    table = palette(VOID).astype(int)
    usual = {
        red << 16 | green << 8 | blue: number for number, (red, green, blue) in enumerate(table.tolist())
    }
    return {**usual, **given, **({0: 0} if 0 not in given else {})}


def read_masks(
    root: str,
    categories: Categories,
    storage: StorageSettings,
    max_pixels: int,
    rejects: Rejects,
    folder: Path,
) -> Iterator[Looked]:
    """Yield the images with a label image of instances. Raises SettingsError where there is none."""
    rows = table_of(root, INSTANCES, ("value",), storage)
    legend, colours = Pile(folder, "legend"), colours_of(rows)
    named = [(row.get("category_id"), row.get("category") or "") for row in rows]
    categories.declare((_whole(number), name) for number, name in named if name.strip())
    legend.add((str(row.get("image_id") or row.get("name")), row) for row in rows)
    legend.settle()
    for file in mask_files(root, storage, folder):
        known = {each["value"]: each for key in (file.image_id, file.name) if key for each in legend.of(key)}
        try:
            if isinstance(file.data, ItemError):
                raise file.data
            values = values_of(file.data, colours, max_pixels)
        except ItemError as error:
            rejects.image(file.source.uri, error.reason)
            continue
        drawn = [_drawn(value, counts, known.get(str(value))) for value, counts in by_value(values).items()]
        ids = {each["instance_id"]: int(value) for value, each in known.items() if each.get("instance_id")}
        shown_as = partial(_shown, ids)
        size = values.shape[0], values.shape[1]
        yield Looked(
            file.name, drawn, file.image_id, size, file.split, is_stem=True, shown=shown_as if ids else None
        )
    legend.close()


def _drawn(value: int, counts: str, row: Mapping[str, str] | None) -> Drawn:
    text = (row or {}).get("category_id") or ""
    number = _whole(text)
    if text and number is None:
        return Drawn(f"value {value}", failing(f"category_id {text} is no number"), None)
    return Drawn(
        f"value {value}",
        lambda _height, _width: counts,
        (row or {}).get("category") or None,
        number,
        (row or {}).get("instance_id") or None,
    )


def _whole(text: str | None) -> int | None:
    text = str(whole_id(text or ""))
    return int(text) if re.fullmatch(r"-?\d{1,15}", text) else None


def _shown(values: Mapping[str, int], image: Image, rows: Sequence[Instance]) -> list[str]:
    """Return what the export shows of each row; those that it left out are shown whole."""
    exported = [row for row in rows if row.instance_id in values]
    by_score = sorted(exported, key=lambda row: row.instance_id, reverse=True)
    by_score.sort(key=lambda row: (row.score is None, row.score or 0))
    seen = by_value(paint(by_score, image, dict(values)))
    return [
        seen.get(values[row.instance_id], _hidden(image)) if row.instance_id in values else row.counts or ""
        for row in rows
    ]


def _hidden(image: Image) -> str:
    return encoded([np.zeros((0, 3), np.int64)], image.height, image.width)[0]
