"""Label images of classes -> `labels/<image_id>.png` or `.tif`, and `pairs.csv`, the manifest for `train`.

An image is copied as it is, unless it is in colours. Values are those of classes.csv, and 255 for no class.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

from segray.errors import ItemError, SettingsError
from segray.export.masks import csv_of, paint
from segray.export.table import Image
from segray.importer.drawn import Looked
from segray.importer.masks import (
    CLASSES,
    INSTANCES,
    MaskFile,
    Values,
    colours_of,
    mask_files,
    table_of,
    values_of,
)
from segray.importer.rejects import Rejects
from segray.importer.run_images import Images, RunImages
from segray.importer.settings import ImportOptions
from segray.output.folder import Output
from segray.output.io import read_if_there
from segray.palette import VOID
from segray.storage import shown

PAIRS, LABELS = "pairs.csv", "labels"


def holds_maps(settings: ImportOptions) -> bool:
    """Return whether the folder holds label images of classes, not of instances.

    Raises SettingsError where neither table is there.
    """
    root, storage = settings.file[0].rstrip("/"), settings.storage
    if table_of(root, INSTANCES, ("value",), storage):
        return False
    if not table_of(root, CLASSES, ("value", "category"), storage):
        raise SettingsError(
            f"file: {shown(root)} has neither {INSTANCES} nor {CLASSES}, which say what values mean"
        )
    return True


def import_maps(
    settings: ImportOptions, images: Images, output: Output | None, rejects: Rejects, folder: Path
) -> Counter[str]:
    """Read the label images, and write them to `output` if there is one; return counts."""
    root, storage = settings.file[0].rstrip("/"), settings.storage
    classes = table_of(root, CLASSES, ("value", "category"), storage)
    colours, known = colours_of(classes), {int(row["value"]) for row in classes} | {0, VOID}
    tally: Counter[str] = Counter(images=0, changed=0, unchanged=0, pixels=0)
    seen, local = set[str](), folder / PAIRS
    with local.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("images", "masks", "split", "group"))
        for each in mask_files(root, storage, folder):
            try:
                values = _values(each, colours, settings.max_pixels, known)
                image = _placed(each, values, images, seen)
            except ItemError as error:
                rejects.image(each.source.uri, error.reason)
                continue
            tally += _compared(values, image, images, settings)
            out.writerow(
                (image.uri, _write(output, each, values, image), each.split or image.split, image.group)
            )
    if output is not None and tally["images"]:
        output.put(
            CLASSES, csv_of([("value", "category"), *((row["value"], row["category"]) for row in classes)])
        )
        output.put_file(PAIRS, local)
    return tally


def _values(each: MaskFile, colours: dict[int, int], max_pixels: int, known: set[int]) -> Values:
    if isinstance(each.data, ItemError):
        raise each.data
    values = values_of(each.data, colours, max_pixels)
    if strange := {*np.unique(values).tolist()} - known:
        some = ", ".join(map(str, sorted(strange)[:5]))
        raise ItemError("unsupported", f"values {some} are not in {CLASSES}; add them, or paint over them")
    return values


def _placed(each: MaskFile, values: Values, images: Images, seen: set[str]) -> Image:
    size = values.shape[0], values.shape[1]
    (image,) = images.place([Looked(each.name, (), each.image_id, size, each.split, is_stem=True)])
    if isinstance(image, ItemError):
        raise image
    if image.member is not None:
        raise ItemError("unsupported", "its image is in an archive, which a manifest cannot name; unpack it")
    if image.image_id in seen:
        raise ItemError("unsupported", "another file is of the same image")
    seen.add(image.image_id)
    return image


def _compared(values: Values, image: Image, images: Images, settings: ImportOptions) -> Counter[str]:
    before = _before(image, images, settings)
    if before is None or before.shape != values.shape:
        return Counter(images=1)
    pixels = int((before != values).sum())
    return Counter(images=1, changed=int(pixels > 0), unchanged=int(pixels == 0), pixels=pixels)


def _before(image: Image, images: Images, settings: ImportOptions) -> Values | None:
    """Return the label map of the run; None without one."""
    if not isinstance(images, RunImages):
        return None
    if images.verb != "predict":
        return paint(images.table.of_image(image, best_last=True), image, None)
    for suffix in (".png", ".tif"):
        data = read_if_there(f"{images.url}/{LABELS}/{image.image_id}{suffix}", settings.storage, "run")
        if data is not None:
            return values_of(data, {}, settings.max_pixels)
    return None


def _write(output: Output | None, each: MaskFile, values: Values, image: Image) -> str:
    """Write a label map; return its name in the output."""
    data = each.data if isinstance(each.data, bytes) else b""
    suffix = ".png" if values.dtype == np.int32 else f".{each.source.uri.rpartition('.')[2].lower()}"
    name = f"{LABELS}/{image.image_id}{suffix}"
    if output is not None:
        output.put(name, _png(values) if values.dtype == np.int32 else data)
    return name


def _png(values: Values) -> bytes:
    sink = io.BytesIO()
    kind: Any = np.uint8 if values.max(initial=0) <= VOID else np.uint16
    Picture.fromarray(values.astype(kind)).save(sink, "PNG")
    return sink.getvalue()


def map_lines(tally: Counter[str], *, with_run: bool) -> Sequence[str]:
    """Return what happened, as lines of text."""
    lines = [f"{tally['images']:,} label maps"]
    if with_run:
        changed = f"{tally['changed']:,} changed in {tally['pixels']:,} pixels"
        lines.append(f"  {tally['unchanged']:,} unchanged, {changed}")
    return lines
