"""Panoptic segmentations to compare: an output of `panoptic`, or COCO-panoptic JSON beside its folder of PNG.

A run's images take about 500 bytes each in memory and a segment 21; of a JSON file, all of it is parsed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import SettingsError
from segray.output.io import files_below, read_file
from segray.output.names import RUN
from segray.output.panoptic import ledger_rows, segment_files
from segray.storage import StorageSettings, canonical_uri

SUFFIX = ".json"
_SEGMENT = ("image_id", "segment_id", "category_id", "iscrowd")
_IMAGE = ("image_id", "uri", "member", "height", "width", "status", "file", "error_type", "error")


@dataclass(frozen=True, slots=True)
class PanopticImage:
    """One image."""

    name: str
    """`file_name` of COCO; of a run the address of the image."""
    size: tuple[int, int] | None
    """Height, width in pixels."""
    file: str | None
    """Address of its segment ids; None where it has none."""
    reason: str | None
    """Why it has none."""


@dataclass(slots=True)
class PanopticSet:
    """Images, their segments and the categories."""

    categories: dict[int, str]
    things: frozenset[int]
    images: dict[Any, PanopticImage] = field(default_factory=dict)
    is_run: bool = False
    _places: dict[Any, tuple[int, int]] = field(default_factory=dict)
    _segments: list[NDArray[np.int64]] = field(default_factory=list)
    _length: int = 0

    def add_segments(self, image_id: Any, rows: Sequence[Sequence[int]]) -> None:
        """Add the segments of an image: rows of segment_id, category_id, iscrowd."""
        if rows:
            self._segments.append(np.array(rows, np.int64))
        self._places[image_id] = (self._length, self._length + len(rows))
        self._length += len(rows)

    def segments(self, image_id: Any) -> NDArray[np.int64]:
        """Return the segments of an image, int64 (n, 3); the rows are sorted as they were added."""
        if len(self._segments) > 1:
            self._segments = [np.concatenate(self._segments)]
        start, stop = self._places.get(image_id, (0, 0))
        return self._segments[0][start:stop] if self._segments else np.empty((0, 3), np.int64)


def is_panoptic(url: str, storage: StorageSettings) -> bool:
    """Return whether a folder is an output of `panoptic`."""
    return not url.lower().endswith(SUFFIX) and bool(segment_files(url, storage))


def panoptic_run(url: str, setting: str, storage: StorageSettings) -> PanopticSet:
    """Read an output of `panoptic`. Raises SettingsError, which begins with the setting's name."""
    url = url.rstrip("/")
    where = f"{setting}: {canonical_uri(url)}"
    try:
        record = json.loads(read_file(f"{url}/{RUN}", storage, setting))
        found = _with_categories(record["categories"], where)
    except SettingsError as error:
        raise SettingsError(f"{where} has no run.json: its run is not finished; finish it first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{where}: its run.json is damaged: {error}") from error
    found.is_run = True
    for row in ledger_rows(files_below(f"{url}/images", (".parquet",), storage), _IMAGE, storage):
        whole = row["uri"] if row["member"] is None else f"{row['uri']}/{row['member']}"
        size = None if row["height"] is None else (row["height"], row["width"])
        reason = None
        if row["status"] == "rejected":
            reason = f"rejected as {row['error_type']}: {row['error']}"
        file = None if row["file"] is None else f"{url}/{row['file']}"
        found.images[row["image_id"]] = PanopticImage(whole, size, file, reason)
    rows = ledger_rows(segment_files(url, storage), _SEGMENT, storage)
    for image_id, group in groupby(rows, lambda row: row["image_id"]):
        found.add_segments(image_id, [[row[name] for name in _SEGMENT[1:]] for row in group])
    return found


def coco_panoptic(url: str, setting: str, storage: StorageSettings, folder: str | None) -> PanopticSet:
    """Read COCO-panoptic JSON; folder: of the PNG, default the address of the JSON without `.json`.

    Raises SettingsError, which begins with the setting's name, for everything that is not COCO-panoptic.
    """
    where = f"{setting}: {canonical_uri(url)}"
    root = (folder or url[: -len(SUFFIX)]).rstrip("/")
    try:
        content = json.loads(read_file(url, storage, setting))
        found = _with_categories(content["categories"], where)
        sizes = {each["id"]: each for each in content["images"]}
        for each in content["annotations"]:
            image = sizes[each["image_id"]]
            size = (int(image["height"]), int(image["width"]))
            file = f"{root}/{each['file_name']}"
            found.images[each["image_id"]] = PanopticImage(image["file_name"], size, file, None)
            found.add_segments(each["image_id"], list(_infos(each["segments_info"])))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where}: it is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__} {error}"
        raise SettingsError(f"{where}: not COCO-panoptic, which has segments_info: {what}") from error
    return found


def _infos(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int, int]]:
    for row in rows:
        yield int(row["id"]), int(row["category_id"]), int(row.get("iscrowd", 0))


def _with_categories(rows: Sequence[dict[str, Any]], where: str) -> PanopticSet:
    names = {int(row["id"]): str(row["name"]) for row in rows}
    if len(names) < len(rows):
        raise SettingsError(f"{where}: two categories have the same id")
    return PanopticSet(names, frozenset(int(row["id"]) for row in rows if row["isthing"]))
