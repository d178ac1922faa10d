"""Tar archives, plain or gzipped, read forwards once with Python's own header parser.

`tarfile` stops quietly at a header it cannot read and keeps every member in memory; here a header that
breaks off is an error, and nothing is kept. Archives joined one behind the other are read as one; anything
else behind the end mark is an error too, because a damaged stretch of zeros looks like an end.
"""

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

from segray.errors import ItemError
from segray.sources.member import Member, check_start, too_large

_HEADER_BYTES = 1 << 20
"""The most that the headers of one member may take (long names, PAX, maps of sparse files), and all global
ones together; hostile ones claim gigabytes, or come by the thousand."""
_PARSER_ERRORS = (ValueError, LookupError, OverflowError, RecursionError, struct.error)
"""What Python's parser raises on hostile numbers besides its own errors; it reads headers recursively."""
_GZIP_ERRORS = (gzip.BadGzipFile, zlib.error)
_PIECE_BYTES = 64 << 10


def tar_members(stream: IO[bytes]) -> Iterator[Member]:
    """The members in their order; a member must be read before the next one is asked for.

    Raises ItemError `truncated` or `corrupt` where the archive breaks off, and the storage's own errors.
    """
    try:
        yield from _members(_unpacked(stream))
    except EOFError as error:
        raise ItemError("truncated", "the gzip stream ends early") from error
    except _GZIP_ERRORS as error:
        raise _gzip_error(error) from error
    except (tarfile.HeaderError, *_PARSER_ERRORS) as error:
        raise _header_error(error) from error


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    start = stream.read(2)
    stream.seek(0)
    if start == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream, mode="rb"))
    return stream


class _Archive(tarfile.TarFile):
    """What `TarInfo.fromtarfile` reads from; looks for no member of its own accord."""

    def next(self) -> tarfile.TarInfo | None:
        return None


def _members(stream: IO[bytes]) -> Iterator[Member]:
    headers = _HeaderReader(stream)
    archive = _Archive(fileobj=cast(IO[bytes], headers))
    index, info = 0, _first_header(archive, headers)
    while info is not None:
        following = archive.offset
        if info.size < 0 or following < info.offset_data:  # would lead us in a circle
            raise _invalid("negative size")
        if not info.isdir():
            yield _member(stream, info, index)
        stream.seek(following)
        index, info = index + 1, _next_header(archive, headers)


def _first_header(archive: tarfile.TarFile, headers: "_HeaderReader") -> tarfile.TarInfo | None:
    """Another kind of file is told by name, but only now: a member's name may begin like any of them."""
    start = headers.stream.read(tarfile.BLOCKSIZE)
    headers.seek(0)
    try:
        return _next_header(archive, headers)
    except tarfile.HeaderError:
        check_start("tar", start)
        raise


def _next_header(archive: tarfile.TarFile, headers: "_HeaderReader") -> tarfile.TarInfo | None:
    """The next member, also one of an archive that was joined to the first; None at the end of the file."""
    headers.left = _HEADER_BYTES
    if sum(len(name) + len(value) for name, value in archive.pax_headers.items()) > _HEADER_BYTES:
        raise _invalid("the global headers claim too much")
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        if not _skip_zeros(headers):
            return None
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except tarfile.HeaderError as error:
        raise _invalid(f"no header follows the end mark: {error}") from error


def _skip_zeros(headers: "_HeaderReader") -> bool:
    """Go from the first block of an end mark to the first block that is not zeros; False where none is.

    An end mark has two blocks (POSIX ustar): one alone was a header.
    """
    first = headers.tell()
    while piece := headers.stream.read(_PIECE_BYTES):
        if content := piece.lstrip(b"\0"):
            start = (headers.tell() - len(content)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            if start == first:
                raise _invalid("a block of zeros")
            headers.seek(start)
            return True
    return False


def _invalid(words: str) -> tarfile.HeaderError:
    error: tarfile.HeaderError = tarfile.InvalidHeaderError(words)  # type: ignore[attr-defined]
    return error


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
        except _GZIP_ERRORS as error:
            raise _gzip_error(error) from error
        if len(data) < info.size:
            return ItemError("truncated", "the archive ends inside this member")
        return data

    return Member(index, info.name, info.size, read)


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}"
    return "a sparse file" if info.issparse() else "a device or pipe"


def _gzip_error(error: Exception) -> ItemError:
    words = str(error).partition(" (b'")[0]  # the bytes it met
    return ItemError("corrupt", f"the gzip stream is broken ({words})")


def _header_error(error: Exception) -> ItemError:
    if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return ItemError("truncated", "the tar ends without its end mark")
    if isinstance(error, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
        return ItemError("truncated", "the tar ends inside a header")
    words = "too many for one member" if isinstance(error, RecursionError) else error
    return ItemError("corrupt", f"the tar has a broken header ({words})")


class _HeaderReader:
    """What `tarfile` reads headers through: refuses more than `left` bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.left = _HEADER_BYTES
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise _invalid(f"it claims more than {_HEADER_BYTES:,} bytes")
        self.left -= size
        return self.stream.read(size)
