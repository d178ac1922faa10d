"""Seeded damage to files: blind (bits, runs, tails, splices) and with knowledge of what each header says."""

import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence

Mutation = Callable[[bytearray, random.Random], None]

_EDGES = (0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 24, (1 << 31) - 1, 1 << 31)
"""Numbers at which sizes and counts go wrong; all bits set is the last value of each width."""


def mutate(data: bytes, others: Sequence[bytes], draw: random.Random) -> tuple[str, bytes]:
    """(names of the mutations, the damaged file): one to three of them, blind or of its own format."""
    names, changed = [], bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        known = _lies_of(changed)
        pool = {**_BLIND, **known} if draw.random() < 0.5 else known or _BLIND
        name = draw.choice(sorted(pool))
        pool[name](changed, draw)
        names.append(name)
    if draw.random() < 0.1:
        other = draw.choice(others)
        changed[draw.randrange(len(changed) + 1) :] = other[draw.randrange(len(other) + 1) :]
        names.append("splice")
    if draw.random() < 0.7:
        _mend_checksums(changed)
    return "+".join(names), bytes(changed)


def _flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 3, 30)) if data else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _overwrite_run(data: bytearray, draw: random.Random) -> None:
    start, length = _run(data, draw)
    filler = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    data[start : start + length] = filler[: len(data) - start]


