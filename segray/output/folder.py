"""Objects of an output folder, on every storage: read by all, written by one run at a time.

Fencing: a writer that is suspended between checking its lease and writing does one more write when it
resumes, even if another run holds the lease by then. So an object is first written under
`_segray/unpublished/`, which is never read, and then, if the lease still is ours, moved to its name by one
operation that fails when its source is gone: a rename, or a copy on the server. A run that takes the lease
first empties that folder, so a move either came before, and is seen, or fails. A late delete finds an object
that its run alone wrote (names carry the lease's generation), one that the next run deletes as well, or
another version than it may delete (`retract`). Where a storage neither moves in one operation nor compares
versions, the one write in progress when its run was suspended may still be carried out; nothing after it is.
"""

import errno
import json
import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from segray.atomic import (
    copy_aside,
    create_atomically,
    move,
    put_aside,
    put_atomically,
    put_file_atomically,
)
from segray.compare_and_swap import (
    ChangedError,
    Versioned,
    delete_atomically,
    read_versioned,
    replace_atomically,
)
from segray.errors import JobFailedError, SettingsError
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, open_filesystem

T = TypeVar("T")
IMAGES, INSTANCES = "images", "instances"
UNPUBLISHED = "_segray/unpublished"
_GENERATION = re.compile(rf"{UNPUBLISHED}/(\d+)-|-g(\d+)(?:\.[a-z]+)?$")


def mark(generation: int) -> str:
    """Return the end (before the suffix) of names that only one generation of the lease writes."""
    return f"-g{generation}" if generation else ""


def generation_in(name: str) -> int:
    """Return the generation of the lease in a name; 0 where it has none."""
    found = _GENERATION.search(name)
    return int(found[1] or found[2]) if found else 0


