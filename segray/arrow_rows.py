"""Numpy views of Arrow columns, and whole tables packed into one row for Ray Data."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def byte_views(column: pa.ChunkedArray) -> Iterator[npt.NDArray[np.uint8] | None]:
    """Yield the bytes of each row of a large_binary column: a uint8 (n,) view, or None for a null.

    The views share Arrow's memory; its own scalars are copies.
    """
    for chunk in column.chunks:
        if len(chunk) == 0:
            continue
        _, offsets, values = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        data = np.frombuffer(b"" if values is None else values, np.uint8)
        for valid, start, end in zip(chunk.is_valid().to_pylist(), ends, ends[1:], strict=False):
            yield data[start:end] if valid else None


def packed(table: pa.Table) -> pa.Table:
    """Pack a table into one row: a column `rows` (large_list of struct) that holds all rows of the table.

    A table of one chunk is not copied. Ray Data merges rows into blocks and splits blocks between rows, by
    their bytes alone; a single row stays whole.
    """
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    rows = pa.LargeListArray.from_arrays(pa.array([0, len(batch)], pa.int64()), batch.to_struct_array())
    return pa.table({"rows": rows})


def unpacked(block: pa.Table) -> Iterator[pa.Table]:
    """Yield the tables packed in a block, each with its schema (Ray also makes blocks without rows)."""
    for chunk in block["rows"].chunks if block.num_rows else ():
        for row in range(len(chunk)):
            rows = chunk.slice(row, 1).flatten()
            yield pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)])
