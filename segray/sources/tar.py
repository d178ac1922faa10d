"""Tar archives, plain or gzipped, read forwards once with Python's own header parser.

`tarfile` stops quietly at a header it cannot read and keeps every member in memory; here a header that
breaks off is an error, and nothing is kept.
"""

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

from segray.errors import ItemError
from segray.sources.member import Member, too_large

_HEADER_BYTES = 1 << 20
"""The most one extended header (long name, PAX) may take; a hostile one claims gigabytes."""
_PARSER_ERRORS = (ValueError, KeyError, IndexError, OverflowError, struct.error)
"""What Python's parser raises on hostile numbers besides its own errors."""


def tar_members(stream: IO[bytes]) -> Iterator[Member]:
    """The members in their order; a member must be read before the next one is asked for.

    Raises ItemError `truncated` or `corrupt` where the archive breaks off, and the storage's own errors.
    """
    try:
        yield from _members(_unpacked(stream))
    except EOFError as error:
        raise ItemError("truncated", "the gzip stream ends early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ItemError("corrupt", f"the gzip stream is broken ({error})") from error
    except tarfile.HeaderError as error:
        raise _header_error(error) from error
    except (tarfile.TarError, *_PARSER_ERRORS) as error:
        if "empty" in str(error) or "truncated" in str(error):
            raise ItemError("truncated", "the tar is empty or ends inside its first header") from error
        raise ItemError("corrupt", f"the tar has a broken header ({error})") from error


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    start = stream.read(2)
    stream.seek(0)
    if start == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream, mode="rb"))
    return stream


def _members(stream: IO[bytes]) -> Iterator[Member]:
    archive = tarfile.TarFile(fileobj=cast(IO[bytes], _HeaderReader(stream)), errorlevel=2)
    info, index = archive.firstmember, 0  # type: ignore[attr-defined]
    while info is not None:
        following = archive.offset
        if info.size < 0 or following < info.offset_data:  # would lead us in a circle
            raise tarfile.InvalidHeaderError("negative size")  # type: ignore[attr-defined]
        if not info.isdir():
            yield _member(stream, info, index)
        archive.members.clear()  # type: ignore[attr-defined]
        stream.seek(following)
        index += 1
        info = _next_header(archive)


def _next_header(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None


def _member(stream: IO[bytes], info: tarfile.TarInfo, index: int) -> Member:
    def read(max_bytes: int) -> bytes | ItemError:
        if not info.isreg() or info.issparse():
            return ItemError("unsupported", f"the member is {_kind(info)}, not a plain file")
        if info.size > max_bytes:
            return too_large(info.size, max_bytes)
        stream.seek(info.offset_data)
        try:
            data = stream.read(info.size)
        except EOFError:
            data = b""
        if len(data) < info.size:
            return ItemError("truncated", "the archive ends inside this member")
        return data

    return Member(index, info.name, info.size, read)


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}"
    return "a sparse file" if info.issparse() else "a device or pipe"


def _header_error(error: tarfile.HeaderError) -> ItemError:
    if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return ItemError("truncated", "the tar ends without its end mark")
    if isinstance(error, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
        return ItemError("truncated", "the tar ends inside a header")
    return ItemError("corrupt", f"the tar has a broken header ({error})")


class _HeaderReader:
    """What `tarfile` reads headers through: refuses those that claim more than `_HEADER_BYTES`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.InvalidHeaderError(f"it claims {size:,} bytes")  # type: ignore[attr-defined]
        return self._stream.read(size)
