"""Zip archives by their central directory: only the ranges of wanted members are read."""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO

from segray.errors import ItemError
from segray.sources.member import Member, too_large

_PIECE_BYTES = 1 << 20
_PARSER_ERRORS = (ValueError, KeyError, IndexError, OverflowError, struct.error)
"""What Python's parser raises on hostile numbers besides its own errors."""
_ENCRYPTED = 0x1  # general purpose bit flag, APPNOTE 4.4.4


def zip_members(stream: IO[bytes]) -> Iterator[Member]:
    """The members in the order of the central directory.

    Raises ItemError `truncated` or `corrupt` where the directory cannot be read, and the storage's errors.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, *_PARSER_ERRORS) as error:
        raise _directory_error(stream, error) from error
    for index, info in enumerate(archive.infolist()):
        if not info.is_dir():
            yield _member(archive, info, index)


def _directory_error(stream: IO[bytes], error: Exception) -> ItemError:
    stream.seek(0)
    start = stream.read(4)
    if not start:
        return ItemError("truncated", "the zip is empty")
    if start == b"PK\3\4" and "not a zip file" in str(error):
        return ItemError("truncated", "the zip ends without its directory")
    return ItemError("corrupt", f"no zip directory can be read ({error})")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, index: int) -> Member:
    def read(max_bytes: int) -> bytes | ItemError:
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            return ItemError("unsupported", "the member is a link or a device, not a plain file")
        if info.flag_bits & _ENCRYPTED:
            return ItemError("unsupported", "the member is encrypted")
        if info.file_size > max_bytes:
            return too_large(info.file_size, max_bytes)
        try:
            return _inflate(archive, info, max_bytes)
        except NotImplementedError as error:
            return ItemError("unsupported", f"the member's compression is not known ({error})")
        except EOFError:
            return ItemError("truncated", "the compressed data of the member end early")
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, *_PARSER_ERRORS) as error:
            return ItemError("corrupt", f"the member is broken ({error})")
        except OSError as error:
            if error.errno is not None or type(error) is not OSError:
                raise  # the storage's
            return ItemError("corrupt", f"the member is broken ({error})")  # the bzip2 decoder's

    return Member(index, info.filename, info.file_size, read)


def _inflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes | ItemError:
    """Piece by piece, because the size in the directory is only a claim."""
    content = BytesIO()
    with archive.open(info) as compressed:
        while piece := compressed.read(_PIECE_BYTES):
            content.write(piece)
            if content.tell() > max_bytes:
                return too_large(content.tell(), max_bytes)
    return content.getvalue()
