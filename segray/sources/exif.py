"""Some tags of an EXIF block, straight from its bytes: Pillow's reader takes ten times as long a file.

An EXIF block is a TIFF without pixels (CIPA DC-008, 4.5): a header, a directory of tags, and from there
pointers to the directories Exif and GPS. Bytes may be hostile: what cannot be read is left out.
"""

import struct
from collections.abc import Collection
from typing import Any

Value = str | int | tuple[float, ...]
"""Text without padding; an unsigned integer; rationals, NaN where the denominator is 0."""
Tags = dict[int, Value]

_EXIF, _GPS = 0x8769, 0x8825
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TEXTS, _INTEGERS, _RATIONALS = (1, 2, 7), {3: "H", 4: "I"}, {5: "I", 10: "i"}
"""Field types of TIFF 6.0: BYTE, ASCII, UNDEFINED; SHORT, LONG; RATIONAL, SRATIONAL."""
_LONGEST = 64
"""Maximum number of values of a tag that is read."""


def read_exif(block: bytes, exif: Collection[int], gps: Collection[int]) -> tuple[Tags, Tags]:
    """Return the wanted tags of the directories Exif and GPS; empty where there is none.

    block: of a JPEG, PNG, WebP, AVIF or HEIC, or a whole TIFF below 4 GiB.
    """
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    order = _ORDERS.get(block[:4])
    if order is None:
        return {}, {}
    pointers = _directory(block, order, 4, (_EXIF, _GPS))
    found = [
        _directory(block, order, pointers[pointer], wanted) if pointer in pointers else {}
        for pointer, wanted in ((_EXIF, exif), (_GPS, gps))
    ]
    return found[0], found[1]


def _directory(block: bytes, order: str, pointer: Value, wanted: Collection[int]) -> Tags:
    """Return the wanted tags of a directory; pointer: its offset; 4: that of the first one."""
    found: Tags = {}
    try:
        start: Any = struct.unpack_from(f"{order}I", block, 4)[0] if pointer == 4 else pointer
        (number,) = struct.unpack_from(f"{order}H", block, start)
        entries = struct.Struct(f"{order}HHI")
        for entry in range(start + 2, start + 2 + 12 * number, 12):
            tag, kind, count = entries.unpack_from(block, entry)
            if tag in wanted and tag not in found and 0 < count <= _LONGEST:
                value = _value(block, order, kind, count, entry + 8)
                if value is not None:
                    found[tag] = value
    except (struct.error, TypeError):  # it ends early; a pointer that is none
        pass
    return found


def _value(block: bytes, order: str, kind: int, count: int, place: int) -> Value | None:
    """Return a tag's value; place: of its four bytes, which hold a longer value's offset."""
    try:
        if kind in _INTEGERS:
            return int(struct.unpack_from(order + _INTEGERS[kind], block, place)[0])
        if kind in _TEXTS:
            if count > 4:
                (place,) = struct.unpack_from(f"{order}I", block, place)
            return block[place : place + count].partition(b"\0")[0].decode("ascii", "replace").strip()
        if kind in _RATIONALS:
            (place,) = struct.unpack_from(f"{order}I", block, place)
            parts = struct.unpack_from(f"{order}{2 * count}{_RATIONALS[kind]}", block, place)
            return tuple(
                top / bottom if bottom else float("nan")
                for top, bottom in zip(parts[::2], parts[1::2], strict=True)
            )
    except struct.error:
        pass
    return None
