"""Zip archives through their central directory: only the ranges of requested members are read."""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import SEEK_END, BytesIO
from typing import IO, cast

from segray.errors import ItemError
from segray.sources.member import LONGEST_PATH, Member, check_start, link_target, no_target, too_large

_PIECE_BYTES = 1 << 20
_PARSER_ERRORS = (ValueError, KeyError, IndexError, OverflowError, struct.error)
"""What Python's parser raises for hostile numbers besides its own errors."""
_MOST_READS = 2
"""How many times the zip's size all members may claim in total; members that do not overlap claim it once.
By claims, not by reads, so that a resumed read refuses the same members. Their headers may be wrong too:
reads end at twice this."""
_MOST_RATIO = 1100
"""Deflate reaches 1,032; bzip2 and LZMA expand a few bytes to gigabytes."""
_ANY_RATIO_BYTES = 16 << 20
_ENCRYPTED, _UTF8 = 0x1, 0x800  # general purpose bit flag, APPNOTE 4.4.4


def zip_members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the members in the order of the central directory.

    Raises ItemError `truncated` or `corrupt` where the directory cannot be read, and the storage's errors.
    """
    counted = _CountingReader(stream)
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], counted))
    except (zipfile.BadZipFile, NotImplementedError, *_PARSER_ERRORS) as error:
        raise _directory_error(stream, error) from error
    counted.size = stream.seek(0, SEEK_END)
    counted.left = 2 * _MOST_READS * counted.size
    claimed = 0
    for index, info in enumerate(archive.infolist()):
        if not info.is_dir():
            claimed += info.compress_size if _is_inside(info, counted.size) else 0
            yield _member(archive, info, index, counted, claimed > _MOST_READS * counted.size)


class _CountingReader:
    """The file with a read budget: members that share bytes would make a zip yield more than it holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = self.left = 0
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        return data


def _directory_error(stream: IO[bytes], error: Exception) -> ItemError:
    stream.seek(0)
    start = stream.read(64)
    if start.startswith(b"PK\3\4"):
        if "not a zip file" in str(error):
            return ItemError("truncated", "the zip ends without its directory")
    else:
        check_start("zip", start)
    return ItemError("corrupt", f"no zip directory can be read ({error})")


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, index: int, counted: _CountingReader, overlaps: bool
) -> Member:
    def read(max_bytes: int) -> bytes | ItemError:
        if _is_link(info):
            return _linked(archive, info, counted, overlaps, max_bytes)
        return _read(archive, info, counted, overlaps, max_bytes)

    return Member(index, _name(info), info.file_size, read)


def _read(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, counted: _CountingReader, overlaps: bool, max_bytes: int
) -> bytes | ItemError:
    refusal = _refusal(info, counted, overlaps, max_bytes)
    if refusal is not None:
        return refusal
    try:
        return _inflate(archive, info, max_bytes)
    except NotImplementedError as error:
        return ItemError("unsupported", f"the member's compression is not known ({error})")
    except EOFError:
        return ItemError("truncated", "the compressed data of the member end early")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, *_PARSER_ERRORS) as error:
        words = "its header has another name" if "and header b" in str(error) else error
        return ItemError("corrupt", f"the member is broken ({words})")
    except OSError as error:
        if error.errno is not None or type(error) is not OSError:
            raise  # the storage's
        return ItemError("corrupt", f"the member is broken ({error})")  # the bzip2 decoder's


def _name(info: zipfile.ZipInfo) -> str:
    """Return the name as UTF-8 if it is valid, flagged or not, as many tools write; else CP437 (APPNOTE)."""
    if not info.flag_bits & _UTF8 and not info.filename.isascii():
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def _linked(
    archive: zipfile.ZipFile, link: zipfile.ZipInfo, counted: _CountingReader, overlaps: bool, max_bytes: int
) -> bytes | ItemError:
    """Read the member that a symbolic link names: its content is the path from its folder."""
    path = _read(archive, link, counted, overlaps, LONGEST_PATH)
    if isinstance(path, ItemError):
        return path
    place = link_target(link.filename, path.decode("utf-8", "replace"))
    target = archive.NameToInfo.get(place)
    if target is None or _is_link(target) or target.is_dir():
        return no_target(place)
    return _read(archive, target, counted, overlaps, max_bytes)


def _refusal(
    info: zipfile.ZipInfo, counted: _CountingReader, overlaps: bool, max_bytes: int
) -> ItemError | None:
    """Return the rejection of a member that the directory alone justifies; None where it can be read."""
    if overlaps or counted.left < 0:
        return ItemError("too_large", "not read: members of this zip share their bytes, as in a zip bomb")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFLNK):
        return ItemError("unsupported", "the member is a device or a pipe, not a plain file")
    if info.flag_bits & _ENCRYPTED:
        return ItemError("unsupported", "the member is encrypted")
    if not _is_inside(info, counted.size):
        return ItemError("corrupt", "the member lies outside the file")
    if info.file_size > max_bytes:
        return too_large(info.file_size, max_bytes)
    if info.file_size > max(_ANY_RATIO_BYTES, _MOST_RATIO * info.compress_size):
        return ItemError("too_large", f"the member claims to inflate more than {_MOST_RATIO:,} times")
    return None


def _is_inside(info: zipfile.ZipInfo, size: int) -> bool:
    return 0 <= info.header_offset < size and info.header_offset + info.compress_size <= size


def _inflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes | ItemError:
    """Inflate piece by piece, because the size in the directory is only a claim."""
    content = BytesIO()
    with archive.open(info) as compressed:
        while piece := compressed.read(_PIECE_BYTES):
            content.write(piece)
            if content.tell() > max_bytes:
                return too_large(content.tell(), max_bytes)
    return content.getvalue()