class Output:
    """Read and write the objects of one output. Only one process may have it open (see `lease.Lock`)."""

    def __init__(self, url: str, storage: StorageSettings) -> None:
        self.filesystem, self.root = open_filesystem(url, storage)
        self.storage = storage
        self.fence: Callable[[], None] = lambda: None
        """Called before every write; raises JobFailedError when another run holds the output."""
        self.generation = 0
        """Generation of the lease under which this store writes; 0: without one."""

    def check_usable(self) -> None:
        """Raise SettingsError within seconds where the output is unusable: no bucket, no permission, …"""
        impatient = self.storage.model_copy(update={"attempts": 4})
        try:
            if "file" in self.filesystem.protocol:
                _check_folder(Path(self.root))
            else:
                retrying(self._check_bucket, impatient)
        except FileNotFoundError as error:
            raise SettingsError(
                f"output: there is no bucket or container {self.root.split('/', 1)[0]}; create it first"
            ) from error
        except OSError as error:
            raise SettingsError(f"output: cannot use {self.root}: {describe(error)}") from error
        if self.read("_segray/plan.json") is None and (
            self.files(IMAGES) or self.files(INSTANCES) or self.read("run.json") is not None
        ):
            raise SettingsError(
                f"output: {self.root} contains {IMAGES}/, {INSTANCES}/ or run.json that segray did not "
                "write; choose another folder"
            )

    def _check_bucket(self) -> None:
        try:
            self._find("")
        except FileNotFoundError:
            with suppress(PermissionError):  # the permissions may cover the prefix only
                self.filesystem.ls(self.root.split("/", 1)[0])

    # --- small files ---------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write one object, whole or not at all. Raises JobFailedError where the storage fails."""
        self._publish(name, lambda path: put_aside(self.filesystem, path, data), data)

    def create(self, name: str, data: bytes) -> None:
        """Write one object under a new name. Raises FileExistsError, on a disk, where it exists already."""
        self._publish(name, lambda path: put_aside(self.filesystem, path, data), data, replaces=False)

    def copy(self, name: str, to: str) -> None:
        """Copy one object to another name. Raises FileNotFoundError where there is no such object."""
        source = f"{self.root}/{name}"
        self._publish(to, lambda path: copy_aside(self.filesystem, source, path), what="copy")

    def _publish(
        self,
        name: str,
        put: Callable[[str], None],
        data: bytes | None = None,
        *,
        replaces: bool = True,
        what: str = "write",
    ) -> None:
        """Call `put` with a name that is never read, then move the object: see the module's docstring.

        Raises JobFailedError where another run has taken the lease.
        """
        path = self._path(name)
        aside = f"{self.root}/{UNPUBLISHED}/{self.generation}-{uuid.uuid4().hex}"
        self.fence()
        try:
            self._request(what, path, lambda: put(aside))
            self.fence()  # after `put`: a run that took the lease meanwhile has deleted the object
            self._move(aside, path, data, replaces=replaces)
        except BaseException:
            with suppress(Exception):
                self.filesystem.rm_file(aside)
            raise
        if "file" not in self.filesystem.protocol:
            self._remove(aside)

    def _move(self, aside: str, path: str, data: bytes | None, *, replaces: bool) -> None:
        try:
            self._request("move", path, lambda: move(self.filesystem, aside, path, replaces=replaces))
        except FileNotFoundError as error:
            if data is None or self.read(path.removeprefix(f"{self.root}/")) != data:
                raise self._taken_over() from error
            # else a response was lost, as on NFS: the move had succeeded, and the retry found no source

    def _taken_over(self) -> JobFailedError:
        return JobFailedError(
            f"another run took over {self.root} while this one was suspended; this one stops"
        )

    def put(self, name: str, data: bytes) -> None:
        """Write one object in one request, where a late write is harmless: see `predict.windows`.

        Raises JobFailedError where the storage fails.
        """
        self.fence()
        path = self._path(name)
        self._request("write", path, lambda: put_atomically(self.filesystem, path, data))

    def put_file(self, name: str, path: Path) -> None:
        """Upload a local file as `put` does. Raises JobFailedError where the storage fails."""
        self.fence()
        target = self._path(name)
        self._request("write", target, lambda: put_file_atomically(self.filesystem, target, path))

    def replace(self, name: str, data: bytes, version: str | None) -> None:
        """Replace this version of an object, or create it if `version` is None; of two callers one wins.

        Raises FileExistsError (ChangedError) where the version differs. Only the lease is written like this:
        it needs no lease itself.
        """
        path = f"{self.root}/{name}"
        if version is None:
            self._request("write", path, lambda: create_atomically(self.filesystem, path, data))
        else:
            self._request("write", path, lambda: replace_atomically(self.filesystem, path, data, version))

    def read_versioned(self, name: str) -> Versioned | None:
        """Return one object's bytes and version, for `replace`; None where it does not exist."""
        path = f"{self.root}/{name}"
        try:
            return self._request("read", path, lambda: read_versioned(self.filesystem, path))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """Return one object's bytes; None where it does not exist."""
        path = f"{self.root}/{name}"
        try:
            return self._request("read", path, lambda: bytes(self.filesystem.cat_file(path)))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """Return one JSON object; None where it does not exist. Raises JobFailedError where it is damaged."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise JobFailedError(f"{self.root}/{name} is damaged: {error}; delete it") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON object, indented. Raises JobFailedError where the storage fails."""
        self.write(name, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

    def delete(self, name: str) -> None:
        """Delete one object; do nothing if it is gone.

        A late delete must be harmless: no later run writes this name, or reads it.
        """
        self.fence()
        self._remove(self._path(name))

    def retract(self, name: str) -> None:
        """Delete one object whose name later runs write, too: theirs stays. Do nothing if it is gone."""
        there = self.read_versioned(name)
        self.fence()  # after reading: the version that was read is not a later run's
        if there is not None:
            try:
                self.remove(name, there.version)
            except ChangedError as error:
                raise self._taken_over() from error

    def remove(self, name: str, version: str) -> None:
        """Delete one object if it is that version. Raises ChangedError where it is another one."""
        path = f"{self.root}/{name}"
        self._request("delete", path, lambda: delete_atomically(self.filesystem, path, version))

    def delete_folder(self, name: str) -> None:
        """Delete all objects of a folder except those of later generations, if there are any."""
        self.fence()
        path = f"{self.root}/{name}"
        with suppress(FileNotFoundError):
            self._request("delete", path, lambda: self._remove_below(path))

    def begin(self, generation: int, fence: Callable[[], None]) -> int:
        """Start to write under a lease of this generation; return the number of unpublished objects deleted.

        Objects that earlier generations did not publish are deleted first; nothing else of the output may be
        read before that.
        """
        self.generation, self.fence = generation, fence
        late = [name for name in self.files(UNPUBLISHED) if generation_in(name) <= generation]
        for name in late:
            self.delete(name)
        return len(late)

    def _path(self, name: str) -> str:
        """Return the path of an object. Raises JobFailedError for a name that leads out of the output."""
        if name.startswith("/") or ".." in name.split("/"):
            raise JobFailedError(f"{name} is not in {self.root}: nothing is written or deleted there")
        return f"{self.root}/{name}"

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._request("delete", path, lambda: self.filesystem.rm_file(path))

    def _remove_below(self, path: str) -> None:
        found = [name for name in self.filesystem.find(path) if generation_in(name) <= self.generation]
        if "file" not in self.filesystem.protocol:
            if found:
                self.filesystem.rm(found)
            return
        for name in found:
            Path(name).unlink(missing_ok=True)
        for folder in sorted((Path(path), *Path(path).rglob("*/")), reverse=True):
            with suppress(OSError):  # not empty
                folder.rmdir()

    def files(self, folder: str) -> dict[str, int]:
        """Return names (relative to the output) and sizes of the files directly in a folder."""
        try:
            return self._request("list", f"{self.root}/{folder}", lambda: self._find(folder))
        except FileNotFoundError:
            return {}

    def _request(self, what: str, path: str, call: Callable[[], T]) -> T:
        """Return `call()`, with retries. Raises JobFailedError with the path where the storage fails."""
        try:
            return retrying(call, self.storage)
        except (FileNotFoundError, FileExistsError) as error:
            if what == "write" and isinstance(error, FileNotFoundError):
                raise JobFailedError(f"cannot write {path}: {describe(error)}") from error
            raise
        except OSError as error:
            room = "free disk space, then " * (error.errno in (errno.ENOSPC, errno.EDQUOT))
            advice = f"what is committed is safe, {room}run again to continue"
            raise JobFailedError(f"cannot {what} {path}: {describe(error)}; {advice}") from error

    def _find(self, folder: str) -> dict[str, int]:
        """Return names and sizes of a folder's files. Raises FileNotFoundError where it does not exist."""
        rows = self.filesystem.ls(f"{self.root}/{folder}".rstrip("/"), detail=True)
        return {
            f"{folder}/{row['name'].rsplit('/', 1)[-1]}": int(row["size"] or 0)
            for row in rows
            if row["type"] == "file"
        }


def _check_folder(folder: Path) -> None:
    """Raise OSError where a folder is not writable, or does not exist and cannot be created."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write into {there}")
