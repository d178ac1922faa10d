"""The objects of an output folder, on every storage: read, and written by one run at a time.

Fencing: a writer that was stopped between a look at its lease and a write does one more write when it wakes,
whoever holds the lease by then. So an object is first put under `_segray/unpublished/`, where nobody reads,
and then, if the lease still is ours, moved to its name by one operation that fails when its source is gone:
a rename, or a copy on the server. Who takes the lease empties that folder before all else, so that a move
either came before, and is seen, or never comes. A late removal finds what its run alone wrote (names carry
the lease's generation), what the next run removes as well, or another version than it may remove (`retract`).
Where a storage neither moves in one operation nor compares versions, the one write that was under way when
its run was stopped may still be carried out; nothing after it is.
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
from segray.conditional import (
    ChangedError,
    Versioned,
    delete_atomically,
    read_versioned,
    replace_atomically,
)
from segray.errors import JobFailedError, SettingsError
from segray.retries import retrying
from segray.sources.roundtrips import describe
from segray.storage import StorageSettings, open_filesystem

T = TypeVar("T")
IMAGES, INSTANCES = "images", "instances"
UNPUBLISHED = "_segray/unpublished"
_GENERATION = re.compile(rf"{UNPUBLISHED}/(\d+)-|-g(\d+)(?:\.[a-z]+)?$")


def mark(generation: int) -> str:
    """What a name that one generation alone writes ends with, before its suffix."""
    return f"-g{generation}" if generation else ""


def generation_in(name: str) -> int:
    """Which generation wrote it, by its name; 0 where that does not say."""
    found = _GENERATION.search(name)
    return int(found[1] or found[2]) if found else 0


class Output:
    """Reads and writes objects of one output. Only one process may have it open (see `lock`)."""

    def __init__(self, url: str, storage: StorageSettings) -> None:
        self.filesystem, self.root = open_filesystem(url, storage)
        self.storage = storage
        self.fence: Callable[[], None] = lambda: None
        """Called before every write; raises JobFailedError once another run holds the output (see `lock`)."""
        self.generation = 0
        """Of the lease under which this store writes; 0: without one."""

    def check_usable(self) -> None:
        """Raise SettingsError within seconds when the output cannot be: no bucket, no rights, not ours."""
        impatient = self.storage.model_copy(update={"attempts": 4})
        try:
            if "file" in self.filesystem.protocol:
                _check_folder(Path(self.root))
            else:
                retrying(self._check_bucket, impatient)
        except FileNotFoundError as error:
            raise SettingsError(
                f"output: there is no bucket or container {self.root.split('/', 1)[0]}; make it first"
            ) from error
        except OSError as error:
            raise SettingsError(f"output: cannot use {self.root}: {describe(error)}") from error
        if self.read("_segray/plan.json") is None and (
            self.files(IMAGES) or self.files(INSTANCES) or self.read("run.json") is not None
        ):
            raise SettingsError(
                f"output: {self.root} holds {IMAGES}/, {INSTANCES}/ or run.json that no run of segray made; "
                "choose a folder of its own"
            )

    def _check_bucket(self) -> None:
        try:
            self._find("")
        except FileNotFoundError:
            with suppress(PermissionError):  # rights may end at the prefix
                self.filesystem.ls(self.root.split("/", 1)[0])

    # --- small files ---------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Put one object, whole or not at all."""
        self._publish(name, lambda path: put_aside(self.filesystem, path, data), data)

    def create(self, name: str, data: bytes) -> None:
        """As `write`, of a name that nobody else writes. Raises FileExistsError, on a disk, if one does."""
        self._publish(name, lambda path: put_aside(self.filesystem, path, data), data, replaces=False)

    def copy(self, name: str, to: str) -> None:
        """The same bytes under another name as well. Raises FileNotFoundError."""
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
        """`put` where nobody reads, then move: see the head. Raises JobFailedError where it is too late."""
        path = f"{self.root}/{name}"
        aside = f"{self.root}/{UNPUBLISHED}/{self.generation}-{uuid.uuid4().hex}"
        self.fence()
        try:
            self._request(what, path, lambda: put(aside))
            self.fence()  # after: what was put before another run took the lease is what that run takes away
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
            # else an answer was lost, as on NFS: it was done, and is done again in vain

    def _taken_over(self) -> JobFailedError:
        return JobFailedError(f"another run took {self.root} over while this one slept; this one stops")

    def put(self, name: str, data: bytes) -> None:
        """Put one object in one request, where a late one is harmless: see `predict.windows`."""
        self.fence()
        path = f"{self.root}/{name}"
        self._request("write", path, lambda: put_atomically(self.filesystem, path, data))

    def put_file(self, name: str, path: Path) -> None:
        """As `put`, of a local file."""
        self.fence()
        target = f"{self.root}/{name}"
        self._request("write", target, lambda: put_file_atomically(self.filesystem, target, path))

    def replace(self, name: str, data: bytes, version: str | None) -> None:
        """Put one object where that version is, or none is. Of two callers at once one wins.

        Raises FileExistsError (ChangedError). The lease alone is written so: it asks for none.
        """
        path = f"{self.root}/{name}"
        if version is None:
            self._request("write", path, lambda: create_atomically(self.filesystem, path, data))
        else:
            self._request("write", path, lambda: replace_atomically(self.filesystem, path, data, version))

    def read_versioned(self, name: str) -> Versioned | None:
        """One object's bytes and version, for `replace`; None where there is none."""
        path = f"{self.root}/{name}"
        try:
            return self._request("read", path, lambda: read_versioned(self.filesystem, path))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """One object's bytes; None where there is none."""
        path = f"{self.root}/{name}"
        try:
            return self._request("read", path, lambda: bytes(self.filesystem.cat_file(path)))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """One JSON object; None where there is none. Raises JobFailedError where it is damaged."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise JobFailedError(f"{self.root}/{name} is damaged: {error}; delete it") from error

    def write_json(self, name: str, value: Any) -> None:
        """Put one JSON object, readable."""
        self.write(name, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

    def delete(self, name: str) -> None:
        """Remove one object; it is no error if it is gone already.

        A removal that comes late must be harmless: no later run writes this name, or wants to read it.
        """
        self.fence()
        self._remove(f"{self.root}/{name}")

    def retract(self, name: str) -> None:
        """Remove one object of a name that later runs write, too: theirs stays. No error if it is gone."""
        there = self.read_versioned(name)
        self.fence()  # after: what was read is not of a run that came later
        if there is not None:
            try:
                self.remove(name, there.version)
            except ChangedError as error:
                raise self._taken_over() from error

    def remove(self, name: str, version: str) -> None:
        """Remove one object if it is that version. Raises ChangedError."""
        path = f"{self.root}/{name}"
        self._request("delete", path, lambda: delete_atomically(self.filesystem, path, version))

    def delete_folder(self, name: str) -> None:
        """Remove all objects below but those of later generations; it is no error if there are none."""
        self.fence()
        path = f"{self.root}/{name}"
        with suppress(FileNotFoundError):
            self._request("delete", path, lambda: self._remove_below(path))

    def begin(self, generation: int, fence: Callable[[], None]) -> int:
        """Write under a lease from here on.

        First what earlier ones did not publish is taken away: returns of how many. Nothing else of the output
        may be read before that.
        """
        self.generation, self.fence = generation, fence
        late = [name for name in self.files(UNPUBLISHED) if generation_in(name) <= generation]
        for name in late:
            self.delete(name)
        return len(late)

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
        """Names (relative to the output) and sizes of the files directly in a folder; empty if none."""
        try:
            return self._request("list", f"{self.root}/{folder}", lambda: self._find(folder))
        except FileNotFoundError:
            return {}

    def _request(self, what: str, path: str, call: Callable[[], T]) -> T:
        """`call` with retries. Raises JobFailedError naming the place when the storage refuses."""
        try:
            return retrying(call, self.storage)
        except (FileNotFoundError, FileExistsError) as error:
            if what == "write" and isinstance(error, FileNotFoundError):
                raise JobFailedError(f"cannot write {path}: {describe(error)}") from error
            raise
        except OSError as error:
            room = "make room, then " * (error.errno in (errno.ENOSPC, errno.EDQUOT))
            advice = f"what is committed is safe, {room}run again to continue"
            raise JobFailedError(f"cannot {what} {path}: {describe(error)}; {advice}") from error

    def _find(self, folder: str) -> dict[str, int]:
        """Raises FileNotFoundError where there is no such folder."""
        rows = self.filesystem.ls(f"{self.root}/{folder}".rstrip("/"), detail=True)
        return {
            f"{folder}/{row['name'].rsplit('/', 1)[-1]}": int(row["size"] or 0)
            for row in rows
            if row["type"] == "file"
        }


def _check_folder(folder: Path) -> None:
    """Raise OSError when a folder is not there and cannot be made, or cannot be written into."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"no right to write into {there}")
