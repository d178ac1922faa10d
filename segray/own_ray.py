"""A local Ray for one job: on loopback only, behind a token, in a private folder, and retried if slow.

Ray itself listens on every address, limits a start on a busy machine to 15 seconds (the raylet waits for the
ports of its agents) and 30 (the driver waits for the raylet), and writes a token into the user's home.
Here the ports are chosen beforehand, so that nobody waits for them; the raylet is polled as long as it lives;
and a start that fails is repeated with a new session.
"""

import fcntl
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray
import ray._private.node
from ray._private import services
from ray._raylet import persist_port  # type: ignore[attr-defined]

from segray import dev_shm
from segray.cpus import whole_cpus
from segray.errors import JobFailedError, SettingsError
from segray.log import say
from segray.prometheus import REPORT_MS
from segray.ray_private import job_config

LOOPBACK = "127.0.0.1"
PATIENCE_S = (60.0, 120.0, 240.0, 480.0)
"""Seconds that each attempt waits for the raylet to register."""
_SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
_SOCKET_NAME = len("/r/session_2026-11-29_14-07-00_123456_4194304/sockets/plasma_store.1")
"""Bytes of a socket's path after Ray's folder (sockaddr_un holds 108, and 104 on macOS)."""
_PREFIX, _ALIVE = "segray-", "alive"
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_AGENT_PORTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port",
)  # fmt: skip
_LOOPBACK_NAME = "lo" if sys.platform.startswith("linux") else "lo0"
_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": _LOOPBACK_NAME,  # where training workers listen for each other; the default is the
    "NCCL_SOCKET_IFNAME": _LOOPBACK_NAME,  # interface of the host's name
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each training: no node is preempted here
    "RAY_TRAIN_METRICS_ENABLED": "0",  # for a dashboard
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",  # likewise; its agent polls all processes every 5 s
    "RAY_event_stats": "0",  # statistics, task events and dumps of states that nobody reads here
    "RAY_task_events_report_interval_ms": "0",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_raylet_start_wait_time_s": "3",  # then we poll whether it lives; Ray waits for 30
}


class _Node(ray._private.node.Node):
    """Ray's node with ports, addresses and timeouts of our choice."""

    newest: "_Node | None" = None
    patience_s = PATIENCE_S[0]
    given_up: threading.Event
    ports: ClassVar[Mapping[str, int]] = {}
    """Ports of its agents that were set by the caller."""

    def __init__(self, ray_params: Any, **how: Any) -> None:
        _Node.newest = self
        ports = _free_ports(_AGENT_PORTS, _Node.ports)
        ray_params.update(node_ip_address=LOOPBACK, include_log_monitor=False, no_monitor=True, **ports)
        with _signals_blocked():
            super().__init__(ray_params, **how)

    def start_api_server(self, **_: Any) -> None:
        """Start no dashboard and no autoscaler: each of these processes adds a second to the start."""
        self._webui_url = ""

    def start_ray_processes(self) -> None:
        """Return when the raylet has registered. Raises _NotStartedError when it died or takes too long."""
        for name in _AGENT_PORTS:  # the raylet would wait for its agents to write these files
            persist_port(self._session_dir, self.node_id, name, getattr(self._ray_params, name))
        super().start_ray_processes()  # type: ignore[no-untyped-call]
        deadline = time.monotonic() + _Node.patience_s
        raylet = self.all_processes["raylet"][0].process
        while True:
            try:
                services.get_node(self.gcs_address, self.node_id)  # type: ignore[no-untyped-call]
                return
            except RuntimeError as error:
                if raylet.poll() is not None:
                    raise _NotStartedError(f"its raylet ended with status {raylet.returncode}") from error
                if time.monotonic() > deadline:
                    late = f"its raylet did not register in {_Node.patience_s:.0f} s"
                    raise _NotStartedError(late) from error
            if _Node.given_up.wait(0.2):
                raise _NotStartedError("the job ended meanwhile")

    def kill_all_processes(
        self, check_alive: bool = True, allow_graceful: bool = False, wait: bool = False
    ) -> None:
        """Kill at once, child processes included: SIGTERM is blocked, and Ray would wait for it.

        The raylet's agents would search for it for another minute.
        """
        children = [child for raylet in self.all_processes.get("raylet", []) for child in _children(raylet)]
        super().kill_all_processes(check_alive=False, allow_graceful=False, wait=wait)
        for child in children:
            with suppress(psutil.Error):
                child.kill()


class _NotStartedError(Exception):
    """Ray's processes did not start."""


