"""Objects that are written whole or not at all, on every storage."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from segray.retries import is_passing

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES}
"""What a file system without hard links answers: exFAT and FAT EPERM, gcsfuse ENOSYS, others ENOTSUP."""


def put_atomically(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write one object, whole or not at all.

    An object store's put is atomic by itself; a local file is written beside its place, flushed to the disk
    and renamed. The temporary name starts with a dot, so that no glob of a reader sees it.
    """
    if "file" not in filesystem.protocol:
        filesystem.pipe_file(path, data)
        return
    with written_beside(Path(path), data) as temporary:
        temporary.replace(path)


def put_file_atomically(filesystem: fsspec.AbstractFileSystem, path: str, local: Path) -> None:
    """As `put_atomically`, of a local file: it is never in memory as a whole."""
    if "file" not in filesystem.protocol:
        filesystem.put_file(str(local), path)  # an upload in parts counts when its last word is said
        return
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        shutil.copyfile(local, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or its ledger row outlives it where power fails
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def create_atomically(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write one object where none is. Raises FileExistsError where one is; of two callers one wins."""
    if "file" in filesystem.protocol:
        with written_beside(Path(path), data) as temporary:
            _move_where_none_is(temporary, Path(path))
        return
    try:
        filesystem.pipe_file(path, data, mode="create")
    except Exception as error:
        if not is_passing(error) and filesystem.exists(path):
            raise FileExistsError(path) from error
        raise


def _move_where_none_is(temporary: Path, place: Path) -> None:
    """Give a finished file its name. Raises FileExistsError where the name is taken.

    A hard link does it in one step. File systems without links (exFAT, gcsfuse, DBFS) take two: an empty file
    claims the name, and the finished one is renamed over it. A kill in between leaves an empty file, never
    half of one; readers treat it as not written.
    """
    try:
        place.hardlink_to(temporary)
        return
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    place.open("xb").close()
    try:
        temporary.replace(place)
    except OSError:
        place.unlink(missing_ok=True)
        raise


@contextmanager
def written_beside(place: Path, data: bytes) -> Iterator[Path]:
    """Write a hidden file with these contents next to `place`; it is removed when the block ends."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
