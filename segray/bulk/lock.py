"""One live run an output: a lease that the holder renews, and that a killed run leaves behind.

The lease is an object made with the storage's conditional put, so that of two runs that start together one
wins. It is taken over at once when its process is known to be dead (same machine), else when it has not
been renewed for `EXPIRES_S`. The holder reads before it renews: one that lost its lease stops its job.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from segray.bulk.store import Store
from segray.errors import JobFailedError, SettingsError

NAME = "_segray/lease.json"
RENEW_S = 15.0
EXPIRES_S = 90.0
SETTLE_S = 2.0


class Lock:
    """Context manager. Raises SettingsError on entry while another run is live."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.run_id = uuid.uuid4().hex
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="segray-lease", daemon=True)

    def refuse_second_run(self) -> None:
        """Raise SettingsError while another run is live; cheap, so that it can be asked early."""
        holder = self._holder()
        if holder is not None and _is_live(holder):
            raise SettingsError(
                f"output: {self.store.root} is being written by another run (process {holder['pid']} on "
                f"{holder['host']}); wait for it, or if it was killed on another machine, "
                f"try again in {EXPIRES_S:.0f} s"
            )

    def __enter__(self) -> "Lock":
        # a create whose answer was lost is sent again and then finds its own lease
        if not self._create() and self._holder_id() != self.run_id:
            self.refuse_second_run()
            self.store.write_json(NAME, self._lease())
            time.sleep(SETTLE_S)  # of two that take over at once, the last writer wins and the other sees it
            if self._holder_id() != self.run_id:
                raise SettingsError(f"output: another run took {self.store.root} over at the same moment")
        self._renewed = time.monotonic()
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewer.join()
        with suppress(JobFailedError):  # it expires by itself; what was done stays done
            if self._holder_id() == self.run_id:
                self.store.delete(NAME)

    def check(self) -> None:
        """Raise JobFailedError when another run has taken the output over."""
        if self._lost.is_set() or time.monotonic() - self._renewed > EXPIRES_S:
            raise JobFailedError(f"another run took {self.store.root} over, or may have; this one stops")

    def _lease(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "renewed_at": time.time(),
        }

    def _create(self) -> bool:
        """Whether the lease was made; False where one is there already."""
        try:
            self.store.create(NAME, json.dumps(self._lease()).encode())
        except FileExistsError:
            return False
        return True

    def _holder(self) -> dict[str, Any] | None:
        try:
            lease = self.store.read_json(NAME)
        except JobFailedError:
            return None  # half a lease: its writer died in the middle of the write
        wanted = {"run_id": str, "host": str, "pid": int, "renewed_at": float}
        if not isinstance(lease, dict) or any(not isinstance(lease.get(n), k) for n, k in wanted.items()):
            return None
        return lease

    def _holder_id(self) -> str | None:
        holder = self._holder()
        return None if holder is None else str(holder["run_id"])

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            with suppress(OSError, JobFailedError):  # `check` notices when it goes on for too long
                if self._holder_id() != self.run_id:
                    self._lost.set()
                    return
                self.store.write_json(NAME, self._lease())
                self._renewed = time.monotonic()


def _is_live(holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname() and holder.get("boot") == _boot_id():
        started = _process_start(int(holder["pid"]))
        return started != "" and started == str(holder.get("started"))
    return time.time() - float(holder["renewed_at"]) < EXPIRES_S


def _boot_id() -> str:
    """Tells this boot (and, as the PID namespace, this container) from others; empty where unknown."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + namespace
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Tells a process from a later one of the same number; empty when it does not run.

    Clock ticks since boot where /proc has them; elsewhere the number alone must do.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self").exists():
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return str(pid)
