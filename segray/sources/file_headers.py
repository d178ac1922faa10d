"""What a file's name and first bytes tell: whether it may be a scene, and whether Pillow or GDAL reads it."""

import struct
from collections.abc import Iterator

from PIL.TiffImagePlugin import COMPRESSION_INFO

from segray.errors import ItemError
from segray.sources.item import Source

_SUFFIXES = (".tif", ".tiff", ".gtiff", ".jp2", ".j2k")
_PLACE_TAGS = (33922, 34264, 34735, 50844)
"""ModelTiepoint, ModelTransformation, GeoKeyDirectory (OGC GeoTIFF 1.1), RPCCoefficient."""
_JP2 = b"\0\0\0\x0cjP  "
_PLACE_BOXES = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.data")
"""GeoJP2's UUID; GML in JPEG 2000 (OGC 08-085r8)."""
_HEAD_BYTES = 1 << 16
"""Boxes that hold a georeference precede the codestream."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLES, _COMPRESSION = 277, 259
_FOR_GDAL = (34887, 50000, 50001)
"""LERC, Zstandard and WebP within TIFF: Pillow reports unknown compressions as damage."""


def has_scene_name(source: Source) -> bool:
    """Return whether a source's name has a suffix of scenes."""
    return source.uri.lower().endswith(_SUFFIXES)


def may_be_scene(data: memoryview) -> bool:
    """Return whether the first directory of a TIFF has a tag of a georeference (control points, RPCs), or
    JPEG 2000 a box.

    All other files are images; GDAL opens them only where Pillow does not know their format.
    """
    if bytes(data[:8]) == _JP2:
        start = bytes(data[:_HEAD_BYTES])
        return any(box in start for box in _PLACE_BOXES)
    try:
        return any(tag in _PLACE_TAGS for tag, _ in _tags(data))
    except (struct.error, OverflowError):  # an offset beyond any file
        return False


def is_for_gdal(data: memoryview, error: ItemError) -> bool:
    """Return whether Pillow refused a sound image that GDAL may read: its bands, depth or compression."""
    if bytes(data[:8]) == _JP2:
        header = bytes(data[:_HEAD_BYTES]).partition(b"ihdr")[2]  # height, width, components, bits less one
        return error.error_type in ("unsupported", "corrupt") and len(header) > 10 and header[10] & 0x7F > 7
    if bytes(data[:4]) not in _TIFF:
        return False
    try:
        tags = dict(_tags(data))
    except (struct.error, OverflowError):
        return False
    compression = tags.get(_COMPRESSION, 1)
    odd = tags.get(_SAMPLES, 1) > 4 or compression in _FOR_GDAL or compression not in COMPRESSION_INFO
    return error.error_type == "unsupported" or (error.error_type == "corrupt" and odd)


def _tags(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield (number, first value) of each tag; the value is meaningless unless it has 16 bits."""
    if bytes(data[:4]) not in _TIFF:
        return
    order = "<" if bytes(data[:1]) == b"I" else ">"
    big = b"+" in bytes(data[2:4])
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, position)
    first, width = position + (8 if big else 2), 20 if big else 12
    for entry in range(first, first + min(count, 4096) * width, width):
        (tag,) = struct.unpack_from(order + "H", data, entry)
        (value,) = struct.unpack_from(order + "H", data, entry + (12 if big else 8))
        yield tag, value
