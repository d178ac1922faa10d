"""Determine a file's format by its first bytes, and whether it ends before its own structure says.

Used to explain a failure, never to decide one: only the decoder decides whether a file can be read.
"""

import struct
import zlib
from collections.abc import Callable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "AVIF")
"""Pillow's names of the formats we read (MPO is read as JPEG); no other format is ever opened, except
HEIF where the extra `heic` is installed."""

_OURS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
_OTHERS = (
    (b"\0\0\1\0", "Windows icon (ICO)"),
    (b"\0\0\2\0", "Windows cursor (CUR)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"P1", "PBM"), (b"P2", "PGM"), (b"P3", "PPM"), (b"P4", "PBM"), (b"P5", "PGM"), (b"P6", "PPM"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS texture"),
    (b"icns", "Apple icon (ICNS)"),
    (b"qoif", "QOI"),
    (b"\x89HDF", "HDF5"),
    (b"PK\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip file"),
    (b"\x5c\1\0\0", "NIfTI"),  # 348, the size of its header
    (b"\x1c\2\0\0", "NIfTI"),  # 540: version 2
    (b"BZh", "bzip2 file"),
    (b"\xfd7zXZ\0", "xz file"),
    (b"(\xb5/\xfd", "Zstandard file"),
    (b"7z\xbc\xaf'\x1c", "7-Zip archive"),
    (b"Rar!\x1a\x07", "RAR archive"),
    (b"PAR1", "Parquet file"),
    (b"\0\5\x16\7", "AppleDouble, what macOS keeps next to a file,"),
    (b"\0\5\x16\0", "AppleSingle"),
)  # fmt: skip
_TEXTS = (
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull` where it comes from)"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<!doctype", "HTML"), (b"<html", "HTML"), (b"<head", "HTML"), (b"<!--", "HTML or XML"),
    (b'{"', "JSON"), (b"{\n", "JSON"), (b"{ ", "JSON"), (b"{\r", "JSON"), (b"[{", "JSON"), (b"{}", "JSON"),
    (b"%yaml", "YAML"),
)  # fmt: skip
"""In lower case, after a byte order mark and blanks: web pages and server errors under an image's name."""
_BLANK = b"\xef\xbb\xbf \t\r\n"
_PNG_FRAMES = (b"acTL", b"fcTL", b"fdAT")
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
}


def describe_signature(data: bytes) -> tuple[str, bool]:
    """Return (name of the format, whether we read it); an empty name where the first bytes are unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP", True
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        name = _BRANDS[data[8:12]]
        return name, name == "AVIF" or b"avif" in data[8:64]
    for known, table in ((True, _OURS), (False, _OTHERS)):
        for magic, name in table:
            if data.startswith(magic):
                return name, known
    text = data[:1024].lstrip(_BLANK)[:32].lower()
    return next((name for start, name in _TEXTS if text.startswith(start)), ""), False


def png_without_metadata(data: bytes) -> bytes | None:
    """Return a PNG with only the chunks that its pixels, frames and orientation need; None if it has no
    others.

    PNG 3rd edition, 5.3: the first letter of a chunk that a decoder must understand is a capital one.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        if kind[:1].isupper() or kind in _PNG_FRAMES or (kind == b"eXIf" and _is_whole(chunk)):
            kept.append(chunk)
        position += len(chunk)
    kept.append(data[position:])
    bare = b"".join(kept)
    return None if len(bare) == len(data) else bare


def _is_whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a WebP's canvas from its first chunk (RFC 9649); None for other formats."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return (width & 0x3FFF, height & 0x3FFF) if chunk == b"VP8 " else None


def ends_early(data: bytes, form: str) -> bool:
    """Return whether a file of the format `form` stops before its own markers, sizes or offsets say."""
    check = _ENDINGS.get(form)
    try:
        return check is not None and check(data)
    except (struct.error, IndexError, OverflowError):  # the data would be beyond the end
        return True


def _jpeg_ends_early(data: bytes) -> bool:
    return not data.rstrip(b"\0").endswith(b"\xff\xd9")


def _png_ends_early(data: bytes) -> bool:
    position = 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IEND":
            return False
        if not data[position + 4 : position + 8].isalpha():
            return False  # not cut off: something else stands here
        position += 12 + length
    return True


def _webp_ends_early(data: bytes) -> bool:
    return bool(8 + struct.unpack_from("<I", data, 4)[0] > len(data))


def _gif_ends_early(data: bytes) -> bool:
    return not data.rstrip(b"\0").endswith(b";")


def _bmp_ends_early(data: bytes) -> bool:
    (claimed,) = struct.unpack_from("<I", data, 2)
    return bool(claimed > len(data))


def _boxes_end_early(data: bytes) -> bool:
    """Check ISO base media boxes (ISO/IEC 14496-12, also JP2): each begins with its size and type."""
    if not data.startswith(b"\xff\x4f\xff\x51"):
        position = 0
        while position < len(data):
            (size,) = struct.unpack_from(">I", data, position)
            if size == 1:
                (size,) = struct.unpack_from(">Q", data, position + 8)
            if size == 0:
                break
            if size < 8:
                return False
            position += size
        if position > len(data):
            return True
        if b"ftypavi" in data[:16] or position == len(data):
            return False
    return not data.endswith(b"\xff\xd9")  # end of a JPEG 2000 codestream


def _tiff_ends_early(data: bytes) -> bool:
    """Return whether the first directory, or the strips or tiles it points to, lie beyond the end."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, position)
    first, width = position + (8 if big else 2), 20 if big else 12
    if first + count * width > len(data):
        return True
    tags = {}
    for entry in range(first, first + count * width, width):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
        tags[tag] = (kind, number, entry + (12 if big else 8))
    return any(
        _tiff_blocks_end_early(data, order, big, tags, starts, sizes)
        for starts, sizes in ((273, 279), (324, 325))
    )


def _tiff_blocks_end_early(
    data: bytes, order: str, big: bool, tags: dict[int, tuple[int, int, int]], starts: int, sizes: int
) -> bool:
    if starts not in tags or sizes not in tags:
        return False
    values = []
    for kind, number, place in (tags[starts], tags[sizes]):
        letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if letter is None:
            return False
        if struct.calcsize(letter) * number > (8 if big else 4):
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
        values.append(struct.unpack_from(f"{order}{number}{letter}", data, place))
    return any(start + size > len(data) for start, size in zip(*values, strict=False))


_ENDINGS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": _jpeg_ends_early,
    "PNG": _png_ends_early,
    "WebP": _webp_ends_early,
    "GIF": _gif_ends_early,
    "BMP": _bmp_ends_early,
    "TIFF": _tiff_ends_early,
    "JPEG 2000": _boxes_end_early,
    "AVIF": _boxes_end_early,
}
