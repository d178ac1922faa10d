"""Compare-and-swap on every storage: replace an object only while it is the version that was read.

S3 and Azure compare the ETag (If-Match), Google the generation (ifGenerationMatch). On a disk, contents are
compared under `flock`, which the kernel releases when a process dies; where machines share a folder without
sharing its locks (gcsfuse, some NFS mounts), two of them can both succeed within the same few milliseconds.
The same holds for any other storage, where contents are compared and written in two steps.
"""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from segray.atomic import written_next_to
from segray.retries import is_transient

_GUARD_S = 5.0
"""Longest wait in seconds for another process's compare and rename, which take milliseconds."""


class ChangedError(FileExistsError):
    """The object is no longer the version that was read: another process replaced it first."""


class Versioned(NamedTuple):
    """An object's contents with the version that they belong to."""

    data: bytes
    version: str
    """Names these contents, or older ones: then a replacement is refused, never wrongly accepted."""


def read_versioned(filesystem: AbstractFileSystem, path: str) -> Versioned:
    """Read an object and its version. Raises FileNotFoundError where it does not exist."""
    name = _VERSIONS.get(_kind(filesystem))
    if name is None:
        data = bytes(filesystem.cat_file(path))
        return Versioned(data, _digest(data))
    version = str(filesystem.info(path)[name])
    return Versioned(bytes(filesystem.cat_file(path)), version)


def replace_atomically(filesystem: AbstractFileSystem, path: str, data: bytes, version: str) -> None:
    """Write an object if it still is the version that was read; `data` must differ from all earlier contents.

    Raises ChangedError where the version differs or the object is gone; of two callers with one version one
    wins.
    """
    if "file" in filesystem.protocol:
        _replace_on_disk(Path(path), data, version)
        return
    replace = _REPLACERS.get(_kind(filesystem), _replace_after_reading)
    try:
        replace(filesystem, path, data, version)
    except Exception as error:
        if is_transient(error):
            raise
        there = _there(filesystem, path)
        if there is not None and there.data == data:
            return  # an earlier attempt of this request succeeded and its response was lost
        if there is not None and there.version == version:
            raise
        raise ChangedError(path) from error


def delete_atomically(filesystem: AbstractFileSystem, path: str, version: str) -> None:
    """Delete an object if it still is the version that was read; do nothing where it is gone.

    Raises ChangedError where the version differs. On a disk, and on storages without conditional requests,
    comparing and deleting are two steps, microseconds or one request apart.
    """
    delete = _DELETERS.get(_kind(filesystem), _delete_after_reading)
    try:
        delete(filesystem, path, version)
    except Exception as error:
        if is_transient(error):
            raise
        there = _there(filesystem, path)
        if there is not None and there.version == version:
            raise
        if there is not None:
            raise ChangedError(path) from error


def _there(filesystem: AbstractFileSystem, path: str) -> Versioned | None:
    try:
        return read_versioned(filesystem, path)
    except FileNotFoundError:
        return None


def stale_version(filesystem: AbstractFileSystem) -> str | None:
    """Return a well-formed version that no object has; None for a storage without conditional requests."""
    return _STALE.get(_kind(filesystem))


def _kind(filesystem: AbstractFileSystem) -> str:
    """Return `s3`, `gs` or `az`; an empty string for a storage without conditional requests."""
    return next((kind for kind in _REPLACERS if kind in filesystem.protocol), "")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _replace_on_disk(path: Path, data: bytes, version: str) -> None:
    with written_next_to(path, data) as temporary, _guarded(path):
        with suppress(FileNotFoundError):
            if _digest(path.read_bytes()) == version:
                temporary.replace(path)
                return
        raise ChangedError(str(path))


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Let one process in at a time; on a file system without locks, all of them."""
    with path.with_name(f".{path.name}.guard").open("ab") as guard:
        deadline = time.monotonic() + _GUARD_S
        while True:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{guard.name} is locked by another process") from None
                time.sleep(0.01)
                continue
            except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP
                pass
            yield
            return


def _replace_after_reading(filesystem: Any, path: str, data: bytes, version: str) -> None:
    if _digest(filesystem.cat_file(path)) != version:
        raise ChangedError(path)
    filesystem.pipe_file(path, data)


def _replace_s3(filesystem: Any, path: str, data: bytes, version: str) -> None:
    filesystem.pipe_file(path, data, IfMatch=version)


def _replace_azure(filesystem: Any, path: str, data: bytes, version: str) -> None:
    from azure.core import MatchConditions

    filesystem.pipe_file(path, data, etag=version, match_condition=MatchConditions.IfNotModified)


def _replace_google(filesystem: Any, path: str, data: bytes, version: str) -> None:
    bucket, name, _ = filesystem.split_path(path)
    filesystem.call(
        "POST",
        f"{filesystem._location}/upload/storage/v1/b/{quote(bucket)}/o",
        uploadType="media",
        name=name,
        ifGenerationMatch=version,
        headers={"Content-Type": "application/octet-stream"},
        data=data,
    )


def _delete_after_reading(filesystem: Any, path: str, version: str) -> None:
    if _digest(filesystem.cat_file(path)) != version:
        raise ChangedError(path)
    filesystem.rm_file(path)


def _delete_s3(filesystem: Any, path: str, version: str) -> None:
    bucket, key, _ = filesystem.split_path(path)
    filesystem.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version)


def _delete_azure(filesystem: Any, path: str, version: str) -> None:
    from azure.core import MatchConditions

    blob = filesystem.service_client.get_blob_client(*filesystem.split_path(path)[:2])
    condition = {"etag": version, "match_condition": MatchConditions.IfNotModified}
    sync(filesystem.loop, blob.delete_blob, **condition)


def _delete_google(filesystem: Any, path: str, version: str) -> None:
    bucket, name, _ = filesystem.split_path(path)
    filesystem.call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=version)


_REPLACERS: dict[str, Callable[[Any, str, bytes, str], None]] = {
    "s3": _replace_s3,
    "az": _replace_azure,
    "gs": _replace_google,
}
_DELETERS: dict[str, Callable[[Any, str, str], None]] = {
    "s3": _delete_s3,
    "az": _delete_azure,
    "gs": _delete_google,
}
_VERSIONS = {"s3": "ETag", "az": "etag", "gs": "generation"}
"""Field of `info` that holds the version."""
_STALE = {"s3": '"' + "0" * 32 + '"', "az": '"0x8D0000000000000"', "gs": "1"}
