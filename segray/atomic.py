"""Objects that are written whole or not at all, on every storage."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from segray.retries import is_passing


def put_atomically(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write one object, whole or not at all.

    An object store's put is atomic by itself; a local file is written beside its place, flushed to the disk
    and renamed. The temporary name starts with a dot, so that no glob of a reader sees it.
    """
    if "file" not in filesystem.protocol:
        filesystem.pipe_file(path, data)
        return
    with _written_beside(Path(path), data) as temporary:
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
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def create_atomically(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write one object where none is. Raises FileExistsError where one is; of two callers one wins."""
    if "file" in filesystem.protocol:
        with _written_beside(Path(path), data) as temporary:
            Path(path).hardlink_to(temporary)  # fails where there is one, and never shows half a file
        return
    try:
        filesystem.pipe_file(path, data, mode="create")
    except Exception as error:
        if not is_passing(error) and filesystem.exists(path):
            raise FileExistsError(path) from error
        raise


@contextmanager
def _written_beside(place: Path, data: bytes) -> Iterator[Path]:
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
