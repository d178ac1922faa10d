"""Archives made to hurt: bombs, chains of headers, shared bytes, damage that looks like an end."""

import gzip
import io
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from segray.sources.archives import read_archive
from segray.sources.listing import Listing
from tests.sources.footprint import Footprint
from tests.sources.pictures import encoded, jpeg, picture
from tests.sources.test_archives import STORAGE, errors, header, read, tar, written, zipped

GOOD = tar([("good.jpg", b"1")])[:1024]
END = bytes(1024)


def extended(kind: bytes, content: bytes) -> bytes:
    """A PAX (`x`, `g`) or GNU (`L`) header with its content, padded to whole blocks."""
    return header(b"h", b"%011o\0" % len(content), kind) + content + bytes(-len(content) % 512)


def record(name: bytes, value: bytes) -> bytes:
    """A PAX record, whose length counts its own digits (POSIX pax, 4.18)."""
    rest = len(name) + len(value) + 3
    size = next(rest + digits for digits in range(1, 9) if len(str(rest + digits)) == digits)
    return b"%d %s=%s\n" % (size, name, value)


def old_sparse(blocks: int) -> bytes:
    """A GNU sparse member whose map goes on for `blocks` blocks."""
    first = bytearray(header(b"s.jpg", b"00000001000\0", b"S"))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    return bytes(first) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * blocks


def new_sparse(holes: int) -> bytes:
    """A PAX 1.0 sparse member whose map claims more entries than any file has."""
    records = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
    return extended(b"x", records) + header(b"s.jpg", b"00000001000\0") + b"999999999999\n" + b"0\n" * holes


