"""A Ray of our own on this machine: on loopback alone, behind a token, in a private folder, and persistent.

Ray itself listens on every address, gives a start that a busy machine makes slow 15 seconds (the raylet for
the ports of its agents) and 30 (the driver for the raylet), and writes a token into the user's home.
Here the ports are chosen beforehand, so that nobody waits for them; the raylet is watched as long as it
lives; and what did not start is started again with a new session.
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

from segray import shared_memory
from segray.cpus import whole_cpus
from segray.errors import JobFailedError, SettingsError
from segray.log import say
from segray.ray_private import job_config
from segray.watching import REPORT_MS

LOOPBACK = "127.0.0.1"
PATIENCE_S = (60.0, 120.0, 240.0, 480.0)
"""Of each try, until the raylet has registered."""
_SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
_SOCKET_NAME = len("/r/session_2026-11-29_14-07-00_123456_4194304/sockets/plasma_store.1")
"""Bytes of a socket's path behind Ray's folder (sockaddr_un holds 108, and 104 on macOS)."""
_PREFIX, _ALIVE = "segray-", "alive"
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_AGENT_PORTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port",
)  # fmt: skip
_LOOPBACK_NAME = "lo" if sys.platform.startswith("linux") else "lo0"
_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": _LOOPBACK_NAME,  # where training workers listen for each other; else where the
    "NCCL_SOCKET_IFNAME": _LOOPBACK_NAME,  # host's name leads to
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each training: no node is taken away here
    "RAY_TRAIN_METRICS_ENABLED": "0",  # for a dashboard
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",  # likewise; its agent looks at all processes every 5 s
    "RAY_raylet_start_wait_time_s": "3",  # then we look whether it lives; Ray waits for 30
}


class _Node(ray._private.node.Node):
    """The processes of a Ray, as we want them."""

    newest: "_Node | None" = None
    patience_s = PATIENCE_S[0]
    given_up: threading.Event
    ports: ClassVar[Mapping[str, int]] = {}
    """Of its agents, those that are given."""

    def __init__(self, ray_params: Any, **how: Any) -> None:
        _Node.newest = self
        ports = _free_ports(_AGENT_PORTS, _Node.ports)
        ray_params.update(node_ip_address=LOOPBACK, include_log_monitor=False, no_monitor=True, **ports)
        with _spared_by_signals():
            super().__init__(ray_params, **how)

    def start_api_server(self, **_: Any) -> None:
        """None: nobody looks at a dashboard or autoscales; each such process is a second more to start."""
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
        """At once: they do not hear SIGTERM, which the usual way waits for; and with those they started.

        The raylet's agents would look for it for another minute.
        """
        children = [child for raylet in self.all_processes.get("raylet", []) for child in _children(raylet)]
        super().kill_all_processes(check_alive=False, allow_graceful=False, wait=wait)
        for child in children:
            with suppress(psutil.Error):
                child.kill()


class _NotStartedError(Exception):
    """Ray's processes did not come up."""


class OwnRay:
    """One Ray, from `start` to `stop`."""

    def __init__(
        self,
        object_store_mib: int,
        log: Path,
        given_up: threading.Event,
        cpus: int | None = None,
        metrics_port: int | None = None,
    ) -> None:
        """given_up: set when nobody wants it any more, while it is being started in another thread.

        cpus: that Ray deals with; by default what this process may use, and not fewer than two.
        metrics_port: where Prometheus metrics are to be had, and soon.
        """
        self._ports = {} if metrics_port is None else {"metrics_export_port": metrics_port}
        self._cpus = cpus or max(2, whole_cpus())
        self._object_store_mib, self._log, self._given_up = object_store_mib, log, given_up
        self._folders = ExitStack()
        self._session = Path()

    def start(self) -> None:
        """Start it, several times if need be. Raises SettingsError and JobFailedError."""
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
                told = f"Ray did not start here: {reason}; its messages: {kept}"
                if number == last or self._given_up.is_set():
                    raise JobFailedError(f"{told}; tries: {number}") from error
                say(f"{told}; trying again ({number + 1} of {last})", "warning")

    def _start(self) -> None:
        folder, spill = _folders()
        self._session = folder
        for each in filter(None, (folder, spill)):
            self._folders.enter_context(_kept_alive(each))
        soon = {"RAY_metrics_report_interval_ms": str(REPORT_MS)} if self._ports else {}
        self._folders.enter_context(_environment(_ENVIRONMENT | soon))
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
                _temp_dir=str(folder / "r"),  # Ray lets everybody write there, if they get through ours
                object_spilling_directory=None if spill is None else str(spill),
            )

    def stop(self, *, keep: bool) -> Path:
        """End its processes and remove its folder; returns where its logs are, if they are to be kept."""
        with suppress(Exception):  # half a Ray
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
    """Of a process that `Node` has started."""
    with suppress(psutil.Error):
        return list(psutil.Process(process.process.pid).children(recursive=True))
    return []


@contextmanager
def _patched_node() -> Iterator[None]:
    """`ray.init` has no setting for the address it listens on (it turns loopback into the public one), and
    none for its agents' ports."""
    original = ray._private.node.Node
    ray._private.node.Node = _Node  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        ray._private.node.Node = original  # type: ignore[misc]


@contextmanager
def _spared_by_signals() -> Iterator[None]:
    """Processes that are started here do not hear SIGTERM and SIGHUP: the driver ends them when it is done.

    A service manager sends them to all processes at once. The driver commits what came back, and Ray's C++
    in it would end it as soon as the raylet is gone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _token(file: Path) -> Iterator[None]:
    """Ray's token in a file that only this user reads, not in the home, which may not be writable."""
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as written:
        written.write(generate_new_authentication_token())
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_TOKEN": None}):
        Config.initialize("")  # both keep what they read before
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set or, for None, unset for a while: what the user has set there is meant for a cluster."""
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
    """Remove it at the end, and what killed runs of this user left beside it: nobody holds their locks."""
    for alive in folder.parent.glob(f"{_PREFIX}*/{_ALIVE}"):
        with suppress(OSError), alive.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(alive.parent)
    with (folder / f".{_ALIVE}").open("xb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Path(held.name).rename(folder / _ALIVE)  # nobody sees it without its lock
        try:
            yield
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    """The locked file last, so that a later start finds what is left: killed processes may still write."""
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
    """A free port on loopback for each name, of those that the system gives to nobody who asks for any."""
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
    """(private folder of the session, folder to spill to where that is another one).

    Ray's sockets lie in the first and need a short path; what is spilled needs the room that TMPDIR has.
    """
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=wanted))  # mode 0700
    except OSError as error:
        raise SettingsError(f"RAY_TMPDIR: cannot write into {wanted}: {error.strerror}") from error
    if _has_room_for_sockets(folder):
        return folder, None
    for place in _SHORT_PLACES:
        with suppress(OSError):
            short = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            if _has_room_for_sockets(short):
                return short, folder
            short.rmdir()
    folder.rmdir()
    raise SettingsError(
        f"TMPDIR: {wanted} is too long for Ray's sockets ({len(os.fsencode(wanted))} bytes, "
        f"{_SOCKET_BYTES - _SOCKET_NAME - len('/segray-12345678')} are possible), and nothing can be written "
        f"into {', '.join(_SHORT_PLACES)}; set RAY_TMPDIR to a shorter folder"
    )


def _has_room_for_sockets(folder: Path) -> bool:
    return len(os.fsencode(folder)) + _SOCKET_NAME <= _SOCKET_BYTES


def _object_store_bytes(mib: int) -> int:
    if told := shared_memory.advice(mib):
        say(told, "warning")
    return mib << 20
