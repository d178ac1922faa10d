"""Both ledgers, the instances to fuse and our own ledger in a temporary SQLite file: image by image.

Runs hold instances in the order of their commits, scenes in that of a Hilbert curve. In SQLite the number
of images is limited by the disk, not by memory.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.errors import ErrorType, SettingsError
from segray.output.names import check_image_ids
from segray.panoptic.runs import Run
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings

_ROWS = 1_000
_LEDGER = ("image_id", "uri", "height", "width")
_LEDGER_MAY = (
    *("member", "status", "error_type", "error", "crs", "scene", "instances", "tiles_rejected"),
    *("split", "group"),
)
_INSTANCE = ("image_id", "category_id", "category", "score", "segmentation")
_INSTANCE_MAY = ("instance_id", "iscrowd")
_SIDES = {"instances": "annotate", "maps": "predict"}


@dataclass(frozen=True, slots=True)
class Row:
    """An instance as it is stored."""

    instance_id: str
    category_id: int
    category: str
    score: float | None
    iscrowd: int
    height: int
    width: int
    counts: str


@dataclass(frozen=True, slots=True)
class Work:
    """An image to do."""

    image_id: str
    uri: str
    member: str | None
    height: int | None
    width: int | None
    crs: str | None
    split: str | None
    group: str | None
    is_scene: bool
    """Whether its map is a GeoTIFF."""
    inputs: str
    """State of its rows in both ledgers: where it changes, the image is done again."""
    rows: Sequence[Row]
    rejected: tuple[ErrorType, str] | None
    """Why it cannot be done; None where it can be tried."""


class Table:
    """Add ledgers, ours too, then instances; then read what is to be done."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "panoptic.db", isolation_level=None)
        self._db.executescript(
            """PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;
            CREATE TABLE items (image_id TEXT PRIMARY KEY, uri TEXT, member TEXT, instances TEXT, maps TEXT,
                                inputs TEXT) WITHOUT ROWID;
            CREATE TABLE done (image_id TEXT, part TEXT, status TEXT, inputs TEXT);
            CREATE TABLE things (image_id TEXT, instance_id TEXT, category_id INTEGER, category TEXT,
                                 score REAL, iscrowd INTEGER, height INTEGER, width INTEGER, counts TEXT);
            BEGIN;"""
        )

    def add_run(self, run: Run, side: str, storage: StorageSettings) -> None:
        """Add the ledger of a run; side: `instances` or `maps`. Raises SettingsError."""
        for file in run.ledger:
            for batch in _batches(file, _LEDGER, _LEDGER_MAY, side, storage):
                rows = batch.to_pylist()
                check_image_ids((row["image_id"] for row in rows), side, run.url)
                self._db.executemany(
                    f"INSERT INTO items (image_id, uri, member, {side}) VALUES (?, ?, ?, ?) "
                    f"ON CONFLICT (image_id) DO UPDATE SET {side} = excluded.{side}",
                    ((row["image_id"], row["uri"], row.get("member"), _state(row)) for row in rows),
                )

    def settle(self) -> None:
        """Derive the state of each image; both ledgers are added."""
        self._db.create_function("inputs_of", 2, _inputs, deterministic=True)
        self._db.executescript("UPDATE items SET inputs = inputs_of(instances, maps);")

    def counts(self) -> tuple[int, int, int]:
        """Return how many images are in both runs, in the instances only, in the maps only."""
        return (
            self._one("SELECT count(*) FROM items WHERE instances IS NOT NULL AND maps IS NOT NULL"),
            self._one("SELECT count(*) FROM items WHERE maps IS NULL"),
            self._one("SELECT count(*) FROM items WHERE instances IS NULL"),
        )

    def add_done(self, part: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add the rows of one part of our own ledger."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO done VALUES (?, ?, ?, ?)",
            ((row["image_id"], part, row["status"], row["inputs"]) for row in rows),
        )
        self._db.execute("COMMIT")

    def choose(self, *, retry_rejected: bool) -> None:
        """Find what is to be done, and which rows of ours no longer count; ours are all added."""
        again = "OR d.status = 'rejected'" if retry_rejected else ""
        self._db.executescript(
            f"""CREATE TABLE stale AS
                SELECT d.image_id, d.part FROM done d LEFT JOIN items i USING (image_id)
                WHERE i.image_id IS NULL OR i.inputs != d.inputs {again};
            CREATE INDEX by_stale ON stale (image_id);
            DELETE FROM done WHERE image_id IN (SELECT image_id FROM stale);
            CREATE INDEX by_done ON done (image_id);
            CREATE TABLE pending AS
                SELECT image_id FROM items i WHERE NOT EXISTS
                    (SELECT 1 FROM done d WHERE d.image_id = i.image_id)
                ORDER BY uri, coalesce(member, ''), image_id;
            CREATE UNIQUE INDEX by_pending ON pending (image_id);"""
        )

    def stale(self) -> dict[str, list[str]]:
        """Return part of our ledger -> image_ids whose rows no longer count."""
        found: dict[str, list[str]] = {}
        for image_id, part in self._db.execute("SELECT image_id, part FROM stale ORDER BY part, image_id"):
            found.setdefault(part, []).append(image_id)
        return found

    def pending(self) -> int:
        """Return the number of images to do."""
        return self._one("SELECT count(*) FROM pending")

    def add_instances(
        self, files: Sequence[Source], min_score: float | None, storage: StorageSettings
    ) -> None:
        """Add the instances of pending images. Raises SettingsError for files that cannot be read."""
        self._db.execute("BEGIN")
        for file in files:
            for batch in _batches(file, _INSTANCE, _INSTANCE_MAY, "instances", storage):
                self._db.executemany(
                    "INSERT INTO things SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 "
                    "WHERE EXISTS (SELECT 1 FROM pending WHERE image_id = ?1)",
                    map(_instance, _scored(batch, min_score).to_pylist()),
                )
        self._db.executescript("CREATE INDEX by_image ON things (image_id, instance_id);")

    def work(self) -> Iterator[Work]:
        """Yield the pending images in the order of their addresses, each with its instances."""
        order = (
            "SELECT p.image_id, i.uri, i.member, i.instances, i.maps, i.inputs FROM pending p JOIN items i "
        )
        cursor = self._db.execute(f"{order} USING (image_id) ORDER BY p.rowid")
        for image_id, uri, member, instances, maps, inputs in cursor:
            sides = {"instances": json.loads(instances or "null"), "maps": json.loads(maps or "null")}
            yield _work(image_id, uri, member, sides, inputs, self._rows(image_id))

    def _rows(self, image_id: str) -> list[Row]:
        query = "SELECT * FROM things WHERE image_id = ? ORDER BY instance_id, rowid"
        return [Row(*row[1:]) for row in self._db.execute(query, [image_id])]

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0] or 0)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _state(row: dict[str, Any]) -> str:
    names = (*_LEDGER[2:], *_LEDGER_MAY[1:])
    return json.dumps({name: row.get(name) for name in names if row.get(name) is not None})