LONG = b"n" * 500_000
CHAINS = {
    "PAX headers": extended(b"x", record(b"a", b"b")) * 2000,
    "GNU names": extended(b"L", b"name\0") * 2000,
    "large PAX headers": extended(b"x", record(b"a", LONG)) * 100,
    "global headers": b"".join(extended(b"g", record(b"%d" % n, LONG[:1000])) + GOOD for n in range(2000)),
    "GNU sparse map": old_sparse(20_000),
    "PAX sparse map": new_sparse(10 << 20),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_headers_without_end(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "x.tar.gz", gzip.compress(GOOD + CHAINS[kind] + GOOD + END, 1))
    before, start = Footprint(), time.monotonic()
    found = read(path)
    assert before.peak < before.resident + (60 << 20)
    assert time.monotonic() - start < 10
    assert found[0]["data"] == b"1"
    assert errors(found) == [(None, "corrupt")]
    assert "broken header" in found[-2]["error"]


def test_names_of_half_a_megabyte(tmp_path: Path) -> None:
    members = [
        extended(b"x", record(b"path", b"%d" % (n // 2) + LONG + b".jpg")) + header(b"q", b"00000000000\0")
        for n in range(100)
    ]
    path = written(tmp_path / "x.tar.gz", gzip.compress(b"".join(members) + END, 1))
    before = Footprint()
    *found, end = read(path)
    assert before.peak < before.resident + (30 << 20)
    assert end["end"] == {"items": 100, "ignored": 0, "broken": False}
    assert len({row["image_id"] for row in found}) == 100
    assert max(len(row["member"]) for row in found) < 5000


def test_sparse_members_cost_only_themselves(tmp_path: Path) -> None:
    records = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
    sparse = extended(b"x", records) + header(b"s.jpg", b"00000001000\0") + b"1\n0\n5\n".ljust(512, b"\0")
    found = read(written(tmp_path / "x.tar", GOOD + sparse + GOOD + END))
    assert errors(found) == [("s.jpg", "unsupported")]
    assert "sparse" in found[1]["error"]
    assert found[2]["data"] == b"1"


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize(
    ("behind", "items", "broken"),
    [
        (END, 1, None),
        (bytes(512), 1, None),  # half an end mark, and nothing behind it
        (bytes(100_000), 1, None),  # the padding of a tape
        (END + GOOD + END, 2, None),  # `cat a.tar b.tar`
        (END * 300 + GOOD + GOOD + END, 3, None),
        (bytes(512) + GOOD + END, 2, "block of zeros"),  # a header was wiped out
        (bytes(4096) + b"x" * 512 + END, 2, "end mark"),  # a page of the file was
        (END + b"junk", 2, "inside a header|end mark"),
    ],
)
def test_what_follows_the_end_mark(
    tmp_path: Path, name: str, behind: bytes, items: int, broken: str | None
) -> None:
    data = GOOD + behind
    *found, end = read(written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data))
    assert end["end"] == {"items": items, "ignored": 0, "broken": broken is not None}
    if broken is None:
        assert [row["data"] for row in found] == [b"1"] * items
    else:
        assert errors(found)[-1][0] is None
        assert any(words in found[-1]["error"] for words in broken.split("|"))


def test_gzip_whose_checksum_is_wrong(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(GOOD + END))
    data[-8] ^= 1
    found = read(written(tmp_path / "x.tar.gz", bytes(data)))
    assert errors(found) == [(None, "corrupt")]
    assert found[0]["data"] == b"1"


def zeros(gigabytes: int) -> bytes:
    """Raw deflate data of that many GiB of zeros: one block of 1 MiB, a thousand times and more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (gigabytes << 10) + packer.flush()


def bomb(file_size: int, packed: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip whose first member says that `packed` becomes `file_size` bytes; a good one follows it."""
    data = bytearray(zipped([("bomb.bmp", packed), ("good.jpg", b"1")], zipfile.ZIP_STORED))
    for place, offset in ((0, 8), (data.index(b"PK\1\2"), 10)):
        struct.pack_into("<H", data, place + offset, method)
        struct.pack_into("<I", data, place + offset + 14, file_size)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error_type"),
    [
        (bomb(0xFFFF_FFFE, zeros(10)), "too_large"),  # what it says is enough
        (bomb(500, zeros(10)), "corrupt"),  # its checksum: no more than it says is ever inflated
        (bomb(12 << 20, zeros(10)), "corrupt"),
        (bomb(900 << 20, b"BZh9" + bytes(99), zipfile.ZIP_BZIP2), "too_large"),
        (bomb(15 << 20, bytes(200), zipfile.ZIP_LZMA), "corrupt"),
        (bomb(15 << 20, b"\x09\x14\x05\0\x5d\xff\xff\xff\xff" + bytes(200), zipfile.ZIP_LZMA), "corrupt"),
    ],
    ids=["honest", "small", "larger", "bzip2", "lzma", "lzma with a dictionary of 4 GiB"],
)
def test_zip_bombs(tmp_path: Path, data: bytes, error_type: str) -> None:
    path = written(tmp_path / "x.zip", data)
    before, start = Footprint(), time.monotonic()
    found = read(path, max_bytes=1 << 30)
    assert before.peak < before.resident + (80 << 20)
    assert time.monotonic() - start < 5
    assert errors(found) == [("bomb.bmp", error_type)]
    assert found[1]["data"] == b"1"


def test_tar_bomb(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as packed:
        packed.write(header(b"bomb.bmp", b"%011o\0" % (1 << 29)))
        for _ in range(512):
            packed.write(bytes(1 << 20))
        packed.write(GOOD + END)
    path = written(tmp_path / "x.tar.gz", raw.getvalue())
    before = Footprint()
    found = read(path)
    assert before.peak < before.resident + (30 << 20)
    assert errors(found) == [("bomb.bmp", "too_large")]
    assert found[1]["data"] == b"1"


def test_zip_members_that_share_their_bytes(tmp_path: Path) -> None:
    """As in Fifield's bomb ("A better zip bomb", 2019): many names for one kernel."""
    one = zipped([("a.jpg", bytes(1 << 20))], zipfile.ZIP_STORED)
    start, end = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    entries = one[start:end] * 2000
    record = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2000, 2000, len(entries), start, 0)
    before = time.monotonic()
    found = read(written(tmp_path / "x.zip", one[:start] + entries + record))
    assert time.monotonic() - before < 10
    assert found[-1]["end"] == {"items": 2000, "ignored": 0, "broken": False}
    assert {kind for _, kind in errors(found)} == {"too_large"}
    assert 1 <= 2000 - len(errors(found)) <= 4
    assert "share their bytes" in found[-2]["error"]
    first, *_ = found
    assert first["error_type"] is None
    resumed = read(tmp_path / "x.zip", done={first["member_index"]})
    assert errors(resumed) == errors(found)


def test_a_zip_entry_that_claims_too_many_bytes_costs_itself(tmp_path: Path) -> None:
    data = bytearray(zipped([(f"{name}.jpg", name.encode()) for name in "abc"], zipfile.ZIP_STORED))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 20, 2 << 30)  # its compressed size, APPNOTE 4.3.12
    found = read(written(tmp_path / "x.zip", bytes(data)))
    assert errors(found) == [("a.jpg", "corrupt")]
    assert [row["data"] for row in found[1:3]] == [b"b", b"c"]


def test_nested_archives_are_named_not_opened(tmp_path: Path) -> None:
    inner = zipped([("a.jpg", jpeg())])
    members = [
        ("in.zip", inner),
        ("in.tar", tar([("a.jpg", jpeg())])),
        ("in.csv", b"uri\na.jpg\n"),
        ("a.jpg", jpeg()),
    ]
    for name, data in (("x.zip", zipped(members)), ("x.tar", tar(members))):
        found = read(written(tmp_path / name, data))
        assert [row["member"] for row in found] == ["in.zip", "in.tar", "a.jpg", None]
        assert [row["error_type"] for row in found] == ["unsupported", "unsupported", None, None]
        assert found[-1]["end"] == {"items": 3, "ignored": 1, "broken": False}


def test_zip64_and_names_in_other_encodings(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("é.jpg", "日本.jpg", "a\nb.jpg", "../c.jpg", "d\x01.jpg"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(b"1")
    data = file.getvalue().replace("é.jpg".encode(), b"\x82\xa0.jpg"[:6])
    flags = data.index(b"PK\1\2") + 8
    data = data[:6] + b"\0\0" + data[8:flags] + b"\0\0" + data[flags + 2 :]  # no longer said to be UTF-8
    *found, _ = read(written(tmp_path / "x.zip", data))
    assert [row["member"] for row in found] == ["éá.jpg", "日本.jpg", "a\nb.jpg", "../c.jpg", "d\x01.jpg"]
    assert [row["data"] for row in found] == [b"1"] * 5


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip.tar": (lambda: zipped([("a.jpg", jpeg())]), "zip archive"),
    "jpeg.tar": (lambda: jpeg(1, 100, 100), "JPEG"),
    "jpeg.zip": (jpeg, "JPEG"),
    "png.tar.gz": (lambda: encoded(picture(), "PNG"), "PNG"),
    "gzip.zip": (lambda: gzip.compress(b"1"), "gzip"),
    "page.zip": (lambda: b"<!DOCTYPE html><html>404</html>", "HTML"),
    "page.tar.gz": (lambda: gzip.compress(b"<!DOCTYPE html><html>404</html>" * 50), "HTML"),
    "xz.tar": (lambda: b"\xfd7zXZ\0" + bytes(range(256)) * 4, "xz"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_suffix_is_told(tmp_path: Path, name: str) -> None:
    make, form = WRONG[name]
    found = read(written(tmp_path / name, make()))
    assert errors(found) == [(None, "corrupt")]
    assert form in found[0]["error"]
    assert found[-1]["end"] == {"items": 1, "ignored": 0, "broken": True}


def test_tar_of_1979_whose_name_begins_like_a_picture(tmp_path: Path) -> None:
    data = header(b"P1.jpg", b"00000000001\0") + b"x".ljust(512, b"\0") + END
    assert read(written(tmp_path / "x.tar", data))[0]["data"] == b"x"


def test_very_many_tiny_members(tmp_path: Path, fuzz_files: int) -> None:
    number = min(100_000, 20 * fuzz_files)
    content = b"x".ljust(512, b"\0")
    with (tmp_path / "x.tar").open("wb") as file:
        file.writelines(header(b"%06d.jpg" % n, b"00000000001\0") + content for n in range(number))
        file.write(END)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for index in range(number):
            archive.writestr(f"{index:06d}.jpg", b"x")
    for name in ("x.tar", "x.zip"):
        (source,) = Listing([str(tmp_path / name)], STORAGE)
        before = Footprint()
        assert sum(table.num_rows for table in read_archive(source, (), STORAGE)) == number + 1
        assert before.peak < before.resident + (30 << 20) + number * (1500 if name == "x.zip" else 300)


def test_gzip_that_breaks_inside_a_member(tmp_path: Path) -> None:
    data = tar([("a.jpg", b"1"), ("b.jpg", jpeg(1, 100, 100))])
    parts = [bytearray(gzip.compress(each)) for each in (data[:3000], data[3000:])]
    parts[0][-8] ^= 1  # the checksum of what was packed first
    found = read(written(tmp_path / "x.tar.gz", b"".join(parts)))
    assert found[0]["data"] == b"1"
    assert errors(found) == [(None, "corrupt")]
    assert "gzip" in found[1]["error"]
