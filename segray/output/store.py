"""The output folder: what is in it at every moment of a run, and how it stays true under kills.

    _segray/staging/000007-g2.parquet   a commit: whole items with their instances inside, one atomic object
    _segray/tiles/000008-g2.parquet     a commit of tiles, until their items are whole
    instances/part-000012-g2.parquet    many commits merged, flattened and sorted: one row an instance
    tiles/part-000012-g2.parquet        one row a tile, where an item was tiled
    images/part-000012-g2.parquet       their ledger rows, written after both: the commit record
    run.json                            the last word: it exists = the run is complete
    _segray/unpublished/2-0f3c…         what the second holder of the lease is about to write

Why not Ray Data's checkpoint and `write_parquet`: both are exact only while one row is one item up to the
sink, and their files are one a block. Here results come back to the driver one row an item, the driver is the
only writer, and a commit is one put of one object, so there is nothing to repair. Many small commits keep
a kill cheap; merging them keeps the files few. A merge names its inputs in its ledger part's metadata, so
a merge that was cut off is finished (inputs deleted) or undone (instances without a ledger part deleted)
by the next start. Memory: one merge holds about `MERGE_BYTES` of commits.

Numbers grow for the life of an output, so that of two rows of one item the one in the higher file is newer.

How a write is fenced off from a later run's: see `output`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray import schema
from segray.errors import JobFailedError
from segray.output.folder import IMAGES, INSTANCES, Output, mark
from segray.schema import CRS84
from segray.sources.item import Kept
from segray.storage import StorageSettings

MERGE_BYTES = 32 << 20
"""Staged bytes that are merged into one part; parts come out at about this size."""

ROW_GROUP = 65_536
"""Rows: a reader that wants a part of the map leaves the other groups out."""

_METADATA_KEY = b"segray"
STAGING, TILE_RESULTS = "_segray/staging", "_segray/tiles"
TILES = "tiles"
_PART = re.compile(
    r"(?:_segray/(?:staging|tiles)/|(?:images|instances|tiles)/part-)(\d{6,})(?:-g(\d+))?\.parquet"
)
_HALF = re.compile(
    r"(?:_segray/(?:staging|tiles)/\.|(?:images|instances|tiles)/\.part-)\d{6,}\.parquet\.[0-9a-f]+\.tmp"
)
"""Whole names of our own files, finished and (of earlier versions) half written; others' are left alone."""


class GoneError(JobFailedError):
    """A part that was listed is not there."""


class End(NamedTuple):
    """An archive whose end has been seen (schema ARCHIVE_END)."""

    uri: str
    version: str
    items: int
    ignored: int
    broken: bool


