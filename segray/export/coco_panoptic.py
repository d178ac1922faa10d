"""COCO-panoptic of an output of `panoptic`: a JSON file beside the folder of its name, with a PNG an image.

https://cocodataset.org/#format-data, as panopticapi and the trainers built on it read it. Files of segment
ids get the names of their images; those of scenes are GeoTIFF, which such programs do not read.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from segray.errors import SettingsError
from segray.export.coco import write_list
from segray.export.settings import ExportOptions
from segray.export.table import Image, LabelTable
from segray.export.target import Target
from segray.output.io import read_file
from segray.output.names import RUN
from segray.output.panoptic import FOLDER, INFO, info_of, ledger_rows, segment_files
from segray.storage import StorageSettings, open_filesystem, shown

FORMAT = "coco-panoptic"


def check_format(verb: str | None, settings: ExportOptions) -> None:
    """Raise SettingsError where run and format do not fit, and for options that make no sense."""
    run = shown(settings.run[0])
    if verb != "panoptic" and settings.format == FORMAT:
        raise SettingsError(f"as: {run} is no output of panoptic, which {FORMAT} needs")
    if verb == "panoptic" and settings.format != FORMAT:
        raise SettingsError(f"as: {run} is an output of panoptic; it can be exported as {FORMAT}")
    if verb == "panoptic" and settings.filters:
        raise SettingsError(
            "classes, min_score, min_area: they would leave holes; set --min-score and --void of panoptic"
        )


def outputs(splits: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders that are written."""
    stems = [FOLDER if split is None else f"{FOLDER}_{split}" for split in splits]
    return [f"{stem}.json" for stem in stems], stems


def write_panoptic(
    table: LabelTable,
    target: Target,
    splits: Sequence[str | None],
    run: str,
    storage: StorageSettings,
    folder: Path,
) -> None:
    """Write the JSON of each split (None: all), and copy its files.

    folder: for temporary files. Raises FileNotFoundError where a file of the run is missing.
    """
    categories = json.loads(read_file(f"{run}/{RUN}", storage, "run"))["categories"]
    local = folder / "panoptic.json"
    with closing(_read_segments(run, storage, folder)) as segments:
        for split, name, where in zip(splits, *outputs(splits), strict=True):
            with local.open("w", encoding="utf-8") as file:
                file.write('{"info": {"description": "segray export"}, "licenses": [],\n"categories": ')
                json.dump(categories, file, ensure_ascii=False)
                file.write(',\n"images": ')
                write_list(file, map(_image, table.images(split)))
                file.write(',\n"annotations": ')
                copies = _copied(table.images(split), target, where, run, storage, folder / "ids")
                write_list(file, (_annotation(*copy, segments) for copy in copies))
                file.write("}\n")
            target.put_local(name, local)


def _read_segments(run: str, storage: StorageSettings, folder: Path) -> sqlite3.Connection:
    """Return a temporary database of the segments of each image, as JSON."""
    database = sqlite3.connect(folder / "segments.db", isolation_level=None)
    database.executescript(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
        "CREATE TABLE segments (image_id TEXT PRIMARY KEY, infos TEXT) WITHOUT ROWID; BEGIN;"
    )
    rows = ledger_rows(segment_files(run, storage), ("image_id", *INFO), storage)
    database.executemany(
        "INSERT INTO segments VALUES (?, ?)",
        (
            (image_id, json.dumps([info_of(row) for row in group]))
            for image_id, group in groupby(rows, lambda row: row["image_id"])
        ),
    )
    database.execute("COMMIT")
    return database


def _copied(
    images: Iterator[Image], target: Target, where: str, run: str, storage: StorageSettings, local: Path
) -> Iterator[tuple[Image, str]]:
    """Copy the file of each image; yield the image and its new name."""
    filesystem, root = open_filesystem(run, storage)
    for image in images:
        path = f"{root.rstrip('/')}/{FOLDER}/{image.image_id}"
        suffix = ".png" if filesystem.exists(f"{path}.png") else ".tif"
        filesystem.get_file(f"{path}{suffix}", str(local))
        target.put_local(f"{where}/{image.name}{suffix}", local)
        yield image, f"{image.name}{suffix}"


def _image(image: Image) -> dict[str, Any]:
    return {
        "id": image.number,
        "file_name": image.file_name or image.address,
        "height": image.height,
        "width": image.width,
        "segray_image_id": image.image_id,
    }


def _annotation(image: Image, name: str, segments: sqlite3.Connection) -> dict[str, Any]:
    found = segments.execute("SELECT infos FROM segments WHERE image_id = ?", [image.image_id]).fetchone()
    infos = [] if found is None else json.loads(found[0])
    return {"image_id": image.number, "file_name": name, "segments_info": infos}
