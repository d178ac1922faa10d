"""Truth and predictions as rows of one table, brought together by image on this machine's disk.

Labels and predictions come in orders of their own, and neither fits into memory. So both are read once and
each row is appended to the file of its shard, `IMAGES` neighbouring images; then one shard is read at a time
(a Grace join). A row takes its run lengths and about 80 bytes on disk, and nothing in memory.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.errors import JobFailedError
from segray.masks.types import Box
from segray.sources.concurrent_requests import describe

IMAGES = 1_000
"""Images of a shard."""
_BUFFERED = 64 << 20
"""Bytes of rows that are held before they are appended to files."""
_ROWS = 10_000

ROWS = pa.schema(
    [
        pa.field("image", pa.int32()),  # index of the image, in the order of the ids
        pa.field("category", pa.int32()),  # of the labels
        pa.field("score", pa.float64()),  # NaN: truth
        pa.field("crowd", pa.bool_()),
        pa.field("area", pa.float64()),  # as COCO JSON has it; NaN: that of the mask
        *(pa.field(name, pa.float64()) for name in ("x", "y", "width", "height")),  # NaN: those of the mask
        pa.field("counts", pa.large_binary()),  # COCO's run lengths, not checked; null: no mask
        pa.field("name", pa.string()),  # of the annotation, for messages; null for predictions
    ]
)
_NOT = float("nan")


class RowList:
    """Collects rows of schema ROWS one by one."""

    def __init__(self) -> None:
        self._columns: list[list[Any]] = [[] for _ in ROWS]

    def add(
        self,
        image: int,
        category: int,
        counts: str | bytes | None,
        box: Box | None,
        score: float = _NOT,
        *,
        crowd: bool = False,
        area: float | None = None,
        name: str | None = None,
    ) -> None:
        """Add an instance: a prediction has a score, truth has not."""
        box = (_NOT,) * 4 if box is None else box
        row = (image, category, score, crowd, _NOT if area is None else area, *box, counts, name)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def full(self) -> bool:
        """Return whether it is time for `table`."""
        return len(self._columns[0]) >= _ROWS

    def table(self) -> pa.Table:
        """Return the rows, and begin anew."""
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, ROWS, strict=True)]
        self._columns = [[] for _ in ROWS]
        return pa.table(arrays, schema=ROWS)


class Shards:
    """The rows of many images in files, a shard each."""

    def __init__(self, folder: Path, images: int, each: int = IMAGES) -> None:
        """Write to `folder`; images: how many there are; each: of one shard."""
        self._folder, self.images, self._each = folder, images, each
        self._buffer: list[pa.Table] = []

    def __len__(self) -> int:
        return -(-self.images // self._each)

    def of(self, shard: int) -> range:
        """Return the indices of the images of a shard."""
        return range(shard * self._each, min((shard + 1) * self._each, self.images))

    def add(self, rows: pa.Table) -> None:
        """Add rows of schema ROWS, in any order of images. Raises JobFailedError where the disk is full."""
        self._buffer.append(rows)
        if sum(table.nbytes for table in self._buffer) > _BUFFERED:
            self._flush()

    def read(self, shard: int) -> bytes:
        """Return the rows of a shard, in the order in which they were added; see `table_of`."""
        self._flush()
        path = self._path(shard)
        return path.read_bytes() if path.exists() else b""

    def _flush(self) -> None:
        if not self._buffer:
            return
        rows = pa.concat_tables(self._buffer).combine_chunks()
        self._buffer = []
        if not rows.num_rows:
            return
        shard = rows["image"].to_numpy() // self._each
        if (np.diff(shard) < 0).any():
            order = np.argsort(shard, kind="stable")
            rows, shard = rows.take(pa.array(order)), shard[order]
        starts = np.flatnonzero(np.diff(shard, prepend=-1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(shard)], strict=True):
            self._append(int(shard[start]), rows.slice(start, stop - start))

    def _append(self, shard: int, rows: pa.Table) -> None:
        try:
            with self._path(shard).open("ab") as file, pa.ipc.new_stream(file, ROWS) as writer:
                writer.write_table(rows)
        except OSError as error:
            advice = "set TMPDIR to a larger disk and run the command again"
            raise JobFailedError(f"cannot write {self._folder}: {describe(error)}; {advice}") from error

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:06d}.arrows"


def table_of(data: bytes) -> pa.Table:
    """Return the rows of `Shards.read`: streams that were appended to each other."""
    reader, tables = pa.BufferReader(data), [ROWS.empty_table()]
    while reader.tell() < reader.size():
        tables.append(pa.ipc.open_stream(reader).read_all())
    return pa.concat_tables(tables).combine_chunks()


def numbered(column: pa.ChunkedArray, known: pa.Array) -> Any:
    """Return the index in `known` of each value, int64 (n,); -1 for others."""
    return pc.fill_null(pc.index_in(column, known), -1).to_numpy()
