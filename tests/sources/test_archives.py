"""Archives member by member: the right bytes and ids, nothing lost where an archive is broken or hostile."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segray.schema import FETCHED
from segray.sources import reader, rows
from segray.sources.archives import read_archive
from segray.sources.item import image_id
from segray.sources.listing import Listing
from segray.storage import StorageSettings
from tests.faults import Fault, failing
from tests.servers import Server
from tests.sources.pictures import jpeg

STORAGE = StorageSettings()
Content = list[tuple[str, bytes]]
MEMBERS: Content = [
    ("a/1.jpg", jpeg(1)),
    ("a/notes.txt", b"x" * 5000),
    ("b/é [1]*.PNG", jpeg(2)),
    ("a/1.jpg", jpeg(3)),
    ("/etc/passwd.png", jpeg(4)),
    ("../../up.jpg", jpeg(5)),
    ("empty.gif", b""),
    ("table.parquet", b"y" * 100),
]
ITEMS = [(index, name, data) for index, (name, data) in enumerate(MEMBERS) if index not in (1, 7)]
KINDS = ["x.tar", "x.tar.gz", "x.tgz", "x.zip"]


def tar(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    """A tar; mode `w:gz` packs it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def zipped(members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def packed(name: str, members: Content) -> bytes:
    """An archive of the kind that its name says."""
    if name.endswith(".zip"):
        return zipped(members)
    return tar(members, "w" if name.endswith(".tar") else "w:gz")


def read(
    url: Path | str, done: Container[int] = (), storage: StorageSettings = STORAGE, max_bytes: int = 1 << 20
) -> list[dict[str, Any]]:
    """The rows of an archive."""
    (source,) = Listing([str(url)], storage)
    tables = list(read_archive(source, done, storage, max_bytes))
    assert all(table.schema == FETCHED for table in tables)
    return list(pa.concat_tables(tables).to_pylist())


def written(path: Path, data: bytes) -> Path:
    """The file at `path`, with its bytes."""
    path.write_bytes(data)
    return path


def errors(found: list[dict[str, Any]]) -> list[tuple[str | None, str]]:
    """(member, error type) of the rejected rows."""
    return [(row["member"], row["error_type"]) for row in found if row["error_type"]]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", KINDS)
def test_members(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, packed(name, MEMBERS))
    *found, end = read(path)
    assert [(row["member_index"], row["member"], row["data"]) for row in found] == ITEMS
    assert end["end"] == {"items": 6, "ignored": 2, "broken": False}
    assert end["image_id"] is None
    version = found[0]["version"]
    assert found[0]["image_id"] == image_id(f"file://{path}", "a/1.jpg", 0, version)
    assert found[2]["image_id"] == image_id(f"file://{path}", "a/1.jpg", 1, version)
    assert len({row["image_id"] for row in found}) == 6


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", KINDS)
def test_archives_in_archives_are_rejected_by_name(tmp_path: Path, name: str) -> None:
    """What is in them would be lost without a word."""
    members = [("1.jpg", jpeg(1)), ("in/more.tar.gz", b"z"), ("in/more.ZIP", b"z" * 3000), ("2.jpg", jpeg(2))]
    found = read(written(tmp_path / name, packed(name, members)))
    assert [row["member"] for row in found] == [*(member for member, _ in members), None]
    assert [row["error_type"] for row in found] == [None, "unsupported", "unsupported", None, None]
    assert found[1]["error"] == "an archive inside an archive is not opened: unpack it"
    assert found[-1]["end"] == {"items": 4, "ignored": 0, "broken": False}


@pytest.mark.parametrize("name", KINDS)
def test_done_members_are_left_out(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, packed(name, MEMBERS))
    everything = read(path)
    *found, end = read(path, done={0, 4, 6})
    assert found == [row for row in everything[:-1] if row["member_index"] not in {0, 4, 6}]
    assert end == everything[-1]


@pytest.mark.parametrize("name", KINDS)
def test_tables_are_cut_by_size(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TABLE_BYTES", 1000)
    members = [(f"{number}.jpg", bytes(400)) for number in range(7)]
    (source,) = Listing([str(written(tmp_path / name, packed(name, members)))], STORAGE)
    assert [table.num_rows for table in read_archive(source, (), STORAGE)] == [2, 2, 2, 2]
    assert [table.num_rows for table in read_archive(source, {0}, STORAGE)] == [2, 2, 3]


def test_folders_links_and_devices(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
        names = ("d.jpg", "l.jpg", "h.jpg", "p.jpg", "c.jpg", "l.txt")
        for name, kind in zip(names, (*kinds, tarfile.SYMTYPE), strict=True):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    found = read(tmp_path / "x.tar")
    assert errors(found) == [(name, "unsupported") for name in ("l.jpg", "h.jpg", "p.jpg", "c.jpg")]
    assert [row["member_index"] for row in found[:-1]] == [1, 2, 3, 4]
    assert found[-1]["end"] == {"items": 4, "ignored": 1, "broken": False}


def linked_tar(mode: str) -> bytes:
    """As GNU tar writes two names of one file, and symbolic links to it from another folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, target
            archive.addfile(info, io.BytesIO(data))

        add("./a/one.jpg", jpeg(1))
        add("a/hard.jpg", b"", tarfile.LNKTYPE, "./a/one.jpg")
        for name, target in (
            ("soft", "../a/one.jpg"), ("late", "last.jpg"), ("out", "../../a/one.jpg"), ("self", "self.jpg")
        ):  # fmt: skip
            add(f"b/{name}.jpg", b"", tarfile.SYMTYPE, target)
        add("b/last.jpg", jpeg(2))
    return file.getvalue()


@pytest.mark.parametrize("done", [(), (0, 1)])
def test_a_link_in_a_tar_is_what_it_leads_to(tmp_path: Path, done: tuple[int, ...]) -> None:
    found = read(written(tmp_path / "x.tar", linked_tar("w")), done)
    data = {row["member"]: row["data"] for row in found[:-1] if not row["error_type"]}
    expected = {"./a/one.jpg": 1, "a/hard.jpg": 1, "b/soft.jpg": 1, "b/last.jpg": 2}
    assert data == {name: jpeg(seed) for name, seed in list(expected.items())[len(done) :]}
    assert errors(found) == [(f"b/{name}.jpg", "unsupported") for name in ("late", "out", "self")]


def test_a_link_in_a_gzipped_tar_is_not_followed(tmp_path: Path) -> None:
    found = read(written(tmp_path / "x.tar.gz", linked_tar("w:gz")))
    assert len(errors(found)) == 5
    assert "in a tar that is gzipped: unpack it" in found[1]["error"]


def test_a_link_in_a_zip_is_what_it_leads_to(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, target in (
            ("b/soft.jpg", "../a/one.jpg"), ("b/self.jpg", "self.jpg"), ("b/far.jpg", "/etc/passwd"),
            ("b/folder.jpg", "../a"), ("b/endless.jpg", "x" * 5000),
        ):  # fmt: skip
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
        archive.writestr("a/one.jpg", jpeg(1))
    found = read(tmp_path / "x.zip")
    assert [(row["member"], row["data"]) for row in found[:-1] if not row["error_type"]] == [
        ("b/soft.jpg", jpeg(1)), ("a/one.jpg", jpeg(1)),
    ]  # fmt: skip
    kinds = {"self": "unsupported", "far": "unsupported", "folder": "unsupported", "endless": "too_large"}
    assert errors(found) == [(f"b/{name}.jpg", kind) for name, kind in kinds.items()]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("städte/köln.jpg".encode(), "städte/köln.jpg"),
        ("写真/桜.jpg".encode(), "写真/桜.jpg"),
        ("Köln.jpg".encode("cp437"), "Köln.jpg"),
        ("Köln.jpg".encode("latin-1"), "K÷ln.jpg"),
    ],
)
def test_names_in_a_zip_that_do_not_say_their_encoding(tmp_path: Path, stored: bytes, shown: str) -> None:
    """UTF-8 where they are that, else what the format says."""
    name = "x" * (len(stored) - 4) + ".jpg"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, jpeg(1))
    whole = (tmp_path / "x.zip").read_bytes()
    assert whole.count(name.encode()) == 2
    found = read(written(tmp_path / "x.zip", whole.replace(name.encode(), stored)))
    assert [(row["member"], row["data"]) for row in found[:-1]] == [(shown, jpeg(1))]


@pytest.mark.parametrize("size", [300, 1024, 2500, 4000, 5120])
def test_tar_that_is_cut_off(tmp_path: Path, size: int) -> None:
    members = [(f"{number}.jpg", bytes([number]) * 600) for number in range(9)]  # 512 + 1,024 bytes each
    found = read(written(tmp_path / "x.tar", tar(members)[:size]))
    whole = (size - 512) // 1536 + ((size - 512) % 1536 >= 600) if size > 512 else 0
    assert [row["data"] for row in found[:whole]] == [data for _, data in members[:whole]]
    assert all(kind == "truncated" for _, kind in errors(found))
    assert errors(found)[-1][0] is None
    assert found[-1]["end"]["items"] == len(found) - 1


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8, 0.999])
def test_gzip_that_is_cut_off(tmp_path: Path, share: float) -> None:
    members = [(f"{number}.jpg", jpeg(number, 200, 200)) for number in range(9)]
    data = tar(members, "w:gz")
    found = read(written(tmp_path / "x.tar.gz", data[: int(len(data) * share)]))
    good = [row["data"] for row in found if row["data"] is not None]
    assert good == [content for _, content in members[: len(good)]]
    assert errors(found)[-1] == (None, "truncated")
    assert found[-1]["end"]["items"] == len(found) - 1
    assert len(good) == 9 or len(errors(found)) >= 1


def test_tar_with_a_broken_header(tmp_path: Path) -> None:
    data = bytearray(tar([(f"{number}.jpg", bytes(600)) for number in range(5)]))
    data[2 * 1536 : 2 * 1536 + 512] = b"\xa5" * 512
    *found, broken, end = read(written(tmp_path / "x.tar", bytes(data)))
    assert [row["member"] for row in found] == ["0.jpg", "1.jpg"]
    assert (broken["member"], broken["error_type"]) == (None, "corrupt")
    assert "after 2 members" in broken["error"]
    assert end["end"] == {"items": 3, "ignored": 0, "broken": True}


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A ustar header with any size field."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" * 3 + size + b"00000000000\0" + b" " * 8 + kind)
    block += bytes(512 - len(block))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "hostile",
    [
        header(b"x.jpg", b"\xff" * 11 + b"\x80"),  # negative
        header(b"x.jpg", b"\x80" + b"\xff" * 11),  # beyond any file
        header(b"x.jpg", b"77777777777\0"),  # 8 GiB
        header(b"x.jpg", b"77777777777\0", b"x") + b"1" * 512,  # an extended header of 8 GiB
        header(b"x.jpg", b"77777777777\0", b"L") + b"1" * 512,  # a name of 8 GiB
        header(b"x.jpg", b"00000000010\0", b"x") + b"-5 size=".ljust(512, b"\0"),
    ],
)
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_hostile_headers(tmp_path: Path, hostile: bytes, name: str) -> None:
    data = tar([("good.jpg", b"1")])[:1024] + hostile + bytes(1024)
    found = read(written(tmp_path / name, data if name == "x.tar" else gzip.compress(data)))
    assert found[0]["data"] == b"1"
    assert len(errors(found)) >= 1
    assert found[-1]["end"]["items"] == len(found) - 1


def test_hostile_names_are_only_names(tmp_path: Path) -> None:
    before = set(Path("/").iterdir()) | set(tmp_path.parent.iterdir())
    names = ["/abs.jpg", "../../x.jpg", "a\nb.jpg", "c" * 300 + ".jpg", "d\udcff.jpg"]
    found = read(written(tmp_path / "x.tar", tar([(name, b"1") for name in names])))
    assert [row["member"] for row in found[:-1]] == [*names[:4], "d\\xff.jpg"]
    assert set(Path("/").iterdir()) | set(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize("name", KINDS)
def test_member_that_is_too_large(tmp_path: Path, name: str) -> None:
    members = [("a.jpg", bytes(3 << 20)), ("b.jpg", b"1")]
    found = read(written(tmp_path / name, packed(name, members)))
    assert errors(found) == [("a.jpg", "too_large")]
    assert found[1]["data"] == b"1"


def patched(data: bytes, where: int, value: bytes) -> bytes:
    """A one-member zip with a field changed in its central directory (APPNOTE 4.3.12) and local header."""
    changed = bytearray(data)
    central = data.index(b"PK\1\2")
    changed[central + where : central + where + len(value)] = value
    changed[where - 2 : where - 2 + len(value)] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("where", "value", "error_type"),
    [
        (8, b"\1\0", "unsupported"),  # encrypted
        (10, b"\x63\0", "unsupported"),  # unknown compression
        (16, b"\0\0\0\0", "corrupt"),  # checksum
        (24, struct.pack("<I", 2 << 30), "too_large"),  # claims 2 GiB
        (24, struct.pack("<I", 5), "corrupt"),  # claims less than it holds
    ],
)
def test_zip_members_that_lie(tmp_path: Path, where: int, value: bytes, error_type: str) -> None:
    data = patched(zipped([("a.jpg", jpeg())]), where, value)
    found = read(written(tmp_path / "x.zip", data))
    assert errors(found) == [("a.jpg", error_type)]
    assert found[-1]["end"] == {"items": 1, "ignored": 0, "broken": False}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_zip_member_costs_only_itself(tmp_path: Path, method: int) -> None:
    data = bytearray(zipped([("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))], method))
    data[200:240] = b"\xff" * 40
    found = read(written(tmp_path / "x.zip", bytes(data)))
    assert errors(found) == [("a.jpg", "corrupt")]
    assert found[1]["data"] == jpeg(2)


@pytest.mark.parametrize(
    ("name", "data", "error_type"),
    [
        ("x.zip", zipped([("a.jpg", jpeg())])[:-30], "truncated"),
        ("x.zip", b"", "truncated"),
        ("x.zip", b"junk" * 100, "corrupt"),
        ("x.tar", b"", "truncated"),
        ("x.tar", b"junk" * 300, "corrupt"),
        ("x.tar.gz", b"\x1f\x8b\x08\x00junk" * 100, "corrupt"),
        ("x.tar.gz", gzip.compress(b"junk" * 300, mtime=0), "corrupt"),
    ],
)
def test_no_archive_at_all(tmp_path: Path, name: str, data: bytes, error_type: str) -> None:
    found = read(written(tmp_path / name, data))
    assert errors(found) == [(None, error_type)]
    assert found[0]["image_id"] is not None
    assert found[-1]["end"] == {"items": 1, "ignored": 0, "broken": True}


def test_archive_that_vanished(tmp_path: Path) -> None:
    (source,) = Listing([str(written(tmp_path / "x.tar", tar(MEMBERS)))], STORAGE)
    Path(source.address).unlink()
    rejected, end = pa.concat_tables(read_archive(source, (), STORAGE)).to_pylist()
    assert rejected["error_type"] == "missing"
    assert end["end"] == {"items": 1, "ignored": 0, "broken": True}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
def test_object_store(server: Server, name: str) -> None:
    server.put(f"archives/{name}", packed(name, MEMBERS))
    *found, end = read(server.url(f"archives/{name}"), done={2}, storage=server.storage)
    assert [(row["member_index"], row["member"], row["data"]) for row in found] == [
        item for item in ITEMS if item[0] != 2
    ]
    assert end["end"] == {"items": 6, "ignored": 2, "broken": False}


@pytest.mark.parametrize("fault", [503, "reset", "cut"])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
def test_faults_in_the_middle(
    s3_server: Server, name: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FIRST_BYTES", 4096)
    monkeypatch.setattr(reader, "MOST_BYTES", 16384)
    members = [(f"{number}.jpg", jpeg(number, 120, 80)) for number in range(12)]
    s3_server.put(f"middle/{name}", packed(name, members))
    with failing(s3_server, fault, times=0) as proxy:
        storage = s3_server.storage_at(proxy.endpoint)
        (source,) = Listing([s3_server.url(f"middle/{name}")], storage)
        monkeypatch.setattr(rows, "TABLE_BYTES", 1)
        tables = []
        for number, table in enumerate(read_archive(source, (), storage)):
            tables.append(table)
            proxy.left = 2 if number == 3 else proxy.left
        reads = [line for line in proxy.seen if line.startswith("GET")]
    found = pa.concat_tables(tables).to_pylist()
    assert [(row["member"], row["data"]) for row in found[:-1]] == members
    assert len(reads) * 4096 < 6 * source.size  # resumed, not begun again


def test_fault_that_stays_keeps_what_was_read(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FIRST_BYTES", 4096)
    monkeypatch.setattr(reader, "MOST_BYTES", 4096)
    monkeypatch.setattr(rows, "TABLE_BYTES", 1)
    members = [(f"{number}.jpg", jpeg(number, 120, 80)) for number in range(12)]
    s3_server.put("stays/x.tar", tar(members))
    with failing(s3_server, 503, times=0) as proxy:
        storage = s3_server.storage_at(proxy.endpoint).model_copy(update={"attempts": 2})
        (source,) = Listing([s3_server.url("stays/x.tar")], storage)
        found = []
        for number, table in enumerate(read_archive(source, (), storage)):
            found += table.to_pylist()
            proxy.left = 10**6 if number == 3 else proxy.left
    *good, broken, end = found
    assert 4 <= len(good) < 12
    assert [row["data"] for row in good] == [data for _, data in members[: len(good)]]
    assert (broken["member"], broken["error_type"]) == (None, "storage")
    assert end["end"]["items"] == len(good) + 1
