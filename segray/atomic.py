"""Atomic write, create, move and copy of objects on every storage: whole or not at all."""

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
"""Errors of file systems without hard links: EPERM (exFAT, FAT), ENOSYS (gcsfuse), ENOTSUP (others)."""
_TRIES = 3
"""Attempts to use a folder that another process may remove while it is empty."""
_COPY_POLL_S = 0.2


def put_atomically(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write one object, whole or not at all.

    An object store's put is atomic by itself; a local file is written to a temporary file in the same folder,
    flushed to disk and renamed. The temporary name starts with a dot, so that readers' globs skip it.
    """
    if "file" not in filesystem.protocol:
        filesystem.pipe_file(path, data)
        return
    with written_next_to(Path(path), data) as temporary:
        temporary.replace(path)


def put_file_atomically(filesystem: fsspec.AbstractFileSystem, path: str, local: Path) -> None:
    """Upload a local file as `put_atomically` does, without loading all of it into memory."""
    if "file" not in filesystem.protocol:
        filesystem.put_file(str(local), path)  # a multipart upload becomes visible when it is completed
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        copy_aside(filesystem, str(local), str(temporary))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def create_atomically(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a new object. Raises FileExistsError where it exists already; of two callers one wins."""
    if "file" in filesystem.protocol:
        with written_next_to(Path(path), data) as temporary:
            _move_where_none_is(temporary, Path(path))
        return
    try:
        filesystem.pipe_file(path, data, mode="create")
    except Exception as error:
        if not is_transient(error) and filesystem.exists(path):
            raise FileExistsError(path) from error
        raise


def put_aside(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write an object under a name that is not read until `move` renames it; a kill may leave half of it."""
    if "file" not in filesystem.protocol:
        filesystem.pipe_file(path, data)
        return
    with _flushed(Path(path), "wb") as file:
        file.write(data)


def copy_aside(filesystem: fsspec.AbstractFileSystem, source: str, path: str) -> None:
    """Copy an object as `put_aside` writes one. Raises FileNotFoundError where `source` does not exist."""
    if "file" not in filesystem.protocol:
        _copy(filesystem, source, path)
        return
    with Path(source).open("rb") as whole, _flushed(Path(path), "wb") as file:
        shutil.copyfileobj(whole, file, 1 << 20)


def move(filesystem: fsspec.AbstractFileSystem, source: str, target: str, *, replaces: bool) -> None:
    """Rename an object in one step; on an object store `source` is kept, so that the step can be repeated.

    Raises FileNotFoundError where `source` is gone: after it is deleted no move can succeed, however long
    this process was suspended. Raises FileExistsError, on a disk, where `target` exists and not `replaces`.
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
    """Copy on the server, in one request that fails where `source` is gone.

    (Google needs several requests to copy between locations; the last one counts, and it fails likewise.)
    """
    protocols = filesystem.protocol
    copy = next((copy for kind, copy in _COPIERS.items() if kind in protocols), None)
    if copy is None:
        filesystem.cp_file(source, target)
    else:
        copy(filesystem, source, target)


def _copy_s3(filesystem: Any, source: str, target: str) -> None:
    """Copy in one request; `cp_file` reads the size first and, from 150 MiB on, ends without a source."""
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
    """Copy and wait for the end: Azure may copy after it has replied, and adlfs does not wait."""
    blobs = [filesystem.split_path(path)[:2] for path in (source, target)]
    whole, copy = (filesystem.service_client.get_blob_client(*blob) for blob in blobs)
    status = (await copy.start_copy_from_url(whole.url))["copy_status"]
    while status == "pending":
        await asyncio.sleep(_COPY_POLL_S)
        status = (await copy.get_blob_properties()).copy.status
    if status != "success":  # the source was deleted meanwhile
        raise FileNotFoundError(source)


_COPIERS: dict[str, Callable[[Any, str, str], None]] = {"s3": _copy_s3, "az": _copy_azure}


def _move_where_none_is(temporary: Path, target: Path) -> None:
    """Rename a finished file to a name that must be free. Raises FileExistsError where it is not.

    A hard link does it in one step. File systems without links (exFAT, gcsfuse, DBFS) need two: create an
    empty file under the name, then rename the finished file over it. A kill in between leaves an empty file,
    never half of one; readers treat it as not written.
    """
    try:
        target.hardlink_to(temporary)
        return
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    target.open("xb").close()
    try:
        temporary.replace(target)
    except OSError:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def written_next_to(target: Path, data: bytes) -> Iterator[Path]:
    """Write these contents to a hidden file next to `target`; the file is removed when the block ends."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _flushed(temporary, "xb") as file:
            file.write(data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _flushed(target: Path, mode: str) -> Iterator[BinaryIO]:
    """Open a file that is on disk when the block ends, so that no ledger row outlives it in a power cut."""
    with _opened(target, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _opened(target: Path, mode: str) -> BinaryIO:
    for _ in range(_TRIES - 1):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            return cast(BinaryIO, target.open(mode))
        except FileNotFoundError:
            continue
    return cast(BinaryIO, target.open(mode))
