"""Manifests made to hurt: whatever a row says is a row; whatever the file says is one line."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.errors import SettingsError
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.storage import StorageSettings
from tests.sources.footprint import Footprint

PATIENCE = StorageSettings(attempts=1)
STRANGE = {
    "foo://x/y.jpg": "unsupported",
    "memory://x": "unsupported",
    "zip://a::s3://b": "unsupported",
    "http://[::1": "unsupported",
    "az://container/x.jpg": "unsupported",  # no account is given
    "a\0b.jpg": "unsupported",
    "~nobody-of-that-name/x.jpg": "unsupported",
    "file://": "unsupported",
    "..": "unsupported",
    "/": "unsupported",
    "javascript:alert(1)": "missing",
    "data:image/png;base64,xx": "missing",
    "C:\\x\\y.jpg": "missing",
    "../../etc/x.jpg": "missing",
    "   ": "missing",
    "a\nb.jpg": "missing",
    "\u202e.jpg": "missing",
    "x" * 5000: "missing",
    "": "missing",
}


def rows(path: Path) -> list[Source]:
    """The manifest's rows."""
    return list(Listing([str(path)], PATIENCE))


def refusal(path: Path, content: bytes | pa.Table) -> str:
    """The line with which a manifest is refused."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    with pytest.raises(SettingsError) as caught:
        rows(path)
    said = str(caught.value)
    assert said.startswith(f"file://{path}: ")
    assert said.isprintable()
    return said


def test_strange_addresses_are_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": [*STRANGE, None]}), tmp_path / "m.parquet")
    found = rows(tmp_path / "m.parquet")
    assert [row.error_type for row in found] == [*STRANGE.values(), "missing"]
    assert all(row.error for row in found)
    assert len({row.uri for row in found}) == len(found)


class Answering(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        self.send_error(int(self.path[1:4]))

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def http_port() -> Iterator[int]:
    """A web server on loopback that has nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_web_server_that_fails_is_not_a_missing_file(tmp_path: Path, http_port: int) -> None:
    here = f"http://127.0.0.1:{http_port}"
    uris = [
        f"{here}/404.jpg",
        f"{here}/410.jpg",
        f"{here}/403.jpg",
        f"{here}/500.jpg",
        "http://127.0.0.1:9/x.jpg",
    ]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "m.parquet")
    assert [row.error_type for row in rows(tmp_path / "m.parquet")] == ["missing"] * 2 + ["storage"] * 3


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([["a"], ["b"]]), "list"),
        (pa.array([{"a": "x"}]), "struct"),
        (pa.array([1.5]), "double"),
        (pa.array([1, 1]).dictionary_encode(), "int64"),
    ],
)
def test_a_column_that_is_no_text(tmp_path: Path, column: pa.Array, kind: str) -> None:
    assert f"column uri must be text, it is {kind}" in refusal(
        tmp_path / "m.parquet", pa.table({"uri": column})
    )


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "binary", "dictionary"])
def test_every_kind_of_text(tmp_path: Path, kind: str) -> None:
    text = pa.array(["a.jpg", "é.jpg"])
    column = text.dictionary_encode() if kind == "dictionary" else text.cast(getattr(pa, kind)())
    pq.write_table(pa.table({"uri": column}), tmp_path / "m.parquet")
    assert [Path(row.address).name for row in rows(tmp_path / "m.parquet")] == ["a.jpg", "é.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("utf16.csv", "uri\na.jpg\n".encode("utf-16"), "it is not UTF-8"),
        ("latin1.csv", "uri\né.jpg\n".encode("latin-1"), "it is not UTF-8"),
        ("picture.csv", b"\x89PNG\r\n\x1a\n", "it is not UTF-8"),
        ("semicolons.csv", b"uri;x\na;b\n", "needs a column uri; it has: uri;x"),
        ("capitals.csv", b"URI\na\n", "needs a column uri; it has: URI"),
        ("control.csv", b"a\x07b\na\n", r"it has: 'a\x07b'"),
        ("long.csv", b"uri\n" + b"x" * (65 << 20) + b"\n", "field limit"),
        ("long.txt", b"x" * (65 << 20) + b"\n", "a line has more than 67,108,864 letters"),
        ("commas.tsv", b"uri,x\na,b\n", "needs a column uri; it has: uri,x"),
        ("half.jsonl", b'{"uri": "a.jpg"}\n{"uri": "b', "a line is no JSON"),
        ("list.jsonl", b'["a.jpg"]\n', "needs a key uri"),
        ("deep.jsonl", b"[" * 200_000 + b"\n", "a line is no JSON"),
        ("binary.parquet", pa.table({"uri": [b"\xff"]}), "UTF8"),
        ("lying.parquet", b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1", "cannot be read"),
        ("csv.parquet", b"uri\na\n", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: Any, words: str) -> None:
    assert words in refusal(tmp_path / name, content)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xef\xbb\xbfuri\na.jpg\n", ["a.jpg"]),  # with a byte order mark
        (b"uri\ra.jpg\rb.jpg\r", ["a.jpg", "b.jpg"]),
        (b'uri,x\n"a\nb.jpg",1\n"c,""d"".jpg",2\n', ["a\nb.jpg", 'c,"d".jpg']),
        (b"\n\nuri\n\na.jpg\n\n\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"x,uri\n1,a.jpg,2,3\n1,b.jpg\n", ["a.jpg", "b.jpg"]),
        (b"uri\n", []),
        (b"uri", []),
    ],
)
def test_dialects_of_csv(tmp_path: Path, content: bytes, names: list[str]) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    assert [row.address.removeprefix(f"{tmp_path}/") for row in rows(tmp_path / "m.csv")] == names


def test_a_short_row_has_no_uri(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"x,uri\n1\n1,\n1,a.jpg\n")
    assert [row.uri.rpartition("/")[2] for row in rows(tmp_path / "m.csv")] == [
        "m.csv#row=1",
        "m.csv#row=2",
        "a.jpg",
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_very_many_rows_are_streamed(tmp_path: Path, suffix: str, fuzz_files: int) -> None:
    """A million at `--fuzz-files 5000`."""
    number, path = 200 * fuzz_files, tmp_path / f"m.{suffix}"
    if suffix == "csv":
        with path.open("w") as file:
            file.writelines(
                ["uri\n", *(f"deep/folder/of/pictures/{row % 1000:012d}.jpg\n" for row in range(number))]
            )
    else:
        names = pa.array([f"deep/folder/of/pictures/{row:012d}.jpg" for row in range(number)])
        pq.write_table(pa.table({"uri": names}), path)
        del names
    before, start = Footprint(), time.monotonic()
    assert sum(row.error_type == "missing" for row in Listing([str(path)], PATIENCE)) == number
    print(f"{number:,} rows in {time.monotonic() - start:.1f} s, {before.peak - before.resident >> 20} MiB")
    assert before.peak < before.resident + (200 << 20)
