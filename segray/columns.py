"""Arrow columns as numpy views; whole tables as one row, for Ray."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def byte_views(column: pa.ChunkedArray) -> Iterator[npt.NDArray[np.uint8] | None]:
    """The bytes of each row of a large_binary column, None for a null; Arrow's own scalars are copies."""
    for chunk in column.chunks:
        if len(chunk) == 0:
            continue
        _, offsets, values = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        data = np.frombuffer(b"" if values is None else values, np.uint8)
        for valid, start, end in zip(chunk.is_valid().to_pylist(), ends, ends[1:], strict=False):
            yield data[start:end] if valid else None


def packed(table: pa.Table) -> pa.Table:
    """The table as one row of one column, which holds its rows as a list: no copy of a table of one chunk.

    Ray gathers rows into blocks and cuts blocks between rows, by their bytes alone; one row stays as it is.
    """
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    rows = pa.LargeListArray.from_arrays(pa.array([0, len(batch)], pa.int64()), batch.to_struct_array())
    return pa.table({"rows": rows})


def unpacked(block: pa.Table) -> Iterator[pa.Table]:
    """The tables that are packed in the rows of a block (Ray also makes blocks without rows or columns)."""
    for chunk in block["rows"].chunks if block.num_rows else ():
        for row in range(len(chunk)):
            rows = chunk.slice(row, 1).flatten()
            yield pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)])
