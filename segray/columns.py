"""Arrow columns as numpy views."""

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