def ends_of(table: pa.Table) -> list[End]:
    """The ends told by the control rows of a table (schema ANNOTATED)."""
    rows = table.filter(pc.is_valid(table["end"])).select(["uri", "version", "end"]).to_pylist()
    return [End(row["uri"], row["version"], **row["end"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Part:
    """One file of committed items: a staged commit, a commit of tiles, or a merged part of the ledger."""

    folder: str
    number: int
    size: int
    generation: int = 0
    """Of the lease under which it was written; 0: without one, or by an earlier version."""

    @property
    def name(self) -> str:
        """Path inside the output; its existence is the commit."""
        return f"{self.folder}/{'part-' if self.folder == IMAGES else ''}{self._file}"

    @property
    def instances(self) -> str:
        """Where a merged part has its instances."""
        return f"{INSTANCES}/part-{self._file}"

    @property
    def tiles(self) -> str:
        """Where a merged part has its tiles, if any of its items was tiled."""
        return f"{TILES}/part-{self._file}"

    @property
    def _file(self) -> str:
        return f"{self.number:06d}{mark(self.generation)}.parquet"

    @property
    def names(self) -> list[str]:
        """All files of the part."""
        return [self.name, self.tiles, self.instances] if self.folder == IMAGES else [self.name]


class Store(Output):
    """The tables of one output, and how they grow."""

    def __init__(
        self,
        url: str,
        storage: StorageSettings,
        crs: str = CRS84,
        keeps_instances: bool = True,
        kept: Sequence[str] = (),
    ) -> None:
        """`crs`: of the outlines; `kept`: the columns of manifests that the ledger carries."""
        super().__init__(url, storage)
        self.kept = list(kept)
        self._images = schema.with_kept(schema.IMAGES, kept)
        self._results_schema = schema.with_kept(schema.ANNOTATED, kept)
        self.crs, self.keeps_instances = crs, keeps_instances
        self._next_number = 1
        self._newest: tuple[str, bytes] = ("", b"")
        self._about = dict[str, dict[str, Any]]()
        """What ledger parts say of themselves, by their names: parts never change."""

    def recover(self) -> list[Part]:
        """Finish or undo what a killed run left half done; returns what counts, oldest first."""
        try:
            return self._recovered()
        except GoneError:  # the one removal came late that the run before had under way: see the head
            return self._recovered()

    def _recovered(self) -> list[Part]:
        claimed = [part for part in self._parts(STAGING) + self._parts(TILE_RESULTS) if not part.size]
        for part in claimed:  # the claim of a commit that was never written, see `atomic`
            self.discard(part)
        parts = self._parts(IMAGES) + self._parts(STAGING) + self._parts(TILE_RESULTS)
        absorbed = {
            name for part in parts if part.folder == IMAGES for name in self.metadata(part)["replaces"]
        }
        kept = sorted((part for part in parts if part.name not in absorbed), key=lambda part: part.number)
        counting = {name for part in kept for name in part.names}
        for folder in (
            INSTANCES,
            TILES,
            IMAGES,
            STAGING,
            TILE_RESULTS,
        ):  # instances first: without them, their part still says so
            for name in self.files(folder):
                if _HALF.fullmatch(name) or (_PART.fullmatch(name) and name not in counting):
                    self.delete(name)
        self._next_number = max((part.number for part in parts), default=0) + 1
        self._check_instances(kept)
        return kept

    def _check_instances(self, parts: Sequence[Part]) -> None:
        """Raise JobFailedError when a ledger part's instances are not what was written with it."""
        sizes = self.files(INSTANCES)
        for part in parts:
            written = self.metadata(part).get("instances_bytes") if part.folder == IMAGES else None
            if written is not None and sizes.get(part.instances) != written:
                self.fence()  # else the run that took over has it in another part
                raise JobFailedError(
                    f"{self.root}/{part.instances} is missing or not as it was written; put it back, "
                    f"or delete {part.name} and run again to do its items again"
                )

    def parts(self) -> list[Part]:
        """Commits of whole items and merged parts, oldest first; of a live run, some rows are in two."""
        found = [part for part in self._parts(IMAGES) + self._parts(STAGING) if part.size]
        return sorted(found, key=lambda part: part.number)

    def has_items(self) -> bool:
        """Whether any item was ever committed here."""
        return any(self._parts(folder) for folder in (IMAGES, STAGING, TILE_RESULTS))

    def metadata(self, part: Part) -> dict[str, Any]:
        """What a ledger part says of itself: `replaces` (names of merged inputs) and `ends`."""
        if part.name not in self._about:
            told = (self._parquet_file(part.name).schema_arrow.metadata or {}).get(_METADATA_KEY)
            self._about[part.name] = {"replaces": [], "ends": []} if told is None else json.loads(told)
        return self._about[part.name]

    def ledger(self, part: Part, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The ledger rows of one part in batches; control rows are left out."""
        file = self._parquet_file(part.name)
        if not {"image_id", *columns} <= set(file.schema_arrow.names):
            raise JobFailedError(f"{self.root}/{part.name} is no part of a ledger; take it away")
        for batch in file.iter_batches(65_536, columns=["image_id", *columns]):
            yield batch.filter(pc.is_valid(batch["image_id"]))

    def ends(self, part: Part) -> list[End]:
        """The archive ends that one part has seen."""
        if part.folder == IMAGES:
            return [End(*row) for row in self.metadata(part)["ends"]]
        return ends_of(self._parquet_file(part.name).read(["uri", "version", "end"]))

    def results(self, part: Part) -> pa.Table:
        """All that one commit holds (schema ANNOTATED and the kept columns)."""
        return schema.completed(self._parquet_file(part.name).read(), self._results_schema)

    def discard(self, part: Part) -> None:
        """Take away a commit that is no longer needed."""
        for name in part.names[::-1]:
            self.delete(name)

    def commit(self, table: pa.Table, folder: str = STAGING) -> Part:
        """Make whole items, or tiles, safe: one atomic object.

        `table` has the schema ANNOTATED and the kept columns behind it.
        """
        part = Part(folder, self._take_number(), 0, self.generation)
        data = _parquet(table.cast(self._results_schema))
        try:
            self.create(part.name, data)
        except FileExistsError as error:
            if self.read(part.name) != data:  # else the answer to our own request was lost
                raise JobFailedError(f"{self.root}: another run writes here too; this one stops") from error
        return replace(part, size=len(data))

    def merge(
        self,
        parts: Sequence[Part],
        stale: Mapping[int, Sequence[str]] = MappingProxyType({}),
        vanished: Mapping[str, bool] = MappingProxyType({}),
        kept: Mapping[str, Kept] = MappingProxyType({}),
    ) -> Part:
        """Several commits or parts become one part; the inputs are deleted.

        `stale` names by part number the image_ids that are left out with their instances; `vanished` sets
        that column of the ledger for the image_ids it names, `kept` the columns of a manifest.
        """
        flat, ends = [], list[End]()
        for part in parts:
            ends += self.ends(part)
            dropped = pa.array(stale.get(part.number, ()), pa.string())
            left = (
                rows.filter(pc.invert(pc.is_in(rows["image_id"], dropped))) for rows in self._read_flat(part)
            )
            flat.append(list(left))
        images, instances, tiles = (_sorted(pa.concat_tables(each)) for each in zip(*flat, strict=True))
        ledger = _with_vanished(images, vanished)
        for place, name in enumerate(self.kept):
            ledger = _changed(ledger, name, {item: values[place] for item, values in kept.items()})
        if (pc.sum(ledger["instances"]).as_py() or 0) != instances.num_rows:
            raise JobFailedError(f"{self.root}: ledger and instances disagree in {[p.name for p in parts]}")
        merged = Part(IMAGES, self._take_number(), 0, self.generation)
        names = [part.name for part in parts]
        written = None
        if self.keeps_instances:
            instances, geo = on_the_map(instances, self.crs)
            rows = _parquet(instances, {b"geo": geo})
            self.write(merged.instances, rows)
            written = len(rows)
        if tiles.num_rows:
            self.write(merged.tiles, _parquet(tiles))
        about = {"replaces": names, "ends": ends, "instances_bytes": written}
        data = _parquet(ledger, {_METADATA_KEY: json.dumps(about).encode()})
        self.write(merged.name, data)
        for name in [name for part in parts for name in part.names[::-1]]:
            self.delete(name)
        return replace(merged, size=len(data))

    def _parquet_file(self, name: str) -> pq.ParquetFile:
        if self._newest[0] != name:  # a start asks the same part for its ledger and ends
            data = self.read(name)
            if data is None:
                self.fence()
                raise GoneError(f"{self.root}/{name} is gone; was it deleted while the job ran?")
            self._newest = (name, data)
        try:
            return pq.ParquetFile(pa.BufferReader(self._newest[1]))
        except pa.ArrowException as error:
            raise JobFailedError(
                f"{self.root}/{name} is damaged ({error}); delete it to do its items again"
            ) from error

    def _read_flat(self, part: Part) -> tuple[pa.Table, pa.Table, pa.Table]:
        """(ledger rows, instance rows, tile rows) of one part."""
        if part.folder != IMAGES:
            nested = self.results(part)
            nested = nested.filter(pc.is_valid(nested["image_id"]))
            return nested.select(self._images.names), flatten(nested), flatten_tiles(nested)
        images = schema.completed(self._parquet_file(part.name).read(), self._images)
        instances = schema.INSTANCES.empty_table()
        if self.keeps_instances:
            instances = self._parquet_file(part.instances).read().cast(schema.INSTANCES)
        if not pc.any(pc.is_valid(images["tiles"])).as_py():
            return images, instances, schema.TILES.empty_table()
        return images, instances, self._parquet_file(part.tiles).read().cast(schema.TILES)

    def _parts(self, folder: str) -> list[Part]:
        return [
            Part(folder, int(match[1]), size, int(match[2] or 0))
            for name, size in self.files(folder).items()
            if (match := _PART.fullmatch(name))
        ]

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1


def on_the_map(instances: pa.Table, crs: str) -> tuple[pa.Table, bytes]:
    """Rows of INSTANCES along a space-filling curve, those without a place last, and their `geo` metadata."""
    if crs == CRS84 and not instances["geometry"].null_count < instances.num_rows:
        return instances, schema.geoparquet_metadata()
    import shapely  # not loaded where nothing has a place, nor is PROJ

    from segray.scenes.geoparquet import geoparquet_metadata, hilbert_order

    box = instances["geometry_bbox"].combine_chunks()
    sides = [box.field(side).to_numpy(zero_copy_only=False) for side in ("xmin", "ymin", "xmax", "ymax")]
    hidden = box.is_null().to_numpy(zero_copy_only=False)
    corners = np.where(hidden[:, None], np.nan, np.stack(sides, axis=1))
    rows = instances.take(pa.array(hilbert_order(corners)))
    shapes = shapely.from_wkb(rows["geometry"].drop_null().to_pylist())
    return rows, geoparquet_metadata(crs, sorted({shape.geom_type for shape in shapes}))


def flatten(nested: pa.Table) -> pa.Table:
    """Items with instances inside (schema ANNOTATED) -> one row an instance (schema INSTANCES)."""
    found = nested["found"].combine_chunks()
    parents = pc.list_parent_indices(found)
    rows = pc.list_flatten(found)
    columns = {"image_id": nested["image_id"].combine_chunks().take(parents)}
    columns |= {name.name: pc.struct_field(rows, name.name) for name in schema.NESTED_INSTANCE}
    columns["category"] = pc.dictionary_encode(columns["category"])
    return pa.table(columns).cast(schema.INSTANCES)


def flatten_tiles(nested: pa.Table) -> pa.Table:
    """Items with their tiles inside (schema ANNOTATED) -> one row a tile (schema TILES)."""
    tiles = nested["tile_rows"].combine_chunks()
    rows = pc.list_flatten(tiles)
    columns = {"image_id": nested["image_id"].combine_chunks().take(pc.list_parent_indices(tiles))}
    columns |= {field.name: pc.struct_field(rows, field.name) for field in rows.type}
    return pa.table(columns).cast(schema.TILES)


def _with_vanished(ledger: pa.Table, vanished: Mapping[str, bool]) -> pa.Table:
    if not vanished:
        return ledger
    ids = pa.array(list(vanished), pa.string())
    values = pa.array(list(vanished.values()), pa.bool_()).take(pc.index_in(ledger["image_id"], ids))
    position = ledger.schema.get_field_index("vanished")
    return ledger.set_column(position, "vanished", pc.coalesce(values, ledger["vanished"]))


def _changed(ledger: pa.Table, name: str, values: Mapping[str, str | None]) -> pa.Table:
    """With other values in one column for some image_ids."""
    if not values:
        return ledger
    place = pc.index_in(ledger["image_id"], pa.array(list(values), pa.string()))
    new = pa.array(list(values.values()), pa.string()).take(place)
    column = pc.if_else(pc.is_valid(place), new, ledger[name])
    return ledger.set_column(ledger.schema.get_field_index(name), name, column)


def _sorted(table: pa.Table) -> pa.Table:
    names = ("image_id", "instance_id", "tile_row", "tile_col")
    keys = [name for name in names if name in table.column_names]
    return table.unify_dictionaries().sort_by([(name, "ascending") for name in keys])


def _parquet(table: pa.Table, metadata: dict[bytes, bytes] | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(metadata or {})
    pq.write_table(plain, sink, compression="zstd", row_group_size=ROW_GROUP)
    data: bytes = sink.getvalue().to_pybytes()
    return data