def _inputs(*sides: str | None) -> str:
    """Return what an image's result depends on, beside the identity of both runs, as one text."""
    found = [None if side is None else json.loads(side) for side in sides]
    keys = ("status", "instances", "tiles_rejected")
    return "|".join(
        "-" if side is None else ":".join(str(side.get(key, "")) for key in keys) for side in found
    )


def _work(
    image_id: str, uri: str, member: str | None, sides: dict[str, Any], inputs: str, rows: Sequence[Row]
) -> Work:
    here = (sides["instances"] or {}) | (sides["maps"] or {})
    scene = json.loads((sides["maps"] or {}).get("scene", "null"))
    return Work(
        image_id,
        uri,
        member,
        here.get("height"),
        here.get("width"),
        here.get("crs"),
        here.get("split"),
        here.get("group"),
        bool(scene and scene.get("bands")),
        inputs,
        rows,
        _reason(sides),
    )


def _reason(sides: dict[str, Any]) -> tuple[ErrorType, str] | None:
    """Return why an image cannot be fused: it is in one run only, rejected by one, or of two sizes."""
    for side, verb in _SIDES.items():
        if sides[side] is None:
            return "missing", f"not in the {side}: {verb} has no such image"
    for side, verb in _SIDES.items():
        if sides[side].get("status") == "rejected":
            kind: ErrorType = sides[side].get("error_type") or "unsupported"
            return kind, f"rejected by {verb}: {sides[side].get('error')}"
    instances, maps = sides["instances"], sides["maps"]
    if lost := instances.get("tiles_rejected"):  # else stuff would fill the holes
        return "missing", f"annotate rejected {lost:,} of its tiles: use --retry-rejected"
    sizes = [(each.get("width"), each.get("height")) for each in (instances, maps)]
    if sizes[0] != sizes[1] or None in sizes[0]:
        text = " and ".join(f"{width} x {height}" for width, height in sizes)
        return (
            "unsupported",
            f"instances and map are of two sizes, {text}: use one --resolution for both runs",
        )
    places = [json.loads(each.get("scene", "null")) or {} for each in (instances, maps)]
    if all(places) and places[0].get("transform") != places[1].get("transform"):
        return "unsupported", "instances and map lie on two grids: use one --resolution for both runs"
    return None


def _instance(row: dict[str, Any]) -> tuple[Any, ...]:
    mask = row["segmentation"] or {}
    height, width = mask.get("size") or (0, 0)
    name, number = row["category"], row["category_id"]
    text = str(number) if name is None else name
    more = (row["score"], row.get("iscrowd") or 0, height, width, mask.get("counts") or "")
    return (row["image_id"], row.get("instance_id") or "", number, text, *more)


def _scored(batch: pa.RecordBatch, min_score: float | None) -> pa.RecordBatch:
    if min_score is None:
        return batch
    good = pc.greater_equal(batch["score"].cast(pa.float32()), pa.scalar(min_score, pa.float32()))
    return batch.filter(good.fill_null(True))


def _batches(
    file: Source, needed: Sequence[str], optional: Sequence[str], setting: str, storage: StorageSettings
) -> Iterator[pa.RecordBatch]:
    try:
        with open_source(file, storage) as stream:
            parquet = pq.ParquetFile(stream)
            there = parquet.schema_arrow.names
            if lost := [name for name in needed if name not in there]:
                raise SettingsError(f"{setting}: {file.uri} has no column {', '.join(lost)}")
            columns = [*needed, *(name for name in optional if name in there)]
            for group in range(parquet.num_row_groups):
                yield from parquet.iter_batches(_ROWS, row_groups=[group], columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{setting}: {file.uri} cannot be read: {describe(error)}") from error