def _cut_tail(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _cut_middle(data: bytearray, draw: random.Random) -> None:
    start, length = _run(data, draw)
    del data[start : start + length]


def _double_chunk(data: bytearray, draw: random.Random) -> None:
    start, length = _run(data, draw)
    data[start:start] = data[start : start + length]


def _insert_junk(data: bytearray, draw: random.Random) -> None:
    start, length = _run(data, draw)
    data[start:start] = draw.randbytes(length)


def _lie_near_the_start(data: bytearray, draw: random.Random) -> None:
    _put(data, draw.randrange(min(len(data), 256) + 1), draw.choice("<>") + draw.choice("BHIQ"), draw)


def _run(data: bytearray, draw: random.Random) -> tuple[int, int]:
    """(start, length) of a stretch; short ones are as likely as long ones."""
    return draw.randrange(len(data) + 1), 1 + int(len(data) ** draw.random())


def _put(data: bytearray, place: int, form: str, draw: random.Random) -> None:
    """A number of struct's `form` at `place`: an edge, all ones, or anything; nothing behind the end."""
    width = struct.calcsize(form)
    value = draw.choice((*_EDGES, -1, draw.getrandbits(8), draw.getrandbits(64)))
    if 0 <= place <= len(data) - width:
        struct.pack_into(form, data, place, value & (1 << 8 * width) - 1)


def _places(data: bytes | bytearray, mark: bytes) -> list[int]:
    """Where `mark` occurs, at most a hundred times."""
    found, place = list[int](), data.find(mark)
    while place >= 0 and len(found) < 100:
        found.append(place)
        place = data.find(mark, place + 1)
    return found


def _field(mark: bytes, *fields: tuple[int, str]) -> Mutation:
    """A lie in one of the (offset from an occurrence of `mark`, struct form) fields."""

    def lie(data: bytearray, draw: random.Random) -> None:
        places = _places(data, mark)
        if places:
            offset, form = draw.choice(fields)
            _put(data, draw.choice(places) + offset, form, draw)

    return lie


def _jpeg_size(data: bytearray, draw: random.Random) -> None:
    """Precision, height, width, components or sampling of a frame header (ITU T.81, B.2.2)."""
    marks = [place for kind in b"\xc0\xc1\xc2" for place in _places(data, b"\xff" + bytes([kind]))]
    if marks:
        offset, form = draw.choice(
            ((2, ">H"), (4, "B"), (5, ">H"), (7, ">H"), (9, "B"), (11, "B"), (14, "B"))
        )
        _put(data, draw.choice(marks) + offset, form, draw)


def _jpeg_segment(data: bytearray, draw: random.Random) -> None:
    """Length or first byte of any segment: tables, scans, restart intervals, EXIF."""
    _field(b"\xff" + draw.choice((b"\xdb", b"\xc4", b"\xda", b"\xdd", b"\xe1")), (2, ">H"), (4, "B"))(
        data, draw
    )


def _tiff_tag(data: bytearray, draw: random.Random) -> None:
    """Id, type, count or value of an entry of a TIFF directory; also of the EXIF block of another format."""
    start = max(0, data.find(b"Exif\0\0") + 6) if bytes(data[:2]) not in (b"II", b"MM") else 0
    order = "<" if data[start : start + 2] == b"II" else ">"
    big = bytes(data[start + 2 : start + 4]) in (b"+\0", b"\0+")
    try:
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + (8 if big else 4))
        (count,) = struct.unpack_from(order + "H", data, start + first)
    except struct.error:
        return
    width, head = (20, 8) if big else (12, 2)
    entry = start + first + head + width * draw.randrange(min(count, 60) + 1)
    fields = (
        ((0, "H"), (2, "H"), (4, "Q"), (12, "Q"), (12, "H"))
        if big
        else ((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H"))
    )
    offset, form = draw.choice(fields)
    _put(data, entry + offset, order + form, draw)


def _orientation(data: bytearray, draw: random.Random) -> None:
    """The value of the EXIF tag 274, in either byte order: 0, 9 and 65,535 have no meaning."""
    for mark, form in ((b"\x12\x01\x03\x00", "<H"), (b"\x01\x12\x00\x03", ">H")):
        for place in _places(data, mark):
            if place + 10 <= len(data):
                struct.pack_into(form, data, place + 8, draw.choice((0, 1, 5, 6, 8, 9, 255, 65535)))


def _tar_field(data: bytearray, draw: random.Random) -> None:
    """Size, type, name, link or magic of one header (POSIX ustar); its checksum is mended."""
    headers = [place - 257 for place in _places(data, b"ustar")]
    if not headers:
        return
    start = draw.choice(headers)
    values = (b"77777777777\0", b"00000000000\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0")
    for place, value in draw.sample(
        (
            (124, draw.choice((*values, b"%011o\0" % draw.getrandbits(draw.randrange(34))))),
            (156, bytes([draw.choice(b"0123456789xgLKSVADM\0")])),
            (draw.randrange(100), draw.randbytes(4)),
            (draw.randrange(345, 500), draw.randbytes(4)),
            (257, draw.choice((b"ustar  \0", b"ustar\x0000"))),
            (482, b"\1"),  # more sparse headers follow
        ),
        draw.choice((1, 1, 2)),
    ):
        data[start + place : start + place + len(value)] = value


def _zip_field(data: bytearray, draw: random.Random) -> None:
    """Any number of a local header, a directory entry or an end record (APPNOTE 4.3)."""
    mark, last = draw.choice(
        ((b"PK\3\4", 28), (b"PK\1\2", 44), (b"PK\5\6", 20), (b"PK\6\6", 54), (b"PK\6\7", 18))
    )
    _field(mark, *((place, form) for place in range(4, last, 2) for form in ("<H", "<I")))(data, draw)


def _mend_checksums(data: bytearray) -> None:
    """PNG chunks and tar headers, or no lie would get past the first check."""
    if data[:4] == b"\x89PNG":
        place = 8
        while place + 12 <= len(data):
            (length,) = struct.unpack_from(">I", data, place)
            if place + 12 + length > len(data):
                break
            struct.pack_into(">I", data, place + 8 + length, zlib.crc32(data[place + 4 : place + 8 + length]))
            place += 12 + length
    for start in (place - 257 for place in _places(data, b"ustar") if place >= 257):
        block = data[start : start + 512]
        if len(block) == 512:
            data[start + 148 : start + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]  # type: ignore[attr-defined]


_BLIND: dict[str, Mutation] = {
    "flip bits": _flip_bits,
    "overwrite run": _overwrite_run,
    "cut tail": _cut_tail,
    "cut middle": _cut_middle,
    "double chunk": _double_chunk,
    "insert junk": _insert_junk,
    "lie near the start": _lie_near_the_start,
}
_EXIF: dict[str, Mutation] = {"exif tag": _tiff_tag, "orientation": _orientation}
_LIES: tuple[tuple[int, bytes, dict[str, Mutation]], ...] = (
    (0, b"\xff\xd8", {"jpeg frame": _jpeg_size, "jpeg segment": _jpeg_segment, **_EXIF}),
    (
        0,
        b"\x89PNG",
        {
            "png header": _field(b"IHDR", (4, ">I"), (8, ">I"), (12, "B"), (13, "B"), (14, "B"), (16, "B")),
            "png length": _field(b"IDAT", (-4, ">I")),
            "png palette": _field(b"PLTE", (-4, ">I"), (0, ">I")),
            "png animation": _field(b"acTL", (4, ">I"), (8, ">I")),
            "png frame": _field(b"fcTL", (8, ">I"), (12, ">I"), (16, ">I"), (28, "B")),
        },
    ),
    (0, b"II", {"tiff tag": _tiff_tag, "orientation": _orientation}),
    (0, b"MM", {"tiff tag": _tiff_tag, "orientation": _orientation}),
    (
        8,
        b"WEBP",
        {
            "webp size": _field(b"RIFF", (4, "<I")),
            "webp canvas": _field(b"VP8X", (4, "<I"), (8, "B"), (12, "<I"), (14, "<I")),
            "webp lossy": _field(b"VP8 ", (4, "<I"), (8, "<I"), (14, "<H"), (16, "<H")),
            "webp lossless": _field(b"VP8L", (4, "<I"), (9, "<I")),
            "webp frame": _field(b"ANMF", (4, "<I"), (8, "<I"), (14, "<I")),
            **_EXIF,
        },
    ),
    (
        0,
        b"BM",
        {
            "bmp header": _field(
                b"BM",
                (2, "<I"),
                (10, "<I"),
                (14, "<I"),
                (18, "<I"),
                (22, "<I"),
                (28, "<H"),
                (30, "<I"),
                (46, "<I"),
            )
        },
    ),
    (
        0,
        b"GIF8",
        {
            "gif screen": _field(b"GIF8", (6, "<H"), (8, "<H"), (10, "B")),
            "gif frame": _field(b"\x2c", (1, "<H"), (3, "<H"), (5, "<H"), (7, "<H"), (9, "B"), (10, "B")),
        },
    ),
    (
        4,
        b"jP  ",
        {
            "jp2 box": _field(b"jp2", (-4, ">I"), (0, ">I")),
            "jp2 header": _field(b"ihdr", (-4, ">I"), (4, ">I"), (8, ">I"), (12, ">H"), (14, "B")),
            "jp2 size": _field(
                b"\xff\x51", *((place, ">I") for place in range(6, 38, 4)), (38, ">H"), (41, "B")
            ),
            "jp2 tile": _field(b"\xff\x90", (4, ">H"), (6, ">I"), (10, "B")),
            "jp2 coding": _field(b"\xff\x52", *((place, "B") for place in range(4, 14))),
        },
    ),
    (
        4,
        b"ftyp",
        {
            f"avif {kind.decode()}": _field(kind, (-4, ">I"), *((place, ">I") for place in range(4, 20, 4)))
            for kind in (b"ispe", b"iloc", b"ipma", b"ipco", b"iinf", b"meta", b"av1C", b"pixi", b"mdat")
        },
    ),
    (0, b"PK", {"zip field": _zip_field}),
    (257, b"ustar", {"tar field": _tar_field}),
)


def _lies_of(data: bytearray) -> dict[str, Mutation]:
    """The mutations that know the format of `data`; none where no format is recognised."""
    return next((lies for place, magic, lies in _LIES if data[place : place + len(magic)] == magic), {})
