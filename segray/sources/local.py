"""Files on local disk: one `scandir` per folder, sorted by name, no file opened."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segray.errors import ErrorType
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.names import is_utf8, printable

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}


def everything(folder: str) -> bool:
    """Return True: the filter of `walk` that enters every folder."""
    return True


def walk(folder: str, enters: Callable[[str], bool] = everything) -> Iterator[Source]:
    """Yield every file below the absolute path `folder`, hidden ones included, depth first, sorted by name.

    Symbolic links are followed, except to a folder that the walk is already inside. A folder that cannot be
    listed is one Source with an error and a URI that ends in `/`. `enters(path)` prunes.
    """
    stack = [(_identity(folder), iter(_entries(folder)))]
    while stack:
        entry = next(stack[-1][1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, Source):
            yield entry
        elif not _is_folder(entry):
            yield local_source(entry.path)
        elif enters(entry.path):
            identity = _identity(entry.path)
            if all(identity != above for above, _ in stack):
                stack.append((identity, iter(_entries(entry.path))))


def local_source(path: str) -> Source:
    """Return a local file as a Source of kind `file`; a file that cannot be read has its error set."""
    if not is_utf8(path):
        return _rejected(path, "unsupported", "the file's name is not UTF-8")
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        what = "a symbolic link to nothing" if Path(path).is_symlink() else "the file is not there"
        return _rejected(path, "missing", what)
    except OSError as error:
        kind: ErrorType = "missing" if error.errno == errno.ENAMETOOLONG else "storage"
        return _rejected(path, kind, f"the file cannot be looked up: {describe(error)}")
    mode = stat.S_IFMT(status.st_mode)
    if mode != stat.S_IFREG:
        return _rejected(path, "unsupported", f"{_SPECIAL.get(mode, 'something else')}, not a file")
    version = f"{status.st_size}-{status.st_mtime_ns}"
    return Source(f"file://{path}", path, "file", version, status.st_size)


def _rejected(path: str, error_type: ErrorType, reason: str) -> Source:
    name = printable(path)
    return Source(f"file://{name}", name, "file", "", -1, error_type, reason)


def _entries(folder: str) -> Sequence[os.DirEntry[str] | Source]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        reason = f"the folder cannot be listed: {describe(error)}"
        return [_rejected(folder.rstrip("/") + "/", "storage", reason)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def _identity(folder: str) -> tuple[int, int] | str:
    try:
        status = Path(folder).stat()
    except OSError:
        return folder
    return status.st_dev, status.st_ino
