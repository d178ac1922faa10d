"""Read the column of the data that names the groups of the gate."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.data.coco_listing import FOLDER_IMAGES
from segray.data.instance_files import FOLDER_FILE
from segray.data.label_listing import holds_labels
from segray.errors import SettingsError
from segray.output.io import files_below, read_file, read_if_there
from segray.sources.concurrent_requests import describe
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri


def values_by_image(data: str, column: str, root: str | None, storage: StorageSettings) -> dict[str, str]:
    """Return canonical URL of an image -> value of the column; images without a value are left out.

    Raises SettingsError for data without such a column, and for a folder of images, which has none.
    """
    try:
        found = {name: value for name, value in _values(data, column, root, storage) if value}
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise SettingsError(f"group_by: {canonical_uri(data)} cannot be read: {describe(error)}") from error
    if not found:
        raise SettingsError(f"group_by: {canonical_uri(data)} has no {column}")
    return found


def _values(data: str, column: str, root: str | None, storage: StorageSettings) -> Iterator[tuple[str, str]]:
    """Yield (canonical URL of an image, value of the column)."""
    lower, folder = data.lower(), data.rstrip("/").rpartition("/")[0]
    if lower.endswith(".json"):
        rows, base = _coco(read_file(data, storage, "data"), column), root or folder
    elif lower.endswith((".csv", ".tsv")):
        rows, base = _text(read_file(data, storage, "data"), column, canonical_uri(data)), root or folder
    elif lower.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(read_file(data, storage, "data")))
        rows, base = _table(table, "images", column, canonical_uri(data)), root or folder
    elif holds_labels(data, storage):
        rows, base = _ledger(data, column, storage), data.rstrip("/")
    elif lower.endswith(".txt") or not _is_coco_folder(data, storage):
        raise SettingsError(f"group_by: {canonical_uri(data)} has no columns; use a manifest or COCO JSON")
    else:
        content = read_file(f"{data.rstrip('/')}/{FOLDER_FILE}", storage, "data")
        rows, base = _coco(content, column), root or f"{data.rstrip('/')}/{FOLDER_IMAGES}"
    for name, value in rows:
        yield _canonical(name, base), value


def _is_coco_folder(data: str, storage: StorageSettings) -> bool:
    return read_if_there(f"{data.rstrip('/')}/{FOLDER_FILE}", storage, "group_by") is not None


def _canonical(name: str, base: str) -> str:
    return canonical_uri(name if "://" in name or name.startswith("/") else f"{base}/{name}")


def _coco(content: bytes, column: str) -> Iterator[tuple[str, str]]:
    for image in json.loads(content).get("images", []):
        value = image.get(column)
        yield str(image.get("file_name")), "" if value is None else str(value)


def _text(content: bytes, column: str, name: str) -> Iterator[tuple[str, str]]:
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter=delimiter)
    if missing := {"images", column} - {*(rows.fieldnames or [])}:
        raise SettingsError(f"group_by: {name} has no column {', '.join(sorted(missing))}")
    for row in rows:
        yield str(row.get("images")), (row.get(column) or "").strip()


def _ledger(data: str, column: str, storage: StorageSettings) -> Iterator[tuple[str, str]]:
    for file in files_below(f"{data.rstrip('/')}/images", (".parquet",), storage):
        with open_source(file, storage) as stream:
            yield from _table(pq.read_table(stream), "uri", column, file.uri)


def _table(table: pa.Table, key: str, column: str, where: str) -> Iterator[tuple[str, str]]:
    for name in (key, column):
        if name not in table.column_names:
            raise SettingsError(
                f"group_by: {where} has no column {name}; it has {', '.join(table.column_names)}"
            )
    values: list[Any] = table[column].to_pylist()
    for name, value in zip(table[key].to_pylist(), values, strict=True):
        yield str(name), "" if value is None else str(value)