class OwnRay:
    """A local Ray from `start` to `stop`."""

    def __init__(
        self,
        object_store_mib: int,
        log: Path,
        given_up: threading.Event,
        cpus: int | None = None,
        metrics_port: int | None = None,
    ) -> None:
        """Keep the settings; nothing starts yet.

        given_up: set when the job ends while Ray is still being started in another thread.
        cpus: logical CPUs for Ray to schedule; by default those this process may use, at least two.
        metrics_port: port of the Prometheus endpoint; None for no fixed port.
        """
        self._ports = {} if metrics_port is None else {"metrics_export_port": metrics_port}
        self._cpus = cpus or max(2, whole_cpus())
        self._object_store_mib, self._log, self._given_up = object_store_mib, log, given_up
        self._folders = ExitStack()
        self._session = Path()

    def start(self) -> None:
        """Start Ray, in up to four attempts.

        Raises SettingsError where no folder for it can be written, JobFailedError where all attempts fail.
        """
        last = len(PATIENCE_S)
        for number, patience_s in enumerate(PATIENCE_S, 1):
            _Node.patience_s, _Node.given_up, _Node.ports = patience_s, self._given_up, self._ports
            try:
                self._start()
                return
            except SettingsError:
                raise
            except Exception as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                kept = self.stop(keep=True)
                message = f"Ray did not start here: {reason}; its messages: {kept}"
                if number == last or self._given_up.is_set():
                    raise JobFailedError(f"{message}; attempts: {number}") from error
                say(f"{message}; trying again ({number + 1} of {last})", "warning")

    def _start(self) -> None:
        folder, spill = _folders()
        self._session = folder
        for each in filter(None, (folder, spill)):
            self._folders.enter_context(_kept_alive(each))
        metrics = {"RAY_enable_metrics_collection": "0"}
        if self._ports:
            metrics = {"RAY_metrics_report_interval_ms": str(REPORT_MS)}
        self._folders.enter_context(_environment(_ENVIRONMENT | metrics))
        self._folders.enter_context(_token(folder / "token"))
        store = _object_store_bytes(self._object_store_mib)
        with _patched_node():
            ray.init(
                address="local",
                num_cpus=self._cpus,
                object_store_memory=store,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=job_config(),
                _temp_dir=str(folder / "r"),  # Ray makes it world-writable; our folder above it is private
                object_spilling_directory=None if spill is None else str(spill),
            )

    def stop(self, *, keep: bool) -> Path:
        """End Ray's processes and remove their folder; return the path of the logs, copied if `keep`."""
        with suppress(Exception):  # it may have started in part only
            ray.shutdown()
        if _Node.newest is not None:
            with suppress(Exception):
                _Node.newest.kill_all_processes()
            _Node.newest = None
        kept = self._log
        if keep and (found := list(self._session.glob("r/session_2*/logs"))):
            with suppress(OSError, shutil.Error):
                kept = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix="-ray-logs"))
                shutil.copytree(found[0], kept / found[0].parent.name, ignore_dangling_symlinks=True)
                with self._log.open("a") as log:
                    log.write(f"the logs of Ray's own processes: {kept}\n")
        self._folders.close()
        return kept


def _children(process: Any) -> list[psutil.Process]:
    """Return all descendants of a process that `Node` has started."""
    with suppress(psutil.Error):
        return list(psutil.Process(process.process.pid).children(recursive=True))
    return []


@contextmanager
def _patched_node() -> Iterator[None]:
    """Replace Ray's node by ours: `ray.init` has no setting for its listening address nor its agents' ports.

    (It turns a loopback address into the public one.)
    """
    original = ray._private.node.Node
    ray._private.node.Node = _Node  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        ray._private.node.Node = original  # type: ignore[misc]


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes with SIGTERM and SIGHUP blocked: the driver ends them when it is done.

    A service manager sends these signals to all processes at once. The driver still has to commit finished
    results, and Ray's C++ code would end the driver as soon as the raylet is gone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _token(file: Path) -> Iterator[None]:
    """Write Ray's token to a file that only this user can read; the home folder may not be writable."""
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as written:
        written.write(generate_new_authentication_token())
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_TOKEN": None}):
        Config.initialize("")  # both cache what they read before
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables or, for None, unset them, for the block: the user's values are meant for a cluster."""
    before = {name: os.environ.pop(name, None) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _kept_alive(folder: Path) -> Iterator[None]:
    """Lock `folder` and remove it at the end; also remove the unlocked folders of this user's killed runs."""
    for alive in folder.parent.glob(f"{_PREFIX}*/{_ALIVE}"):
        with suppress(OSError), alive.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(alive.parent)
    with (folder / f".{_ALIVE}").open("xb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Path(held.name).rename(folder / _ALIVE)  # it appears under this name only when locked
        try:
            yield
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock file last: killed processes may still write, and a later start cleans up."""
    for _ in range(20):
        others = [path for path in folder.iterdir() if path.name != _ALIVE]
        if not others:
            break
        for path in others:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(names: tuple[str, ...], given: Mapping[str, int]) -> dict[str, int]:
    """Return a free loopback port for each name, below the range the system uses for ephemeral ports."""
    found = dict(given)
    for name in names:
        while name not in found:
            port = random.randrange(10_000, 32_768)
            with suppress(OSError), socket.socket() as one:
                one.bind((LOOPBACK, port))
                if port not in found.values():
                    found[name] = port
    return found


def _folders() -> tuple[Path, Path | None]:
    """Return (private folder of the session, spill folder where that is a different one).

    Ray's sockets lie in the first and need a short path; spilled objects need the disk space of TMPDIR.
    Raises SettingsError where no folder can be written.
    """
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=wanted))  # mode 0700
    except OSError as error:
        raise SettingsError(f"RAY_TMPDIR: cannot write into {wanted}: {error.strerror}") from error
    if _has_room_for_sockets(folder):
        return folder, None
    for parent in _SHORT_FOLDERS:
        with suppress(OSError):
            short = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            if _has_room_for_sockets(short):
                return short, folder
            short.rmdir()
    folder.rmdir()
    raise SettingsError(
        f"TMPDIR: {wanted} is too long for Ray's sockets ({len(os.fsencode(wanted))} bytes, "
        f"at most {_SOCKET_BYTES - _SOCKET_NAME - len('/segray-12345678')}), and none of "
        f"{', '.join(_SHORT_FOLDERS)} is writable; set RAY_TMPDIR to a shorter folder"
    )


def _has_room_for_sockets(folder: Path) -> bool:
    return len(os.fsencode(folder)) + _SOCKET_NAME <= _SOCKET_BYTES


def _object_store_bytes(mib: int) -> int:
    if advice := dev_shm.advice(mib):
        say(advice, "warning")
    return mib << 20
