"""Read an output of `annotate` or `predict`: the ledger, instances by row group, label maps by image."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.errors import ErrorType, SettingsError
from segray.output.io import files_below, label_files, read_if_there
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri

LEDGER = ("image_id", "uri", "height", "width")
_LEDGER_MAY = ("member", "status", "error_type", "error", "tiles_rejected", "vanished")
"""Labels that another program wrote may lack them."""
INSTANCE = ("image_id", "category_id", "category", "score", "box", "segmentation")
_MAP_SUFFIXES = (".png", ".tif", ".nii.gz")


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the ledger."""

    image_id: str
    address: str
    """Canonical URL; in an archive, followed by the member."""
    size: tuple[int, int] | None
    """Height and width in pixels; None where unknown."""
    error_type: ErrorType | None
    error: str | None
    """Reason of the rejection; None unless rejected."""
    more: Mapping[str, Any] | None = None
    """Values of the further columns that `read_ledger` was asked for, where its file has them; None: none."""
    tiles_rejected: int = 0
    """Of a scene that was merged without them."""
    vanished: bool = False
    """Whether it is no longer in the sources of its run."""


def run_record(output: str, storage: StorageSettings) -> dict[str, Any]:
    """Return the run.json of an output. Raises SettingsError where the run is not finished."""
    data = read_if_there(f"{output.rstrip('/')}/run.json", storage, "predictions")
    try:
        record = json.loads(data or b"")
    except ValueError as error:
        raise SettingsError(
            f"predictions: {canonical_uri(output)} has no run.json: its run is not finished; finish it first"
        ) from error
    return record if isinstance(record, dict) else {}


def ledger_files(output: str, storage: StorageSettings) -> list[Source]:
    """Return the Parquet files of the ledger; none where the folder is not an output of a bulk verb."""
    return files_below(f"{output.rstrip('/')}/images", (".parquet",), storage)


def read_ledger(files: Sequence[Source], storage: StorageSettings, more: Sequence[str] = ()) -> list[Item]:
    """Return all rows of the ledger; more: columns that a file may lack.

    Raises SettingsError for a file that is not part of one.
    """
    further = {*_LEDGER_MAY, *more} - {*LEDGER}
    return [
        Item(
            row["image_id"],
            row["uri"] if row.get("member") is None else f"{row['uri']}/{row['member']}",
            None if row["height"] is None else (row["height"], row["width"]),
            (row["error_type"] or "unsupported") if row.get("status") == "rejected" else None,
            row["error"] if row.get("status") == "rejected" else None,
            {name: row[name] for name in more if name in row} if more else None,
            row.get("tiles_rejected") or 0,
            bool(row.get("vanished")),
        )
        for table in _row_groups(files, LEDGER, storage, further)
        for row in table.to_pylist()
    ]


def present(items: list[Item], *, gone: bool = False) -> list[Item]:
    """Return items without those that vanished: whose file has another item, or, if `gone`, all of them."""
    if not any(item.vanished for item in items):
        return items
    others = {item.address for item in items if not item.vanished}
    return [item for item in items if not item.vanished or not (gone or item.address in others)]


def instances_of(
    output: str, storage: StorageSettings, columns: Sequence[str], may: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yield the instances, a row group at a time; may: columns that a file may lack.

    Raises SettingsError for a file that cannot be read.
    """
    files = files_below(f"{output.rstrip('/')}/instances", (".parquet",), storage)
    return _row_groups(files, columns, storage, may)


def label_maps(output: str, items: Sequence[Item], storage: StorageSettings) -> list[Source]:
    """Return the label map of each item; where it is missing, a Source with the reason."""
    files = label_files(f"{output.rstrip('/')}/labels", storage, "predictions")
    return [_label_map(item, files.get(item.image_id, []), output) for item in items]


def _label_map(item: Item, files: Sequence[Source], output: str) -> Source:
    maps = [file for file in files if file.uri.endswith(_MAP_SUFFIXES)]
    if item.error_type is None and len(maps) == 1:
        return maps[0]
    uri = f"{canonical_uri(output).rstrip('/')}/labels/{item.image_id}"
    lost = Source(uri, uri, "file", "", -1, "missing", f"{item.image_id}: {len(maps)} label maps, not one")
    if item.error_type is None:
        return lost
    return replace(lost, error_type=item.error_type, error=f"rejected as {item.error_type}: {item.error}")


def row_batches(
    file: Source,
    needed: Sequence[str],
    optional: Sequence[str],
    storage: StorageSettings,
    *,
    ids: Collection[str] | None = None,
    rows: int = 65_536,
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a table of an output, at most `rows` rows at a time; optional ones where present.

    ids: only rows of these images; a row group without any is not read but for its column `image_id`.
    Raises SettingsError where the file cannot be read or lacks a column that is needed.
    """
    wanted = None if ids is None else pa.array(list(ids), pa.string())
    try:
        with open_source(file, storage) as stream:
            parquet = pq.ParquetFile(stream)
            there = parquet.schema_arrow.names
            if lost := [name for name in needed if name not in there]:
                raise SettingsError(f"run: {file.uri} has no column {', '.join(lost)}")
            columns = [*needed, *(name for name in optional if name in there)]
            for group in range(parquet.num_row_groups):  # read all at once, Arrow would keep each in memory
                if wanted is not None:
                    held = parquet.read_row_group(group, columns=["image_id"])["image_id"]
                    if not pc.any(pc.is_in(held, wanted)).as_py():
                        continue
                for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
                    yield batch if wanted is None else batch.filter(pc.is_in(batch["image_id"], wanted))
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"run: {file.uri} cannot be read: {describe(error)}") from error


def _row_groups(
    files: Sequence[Source], columns: Sequence[str], storage: StorageSettings, may: Collection[str] = ()
) -> Iterator[pa.Table]:
    """Yield the row groups; may: columns that a file may lack."""
    for file in files:
        try:
            with open_source(file, storage) as stream:
                parquet = pq.ParquetFile(stream)
                missing = set(columns) - set(parquet.schema_arrow.names)
                if missing:
                    raise SettingsError(f"predictions: {file.uri} has no column {', '.join(sorted(missing))}")
                wanted = [*columns, *(name for name in may if name in parquet.schema_arrow.names)]
                for group in range(parquet.num_row_groups):
                    yield parquet.read_row_group(group, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise SettingsError(f"predictions: {file.uri} cannot be read: {describe(error)}") from error
