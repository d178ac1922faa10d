"""Tables of an output folder: the files in it at every moment of a run, consistent even if it is killed.

    _segray/staging/000007-g2.parquet   a commit: whole items with their instances inside, one atomic object
    _segray/tiles/000008-g2.parquet     a commit of tiles, until their items are whole
    instances/part-000012-g2.parquet    many commits merged, flattened and sorted: one row an instance
    tiles/part-000012-g2.parquet        one row a tile, where an item was tiled
    images/part-000012-g2.parquet       their ledger rows, written after both: the commit record
    run.json                            written last: it exists = the run is complete
    _segray/unpublished/2-0f3c…         an object that the second holder of the lease is about to publish

Why not Ray Data's checkpoint and `write_parquet`: both are exact only while one row is one item up to the
sink, and they write one file a block. Here results return to the driver one row an item, the driver is the
only writer, and a commit is one put of one object, so there is nothing to repair. Many small commits keep
a kill cheap; merging them keeps the number of files low. A merge names its inputs in its ledger part's
metadata, so an interrupted merge is finished (inputs deleted) or undone (instances without a ledger part
deleted) by the next start. Memory: one merge holds about `MERGE_BYTES` of commits.

Numbers grow for the life of an output, so of two rows of one item the one in the file with the higher number
is newer.

How a write is fenced off from a later run's: see `folder`.
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
"""Bytes of staged commits that are merged into one part, so about the size of a part."""

ROW_GROUP = 65_536
"""Rows in a Parquet row group; a spatial filter skips the groups outside its area."""

_METADATA_KEY = b"segray"
STAGING, TILE_RESULTS = "_segray/staging", "_segray/tiles"
TILES = "tiles"
_PART = re.compile(
    r"(?:_segray/(?:staging|tiles)/|(?:images|instances|tiles)/part-)(\d{6,})(?:-g(\d+))?\.parquet"
)
_HALF = re.compile(
    r"(?:_segray/(?:staging|tiles)/\.|(?:images|instances|tiles)/\.part-)\d{6,}\.parquet\.[0-9a-f]+\.tmp"
)
"""Full names of our own files, finished and (of earlier versions) half written; other files are kept."""


class GoneError(JobFailedError):
    """A part that was listed no longer exists."""


class End(NamedTuple):
    """An archive that was read to its end (schema ARCHIVE_END)."""

    uri: str
    version: str
    items: int
    ignored: int
    broken: bool


def ends_of(table: pa.Table) -> list[End]:
    """Return the archive ends in the control rows of a table (schema ANNOTATED)."""
    rows = table.filter(pc.is_valid(table["end"])).select(["uri", "version", "end"]).to_pylist()
    return [End(row["uri"], row["version"], **row["end"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Part:
    """One file of committed items: a staged commit, a commit of tiles, or a merged part of the ledger."""

    folder: str
    number: int
    size: int
    generation: int = 0
    """Generation of the lease under which it was written; 0: no lease, or an earlier version."""

    @property
    def name(self) -> str:
        """Path inside the output; its existence is the commit."""
        return f"{self.folder}/{'part-' if self.folder == IMAGES else ''}{self._file}"

    @property
    def instances(self) -> str:
        """Path of the instances of a merged part."""
        return f"{INSTANCES}/part-{self._file}"

    @property
    def tiles(self) -> str:
        """Path of the tiles of a merged part, if any of its items was tiled."""
        return f"{TILES}/part-{self._file}"

    @property
    def _file(self) -> str:
        return f"{self.number:06d}{mark(self.generation)}.parquet"

    @property
    def names(self) -> list[str]:
        """Paths of all files of the part."""
        return [self.name, self.tiles, self.instances] if self.folder == IMAGES else [self.name]


class Store(Output):
    """Commit, merge, read and recover the tables of one output."""

    def __init__(
        self,
        url: str,
        storage: StorageSettings,
        crs: str = CRS84,
        keeps_instances: bool = True,
        kept: Sequence[str] = (),
    ) -> None:
        """Open the tables; crs: of the geometries; kept: manifest columns that the ledger carries."""
        super().__init__(url, storage)
        self.kept = list(kept)
        self._images = schema.with_kept(schema.IMAGES, kept)
        self._results_schema = schema.with_kept(schema.ANNOTATED, kept)
        self.crs, self.keeps_instances = crs, keeps_instances
        self._next_number = 1
        self._newest: tuple[str, bytes] = ("", b"")
        self._about = dict[str, dict[str, Any]]()
        """Cached metadata of ledger parts by name: parts never change."""

    def recover(self) -> list[Part]:
        """Finish or undo what a killed run left half done; return the valid parts, oldest first.

        Raises JobFailedError where a part is damaged or its instances are missing.
        """
        try:
            return self._recovered()
        except GoneError:  # a late delete of the run before: see the module's docstring of `folder`
            return self._recovered()

    def _recovered(self) -> list[Part]:
        claimed = [part for part in self._parts(STAGING) + self._parts(TILE_RESULTS) if not part.size]
        for part in claimed:  # an empty file: a commit that was never written, see `atomic`
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
        ):  # instances first: a part without them can still be recognised
            for name in self.files(folder):
                if _HALF.fullmatch(name) or (_PART.fullmatch(name) and name not in counting):
                    self.delete(name)
        self._next_number = max((part.number for part in parts), default=0) + 1
        self._check_instances(kept)
        return kept

    def _check_instances(self, parts: Sequence[Part]) -> None:
        """Raise JobFailedError where a ledger part's instances file is missing or has another size."""
        sizes = self.files(INSTANCES)
        for part in parts:
            written = self.metadata(part).get("instances_bytes") if part.folder == IMAGES else None
            if written is not None and sizes.get(part.instances) != written:
                self.fence()  # a run that took over may have merged it into another part
                raise JobFailedError(
                    f"{self.root}/{part.instances} is missing or was changed; restore it, "
                    f"or delete {part.name} and run again to repeat its items"
                )

    def parts(self) -> list[Part]:
        """Return commits of whole items and merged parts, oldest first; a live run has some rows in two."""
        found = [part for part in self._parts(IMAGES) + self._parts(STAGING) if part.size]
        return sorted(found, key=lambda part: part.number)

    def has_items(self) -> bool:
        """Return whether any item was ever committed to this output."""
        return any(self._parts(folder) for folder in (IMAGES, STAGING, TILE_RESULTS))

    def metadata(self, part: Part) -> dict[str, Any]:
        """Return the metadata of a ledger part: `replaces` (names of merged inputs) and `ends`.

        Raises GoneError where the part no longer exists, JobFailedError where it is damaged.
        """
        if part.name not in self._about:
            told = (self._parquet_file(part.name).schema_arrow.metadata or {}).get(_METADATA_KEY)
            self._about[part.name] = {"replaces": [], "ends": []} if told is None else json.loads(told)
        return self._about[part.name]

    def ledger(self, part: Part, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield `image_id` and these columns of one part's ledger rows in batches, without control rows.

        Raises JobFailedError where the file is damaged or not a ledger file.
        """
        file = self._parquet_file(part.name)
        if not {"image_id", *columns} <= set(file.schema_arrow.names):
            raise JobFailedError(
                f"{self.root}/{part.name} is not a segray ledger file; move it out of this folder"
            )
        for batch in file.iter_batches(65_536, columns=["image_id", *columns]):
            yield batch.filter(pc.is_valid(batch["image_id"]))

    def ends(self, part: Part) -> list[End]:
        """Return the archive ends recorded in one part."""
        if part.folder == IMAGES:
            return [End(*row) for row in self.metadata(part)["ends"]]
        return ends_of(self._parquet_file(part.name).read(["uri", "version", "end"]))

    def results(self, part: Part) -> pa.Table:
        """Return all rows of one commit (schema ANNOTATED and the kept columns)."""
        return schema.completed(self._parquet_file(part.name).read(), self._results_schema)

    def discard(self, part: Part) -> None:
        """Delete a commit that is no longer needed."""
        for name in part.names[::-1]:
            self.delete(name)

    def commit(self, table: pa.Table, folder: str = STAGING) -> Part:
        """Write whole items, or tiles, as one atomic object.

        `table` has the schema ANNOTATED followed by the kept columns. Raises JobFailedError where another run
        writes to the output.
        """
        part = Part(folder, self._take_number(), 0, self.generation)
        data = _parquet(table.cast(self._results_schema))
        try:
            self.create(part.name, data)
        except FileExistsError as error:
            if self.read(part.name) != data:  # else our request succeeded and its response was lost
                raise JobFailedError(f"{self.root}: another run writes to it too; this one stops") from error
        return replace(part, size=len(data))

    def merge(
        self,
        parts: Sequence[Part],
        stale: Mapping[int, Sequence[str]] = MappingProxyType({}),
        vanished: Mapping[str, bool] = MappingProxyType({}),
        kept: Mapping[str, Kept] = MappingProxyType({}),
    ) -> Part:
        """Merge several commits or parts into one part and delete them.

        stale: part number -> image_ids to leave out with their instances. vanished: image_id -> new value of
        that ledger column. kept: image_id -> values of the manifest columns. Raises JobFailedError where
        ledger and instances disagree.
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
        for index, name in enumerate(self.kept):
            ledger = _changed(ledger, name, {item: values[index] for item, values in kept.items()})
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
        metadata = {_METADATA_KEY: json.dumps(about).encode(), b"geo": schema.geoparquet_of_images()}
        data = _parquet(ledger, metadata)
        self.write(merged.name, data)
        for name in [name for part in parts for name in part.names[::-1]]:
            self.delete(name)
        return replace(merged, size=len(data))

    def _parquet_file(self, name: str) -> pq.ParquetFile:
        if self._newest[0] != name:  # a start reads ledger and ends of the same part
            data = self.read(name)
            if data is None:
                self.fence()
                raise GoneError(f"{self.root}/{name} is gone; was it deleted while the job ran?")
            self._newest = (name, data)
        try:
            return pq.ParquetFile(pa.BufferReader(self._newest[1]))
        except pa.ArrowException as error:
            raise JobFailedError(
                f"{self.root}/{name} is damaged ({error}); delete it to repeat its items"
            ) from error

    def _read_flat(self, part: Part) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Return (schema IMAGES, schema INSTANCES, schema TILES): the rows of one part."""
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
    """Sort instances (schema INSTANCES) along a Hilbert curve, those without geometry last.

    Returns them with their `geo` metadata (GeoParquet 1.1).
    """
    if crs == CRS84 and not instances["geometry"].null_count < instances.num_rows:
        return instances, schema.geoparquet_metadata()
    import shapely  # shapely and PROJ are loaded only for georeferenced instances

    from segray.scenes.geoparquet import geoparquet_metadata, hilbert_order

    box = instances["geometry_bbox"].combine_chunks()
    sides = [box.field(side).to_numpy(zero_copy_only=False) for side in ("xmin", "ymin", "xmax", "ymax")]
    hidden = box.is_null().to_numpy(zero_copy_only=False)
    corners = np.where(hidden[:, None], np.nan, np.stack(sides, axis=1))
    rows = instances.take(pa.array(hilbert_order(corners)))
    shapes = shapely.from_wkb(rows["geometry"].drop_null().to_pylist())
    return rows, geoparquet_metadata(crs, sorted({shape.geom_type for shape in shapes}))


def flatten(nested: pa.Table) -> pa.Table:
    """Flatten items with their instances inside (schema ANNOTATED) to one row an instance (INSTANCES)."""
    found = nested["found"].combine_chunks()
    parents = pc.list_parent_indices(found)
    rows = pc.list_flatten(found)
    columns = {"image_id": nested["image_id"].combine_chunks().take(parents)}
    columns |= {name.name: pc.struct_field(rows, name.name) for name in schema.NESTED_INSTANCE}
    columns["category"] = pc.dictionary_encode(columns["category"])
    return pa.table(columns).cast(schema.INSTANCES)


def flatten_tiles(nested: pa.Table) -> pa.Table:
    """Flatten items with their tiles inside (schema ANNOTATED) to one row a tile (schema TILES)."""
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
    """Replace the values of one column for some image_ids."""
    if not values:
        return ledger
    index = pc.index_in(ledger["image_id"], pa.array(list(values), pa.string()))
    new = pa.array(list(values.values()), pa.string()).take(index)
    column = pc.if_else(pc.is_valid(index), new, ledger[name])
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
