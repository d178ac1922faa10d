"""Tar archives, plain or gzipped, read forwards once with Python's own header parser.

`tarfile` stops silently at a header it cannot read and keeps every member in memory; here a broken header
is an error, and no member is kept. Concatenated archives are read as one; any other data behind the end
marker are an error too, because a damaged stretch of zeros looks like an end.
"""

import gzip
import hashlib
import struct
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, cast

from segray.errors import ItemError
from segray.sources.member import Member, check_start, link_target, no_target, too_large

_HEADER_BYTES = 1 << 20
"""Maximum size of one member's headers (long names, PAX, maps of sparse files), and of all global ones
together; hostile ones claim gigabytes, or come by the thousand."""
_PARSER_ERRORS = (ValueError, LookupError, OverflowError, RecursionError, struct.error)
"""What Python's parser raises for hostile numbers besides its own errors; it reads headers recursively."""
_GZIP_ERRORS = (gzip.BadGzipFile, zlib.error)
_PIECE_BYTES = 64 << 10
_LINKED_BACK = 10_000
"""Files before a link among which its target is searched; all of a large tar would not fit in memory."""


def tar_members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the members in order; a member must be read before the next one is requested.

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
    """The state that `TarInfo.fromtarfile` reads; does not search for members itself."""

    def next(self) -> tarfile.TarInfo | None:
        return None


def _members(stream: IO[bytes]) -> Iterator[Member]:
    headers = _HeaderReader(stream)
    archive = _Archive(fileobj=cast(IO[bytes], headers))
    index, info, files = 0, _first_header(archive, headers), _Files()
    while info is not None:
        following = archive.offset
        if info.size < 0 or following < info.offset_data:  # would be an endless loop
            raise _invalid("negative size")
        if info.isreg() and not info.issparse():
            files.add(info)
        if not info.isdir():
            yield _member(stream, info, index, files)
        stream.seek(following)
        index, info = index + 1, _next_header(archive, headers)


def _first_header(archive: tarfile.TarFile, headers: "_HeaderReader") -> tarfile.TarInfo | None:
    """Read the first header; another file format is reported only now: member names may look like one."""
    start = headers.stream.read(tarfile.BLOCKSIZE)
    headers.seek(0)
    try:
        return _next_header(archive, headers)
    except tarfile.HeaderError:
        check_start("tar", start)
        raise


def _next_header(archive: tarfile.TarFile, headers: "_HeaderReader") -> tarfile.TarInfo | None:
    """Return the next member, also of a concatenated archive; None at the end of the file."""
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
    """Skip from the first block of an end marker to the first block that is not zeros; False where none is.

    An end marker has two blocks (POSIX ustar): one alone was a header.
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


class _Files:
    """Offsets of the plain files before a link: the last ones, since links mostly refer to near files."""

    def __init__(self) -> None:
        self._places = OrderedDict[bytes, tuple[int, int]]()
        """By the digest of a name, which may have any length."""

    def add(self, info: tarfile.TarInfo) -> None:
        """Add a file; of several with one name the last counts."""
        key = _digest(link_target("", info.name))
        self._places[key] = info.offset_data, info.size
        self._places.move_to_end(key)
        if len(self._places) > _LINKED_BACK:
            self._places.popitem(last=False)

    def linked(self, link: tarfile.TarInfo) -> tuple[int, int] | ItemError:
        """Return offset and bytes of a link's target, or its rejection."""
        folder = link.name if link.issym() else ""  # a hard link names it from the archive's root
        place = link_target(folder, link.linkname)
        return self._places.get(_digest(place)) or no_target(place)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:16]


def _member(stream: IO[bytes], info: tarfile.TarInfo, index: int, files: _Files) -> Member:
    def read(max_bytes: int) -> bytes | ItemError:
        place: tuple[int, int] | ItemError = info.offset_data, info.size
        if info.issym() or info.islnk():
            if isinstance(stream, gzip.GzipFile):  # going back would inflate all of it again
                text = f"the member is a link to {info.linkname[:200]!r}, in a tar that is gzipped: unpack it"
                return ItemError("unsupported", text)
            place = files.linked(info)
        elif not info.isreg() or info.issparse():
            kind = "a sparse file" if info.issparse() else "a device or pipe"
            return ItemError("unsupported", f"the member is {kind}, not a plain file")
        return place if isinstance(place, ItemError) else _content(stream, *place, max_bytes)

    return Member(index, info.name, info.size, read)


def _content(stream: IO[bytes], offset: int, size: int, max_bytes: int) -> bytes | ItemError:
    if size > max_bytes:
        return too_large(size, max_bytes)
    stream.seek(offset)
    try:
        data = stream.read(size)
    except EOFError:
        data = b""
    except _GZIP_ERRORS as error:
        raise _gzip_error(error) from error
    if len(data) < size:
        return ItemError("truncated", "the archive ends inside this member")
    return data


def _gzip_error(error: Exception) -> ItemError:
    words = str(error).partition(" (b'")[0]  # quoted bytes
    return ItemError("corrupt", f"the gzip stream is broken ({words})")


def _header_error(error: Exception) -> ItemError:
    if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return ItemError("truncated", "the tar ends without its end mark")
    if isinstance(error, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
        return ItemError("truncated", "the tar ends inside a header")
    words = "too many for one member" if isinstance(error, RecursionError) else error
    return ItemError("corrupt", f"the tar has a broken header ({words})")


class _HeaderReader:
    """The reader through which `tarfile` reads headers: refuses more than `left` bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.left = _HEADER_BYTES
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise _invalid(f"it claims more than {_HEADER_BYTES:,} bytes")
        self.left -= size
        return self.stream.read(size)
