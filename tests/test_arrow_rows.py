"""Binary columns as views, tables as rows: values, nulls and slices as Arrow has them, and no copy."""

import numpy as np
import pyarrow as pa

from segray.arrow_rows import byte_views, packed, unpacked

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


def test_packed_tables_come_back_from_whatever_a_block_is_made_of() -> None:
    first = pa.table({"data": pa.array(VALUES, pa.large_binary()), "row": range(5)})
    tables = [first, first.slice(2, 2), first.slice(0, 0), pa.concat_tables([first.slice(4), first])]
    block = pa.concat_tables([packed(table) for table in tables])
    assert block.num_rows == 4
    assert list(unpacked(block.slice(1))) == tables[1:]
    assert list(unpacked(block)) == tables
    assert list(unpacked(pa.table({}))) == []


def test_packing_is_no_copy() -> None:
    table = pa.table({"data": pa.array(VALUES, pa.large_binary())})
    (back,) = unpacked(packed(table))
    assert back["data"].chunk(0).buffers()[2].address == table["data"].chunk(0).buffers()[2].address
