"""Objects that are written, moved and copied whole or not at all, on every storage."""

import asyncio
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.asyn

from segray.retries import is_transient

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES}
"""What a file system without hard links answers: exFAT and FAT EPERM, gcsfuse ENOSYS, others ENOTSUP."""
_TRIES = 3
"""To use a folder that somebody else takes away when it is empty."""
_COPY_POLL_S = 0.2


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
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        copy_aside(filesystem, str(local), str(temporary))
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
        if not is_transient(error) and filesystem.exists(path):
            raise FileExistsError(path) from error
        raise


def put_aside(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write an object that nobody reads until `move` gives it its name; a kill may leave half of it."""
    if "file" not in filesystem.protocol:
        filesystem.pipe_file(path, data)
        return
    with _flushed(Path(path), "wb") as file:
        file.write(data)


def copy_aside(filesystem: fsspec.AbstractFileSystem, source: str, path: str) -> None:
    """As `put_aside`, of another object's bytes. Raises FileNotFoundError."""
    if "file" not in filesystem.protocol:
        _copy(filesystem, source, path)
        return
    with Path(source).open("rb") as whole, _flushed(Path(path), "wb") as file:
        shutil.copyfileobj(whole, file, 1 << 20)


def move(filesystem: fsspec.AbstractFileSystem, source: str, target: str, *, replaces: bool) -> None:
    """Give an object its name in one step; on an object store `source` stays, so that it can be done again.

    Raises FileNotFoundError where `source` is gone: whoever takes it away can be sure that no move succeeds
    later, however long this process was stopped. replaces: else a name that is taken raises FileExistsError,
    on a disk.
    """
    if "file" not in filesystem.protocol:
        _copy(filesystem, source, target)
        return
    for tries in range(_TRIES):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            _move_on_disk(Path(source), Path(target), replaces=replaces)
            return
        except FileNotFoundError:
            if tries == _TRIES - 1 or not Path(source).exists():
                raise


def _move_on_disk(source: Path, target: Path, *, replaces: bool) -> None:
    if replaces:
        source.replace(target)
        return
    _move_where_none_is(source, target)
    source.unlink(missing_ok=True)


def _copy(filesystem: Any, source: str, target: str) -> None:
    """On the server, in one request that fails where `source` is gone.

    (Google asks for more requests where an object changes its place; the last one counts, and fails so, too.)
    """
    protocols = filesystem.protocol
    copy = next((copy for kind, copy in _COPIERS.items() if kind in protocols), None)
    if copy is None:
        filesystem.cp_file(source, target)
    else:
        copy(filesystem, source, target)


def _copy_s3(filesystem: Any, source: str, target: str) -> None:
    """As `cp_file` does, but that looks first and, from 150 MiB on, ends without a source."""
    (bucket, key, _), (to_bucket, to_key, _) = (filesystem.split_path(path) for path in (source, target))
    whole = {"Bucket": bucket, "Key": key}
    try:
        filesystem.call_s3("copy_object", Bucket=to_bucket, Key=to_key, CopySource=whole)
    except OSError as error:
        if "maximum allowable size" not in str(error):
            raise
        filesystem.cp_file(source, target)  # above 5 GiB there is no other way


def _copy_azure(filesystem: Any, source: str, target: str) -> None:
    fsspec.asyn.sync(filesystem.loop, _copied_in_azure, filesystem, source, target)


async def _copied_in_azure(filesystem: Any, source: str, target: str) -> None:
    """Azure may copy after it has answered; adlfs does not wait for it."""
    places = [filesystem.split_path(path)[:2] for path in (source, target)]
    whole, copy = (filesystem.service_client.get_blob_client(*place) for place in places)
    status = (await copy.start_copy_from_url(whole.url))["copy_status"]
    while status == "pending":
        await asyncio.sleep(_COPY_POLL_S)
        status = (await copy.get_blob_properties()).copy.status
    if status != "success":  # the source was taken away meanwhile
        raise FileNotFoundError(source)


_COPIERS: dict[str, Callable[[Any, str, str], None]] = {"s3": _copy_s3, "az": _copy_azure}


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
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _flushed(temporary, "xb") as file:
            file.write(data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _flushed(place: Path, mode: str) -> Iterator[BinaryIO]:
    """A file that is on the disk when the block ends, or its ledger row outlives it where power fails."""
    with _opened(place, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _opened(place: Path, mode: str) -> BinaryIO:
    for _ in range(_TRIES - 1):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            return cast(BinaryIO, place.open(mode))
        except FileNotFoundError:
            continue
    return cast(BinaryIO, place.open(mode))
