"""Binary columns as views: values, nulls and slices as Arrow has them, and no copy."""

import numpy as np
import pyarrow as pa

from segray.columns import byte_views

VALUES = [b"abc", None, b"", b"defg", b"h"]


def test_views_are_the_values_of_every_chunk_and_slice() -> None:
    array = pa.array(VALUES, pa.large_binary())
    column = pa.chunked_array([array.slice(1, 3), array.slice(0, 0), array.slice(3)])
    found = [None if view is None else view.tobytes() for view in byte_views(column)]
    assert found == column.to_pylist() == [None, b"", b"defg", b"defg", b"h"]
    assert list(byte_views(pa.chunked_array([], pa.large_binary()))) == []
    assert list(byte_views(pa.chunked_array([pa.nulls(2, pa.large_binary())]))) == [None, None]


def test_views_are_no_copies() -> None:
    array = pa.array(VALUES, pa.large_binary())
    view = next(byte_views(pa.chunked_array([array])))
    assert view is not None
    assert np.shares_memory(view, np.frombuffer(array.buffers()[2], np.uint8))
