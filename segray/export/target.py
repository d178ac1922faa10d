"""Where an export goes: one file, whole or not at all, or a folder whose `export.json` is finished last.

A folder has a lease, as the outputs of other verbs: a second live export into it is refused.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from segray.atomic import put_atomically, put_file_atomically
from segray.errors import JobFailedError, SettingsError
from segray.output.folder import Output
from segray.output.io import check_output, read_if_there
from segray.output.lease import Lease
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, open_filesystem, shown

RECORD = "export.json"
"""In a folder: what was exported into it, with which settings, and whether that is finished."""
INTERNAL = "_segray"
"""Folder of the lease."""
_WRITERS = 16
_AHEAD = 256
"""Files that wait to be written."""


class Target:
    """An output. Use as a context manager: on leaving, all files are written."""

    def __init__(self, url: str, storage: StorageSettings, *, is_folder: bool) -> None:
        self.url, self.is_folder, self._storage = url.rstrip("/"), is_folder, storage
        self._filesystem, path = open_filesystem(self.url, storage)
        self._path = path.rstrip("/")
        self._pool = ThreadPoolExecutor(_WRITERS, "segray-export")
        self._waiting: deque[Future[None]] = deque()
        self._lease: Lease[Output] | None = None

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        try:
            if kind is None:
                self._wait(0)
        finally:
            if self._lease is not None:
                self._lease.__exit__(None, None, None)

    def found(self, identity: dict[str, Any], *, overwrite: bool) -> bool:
        """Return whether this export is already there, finished.

        Raises SettingsError where nothing can be written, or something else is there.
        """
        if not self.is_folder:
            self._check_file(overwrite=overwrite)
            return False
        check_output(self.url, self._storage)
        record = self._record()
        if record is None and self._holds_something():
            raise SettingsError(f"output: {shown(self.url)} holds something else; choose an empty folder")
        if record is None or not record.get("finished"):
            return False
        same = record.get("identity") == identity
        if not same and not overwrite:
            raise SettingsError(
                f"output: {shown(self.url)} holds another export; choose another folder, or --overwrite"
            )
        return same

    def begin(self, identity: dict[str, Any], files: Iterable[str], folders: Iterable[str]) -> None:
        """Mark a folder as begun, and delete what an earlier export left there.

        files, folders: what this export writes, so that a later one knows what to delete. Raises HeldError
        while another export writes there.
        """
        if not self.is_folder:
            return
        lease = Lease(Output(self.url, self._storage))
        lease.__enter__()
        self._lease = lease
        before = self._record() or {}
        owned = [
            sorted({*before.get(kind, []), *now}) for kind, now in (("files", files), ("folders", folders))
        ]
        self._write_record({"finished": False, "identity": identity, "files": owned[0], "folders": owned[1]})
        for name in (*owned[0], *owned[1]):
            self._delete(name)
        self._delete_temporary({RECORD, *owned[0]})

    def finish(self, identity: dict[str, Any], more: dict[str, Any]) -> None:
        """Mark a folder as complete; its files must be written."""
        if self.is_folder:
            record = self._record() or {}
            self._write_record({**record, "finished": True, "identity": identity, **more})

    def put(self, name: str, data: bytes) -> None:
        """Write a file of a folder, in the background."""
        path = f"{self._path}/{name}"
        self._waiting.append(
            self._pool.submit(self._stored, lambda: put_atomically(self._filesystem, path, data))
        )
        self._wait(_AHEAD)

    def put_local(self, name: str, local: Path) -> None:
        """Write a file of a folder, or the one file, whose name is empty, from a local one."""
        path = f"{self._path}/{name}".rstrip("/")
        if "file" in self._filesystem.protocol:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._stored(lambda: put_file_atomically(self._filesystem, path, local))

    def flush(self) -> None:
        """Wait until all files are written; raise what went wrong."""
        self._wait(0)

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _check_file(self, *, overwrite: bool) -> None:
        parent, _, _ = self.url.rpartition("/")
        check_output(parent or "/", self._storage)
        try:
            info = retrying(lambda: self._filesystem.info(self._path), self._storage.hasty)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SettingsError(f"output: {shown(self.url)}: {describe(error)}") from error
        if info["type"] == "directory":
            raise SettingsError(f"output: {shown(self.url)} is a folder; the format is one file")
        if not overwrite:
            raise SettingsError(f"output: {shown(self.url)} exists; choose another name, or --overwrite")

    def _record(self) -> dict[str, Any] | None:
        data = read_if_there(f"{self.url}/{RECORD}", self._storage, "output")
        with suppress(ValueError):
            record = json.loads(data or b"")
            return record if isinstance(record, dict) and "identity" in record else None
        return None

    def _write_record(self, record: dict[str, Any]) -> None:
        data = json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"
        path = f"{self._path}/{RECORD}"
        self._stored(lambda: put_atomically(self._filesystem, path, data))

    def _holds_something(self) -> bool:
        """Return whether there are files; hidden ones and a lease, as a kill leaves them, do not count."""
        try:
            names = retrying(lambda: self._filesystem.ls(self._path, detail=False), self._storage.hasty)
        except FileNotFoundError:
            return False
        last = [name.rstrip("/").rpartition("/")[2] for name in names]
        return any(not name.startswith(".") and name != INTERNAL for name in last)

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._stored(lambda: self._filesystem.rm(f"{self._path}/{name}", recursive=True))

    def _delete_temporary(self, names: Iterable[str]) -> None:
        """Delete what a kill left in the middle of writing files of these names, see `put_atomically`."""
        if "file" in self._filesystem.protocol:
            for path in (Path(self._path, name) for name in names):
                for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
                    left.unlink(missing_ok=True)

    def _stored(self, call: Callable[[], None]) -> None:
        """Call, again where an error is transient. Raises JobFailedError, FileNotFoundError as it is."""
        if self._lease is not None:
            self._lease.check()
        try:
            retrying(call, self._storage)
        except FileNotFoundError:
            raise
        except Exception as error:  # each library has its own types
            raise JobFailedError(
                f"cannot write to {shown(self.url)}: {describe(error)}; run the command again"
            ) from error
