"""Files into tables: the right bytes, each file's own error, and patience with storages that falter."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from segray.schema import FETCHED
from segray.sources import rows
from segray.sources.item import Source, image_id
from segray.sources.listing import Listing
from segray.sources.read_step import fetch_files
from segray.storage import StorageSettings
from tests.faults import Fault, failing
from tests.servers import Server

STORAGE = StorageSettings()


def source(path: Path, size: int) -> Source:
    """A local file of a claimed size."""
    return Source(f"file://{path}", str(path), "file", "1", size)


def remote(server: Server, names: list[str], storage: StorageSettings | None = None) -> list[Source]:
    """The named objects as a listing gives them."""
    return list(Listing([server.url(name) for name in names], storage or server.storage))


def test_bytes_and_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    (tmp_path / "empty.jpg").write_bytes(b"")
    known = Source("file:///x", "/x", "file", "", -1, "unsupported", "a named pipe, not a file")
    sources = [source(tmp_path / "a.jpg", 3), source(tmp_path / "gone.jpg", 5), known]
    sources += [source(tmp_path / "empty.jpg", 0), source(tmp_path, 9)]
    (table,) = fetch_files(sources, STORAGE)
    assert table.schema == FETCHED
    assert table["data"].to_pylist() == [b"abc", None, None, b"", None]
    assert table["error_type"].to_pylist() == [None, "missing", "unsupported", None, "missing"]
    assert table["image_id"].to_pylist()[0] == image_id(f"file://{tmp_path}/a.jpg", None, 0, "1")
    assert table["member"].null_count == table["end"].null_count == 5


def test_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(2000))
    (tmp_path / "b.jpg").write_bytes(bytes(1000))
    claimed = [source(tmp_path / "a.jpg", 2000), source(tmp_path / "b.jpg", 1000)]
    unknown = [source(tmp_path / "a.jpg", -1), source(tmp_path / "b.jpg", -1)]
    for sources in (claimed, unknown):
        (table,) = fetch_files(sources, STORAGE, max_bytes=1000)
        assert table["error_type"].to_pylist() == ["too_large", None]


def test_tables_end_by_listed_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TABLE_BYTES", 100)
    monkeypatch.setattr(rows, "TABLE_ROWS", 4)
    for number in range(12):
        (tmp_path / f"{number}").write_bytes(bytes(number))
    sizes = [60, 40, 1, 300, 0, 0, 0, 0, 0, 100, 1, 99]
    sources = [source(tmp_path / f"{number}", size) for number, size in enumerate(sizes)]
    lengths = [table.num_rows for table in fetch_files(sources, STORAGE)]
    assert lengths == [2, 1, 1, 4, 2, 2]
    (tmp_path / "3").unlink()
    assert [table.num_rows for table in fetch_files(sources, STORAGE)] == lengths


def test_object_store(server: Server) -> None:
    names = [f"fetch/{number} [x]?.jpg" for number in range(70)]
    for number, name in enumerate(names):
        server.put(name, str(number).encode() * number)
    sources = remote(server, names)
    gone = sources[0].address + "gone"
    tables = list(fetch_files([*sources, Source(gone, gone, "file", "", 5)], server.storage))
    assert [table.num_rows for table in tables] == [64, 7]
    joined = pa.concat_tables(tables)
    assert joined["data"].to_pylist() == [str(number).encode() * number for number in range(70)] + [None]
    assert joined["error_type"].to_pylist() == [None] * 70 + ["missing"]


def test_file_that_changed_since_it_was_listed(server: Server) -> None:
    for number in range(3):
        server.put(f"changed/{number}.jpg", b"before")
    sources = remote(server, [f"changed/{number}.jpg" for number in range(3)])
    server.put("changed/0.jpg", b"after it grew")
    server.put("changed/1.jpg", b"less")
    (table,) = fetch_files(sources, server.storage)
    assert table["data"].to_pylist() == [b"after it grew", b"less", b"before"]


@pytest.mark.parametrize("fault", [503, "reset", "cut"])
def test_faults_that_pass(server: Server, fault: Fault) -> None:
    names = [f"faults/{number}.jpg" for number in range(6)]
    for name in names:
        server.put(name, name.encode() * 100)
    sources = remote(server, names)
    with failing(server, fault, times=9) as proxy:
        (table,) = fetch_files(sources, server.storage_at(proxy.endpoint))
        requests = len(proxy.seen)
    assert table["data"].to_pylist() == [name.encode() * 100 for name in names]
    assert requests == 6 + 9  # what had come was not fetched again


def test_faults_that_stay(server: Server) -> None:
    server.put("stay/a.jpg", b"a")
    sources = remote(server, ["stay/a.jpg"])
    start = time.monotonic()
    for fault, attempts in ((503, 3), (403, 1)):
        with failing(server, fault) as proxy:
            storage = server.storage_at(proxy.endpoint).model_copy(update={"attempts": 3})
            (table,) = fetch_files(sources, storage)
            seen = len(proxy.seen)
        assert table["error_type"].to_pylist() == ["storage"]
        assert "cannot be read" in table["error"].to_pylist()[0]
        assert seen == attempts
    assert time.monotonic() - start < 10
