"""The Ray that a job runs on: an existing cluster, or one of our own on this machine.

Imports `ray` where it is used: the environment must be set before.
"""

import gc
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from segray.cpus import whole_cpus
from segray.errors import JobFailedError, NothingToDoError, SettingsError
from segray.interrupts import INTERRUPTS, handlers_kept
from segray.log import say
from segray.log_redirect import loggers_to
from segray.machines import COST, HOURS, Machines, hours_line
from segray.prometheus import REPORT_MS
from segray.ray_private import job_config, print_with
from segray.settings import RaySettings

if TYPE_CHECKING:
    from segray.own_ray import OwnRay

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no calls home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would upload the folder and install it again
    "RAY_worker_niceness": "0",  # at 15 other work on the machine takes nearly all of its cores
    "RAY_agent_register_timeout_ms": "600000",  # 30 s are too short on a busy machine,
    "RAY_worker_register_timeout_seconds": "600",  # and so are 60
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # after 1 s, each read would import Python anew
    "RAY_DATA_OBJECT_STORE_MEMORY_LIMIT_FRACTION": "0.7",  # of 0.5, encoded files left too little for pixels
}
"""Read by Ray when it is imported; values that the user has set are kept."""

NODES_S = 600.0
"""Seconds to wait for `ray.nodes`."""
READ_TASK_CPUS = 0.1
"""CPUs reserved by the read task of the sampler; Ray's accounting, not a limit."""
_LOOK_EVERY_S = 10.0
"""Polling interval for machines that come and go."""


def set_environment() -> None:
    """Set Ray's variables before its import; drop an empty PYTHONPATH entry, the working folder."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if path := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path.split(os.pathsep)))


@dataclass(frozen=True, slots=True)
class Cluster:
    """Resources: in all, and on the largest node, since an actor runs on one."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float
    nodes: tuple[tuple[float, float], ...] = ()
    """(CPUs, GPUs) of each node."""
    accelerators: frozenset[str] = frozenset()
    """Ray's names of its GPUs, such as `A100`."""


class RayStart:
    """Context manager: a Ray of our own, or the connection to a cluster.

    Nothing happens before `begin` or `cluster`. Ray starts in a thread: it takes seconds, mostly of waiting,
    during which the model is loaded. At the end a Ray of our own is stopped.
    """

    def __init__(
        self,
        settings: RaySettings,
        log: Path,
        load: Callable[[], object] = lambda: None,
        metrics_port: int | None = None,
    ) -> None:
        """Store the arguments; load: imports to do meanwhile. metrics_port: see `JobSettings`."""
        self._settings, self._log, self._load = settings, log, load
        self._metrics_port = metrics_port
        self.machines = Machines(settings.prices)
        """Machine-hours of the job; counted once Ray runs."""
        self._begun: Future[Cluster] | None = None
        self._own: OwnRay | PlainRay | None = None
        self._given_up, self._ends, self._over = (threading.Event() for _ in range(3))
        self.in_cluster = _in_cluster(settings)
        self.exports = self.in_cluster or metrics_port is not None
        """Whether metrics are exported."""

    def check(self) -> None:
        """Raise SettingsError where the port of metrics is taken; quick."""
        if self._metrics_port is None or self.in_cluster:
            return
        try:
            with socket.socket() as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the endpoint does
                one.bind(("127.0.0.1", self._metrics_port))
        except OSError as error:
            raise SettingsError(
                f"metrics_port: cannot listen on {self._metrics_port}: {error.strerror}"
            ) from error

    def hours_lines(self, record: Mapping[str, Any]) -> list[str]:
        """Return the summary's lines of machine-hours, where they are on a cluster or have a price."""
        return [hours_line(record)] if record.get(HOURS) and (self.in_cluster or COST in record) else []

    def begin(self) -> None:
        """Start it in a thread, or connect to it."""
        if self._begun is None:
            self._begun = Future()
            doing = "joining a Ray that runs" if self.in_cluster else "starting Ray"
            say(f"{doing}; its messages: {self._log} (kept if the job fails)")
            threading.Thread(target=self._start, name="segray-start-ray", daemon=True).start()

    def cluster(self) -> Cluster:
        """Return the resources, once Ray runs. Raises SettingsError and JobFailedError where it does not."""
        self.begin()
        assert self._begun is not None
        return self._begun.result()

    def _start(self) -> None:
        assert self._begun is not None
        try:
            self._load()
            if self._given_up.is_set():
                raise JobFailedError("the job ended before Ray was started")
            with handlers_kept():
                found = self._connect()
            self._begun.set_result(found)
        except BaseException as error:  # noqa: BLE001 - raised by `cluster`
            self._begun.set_exception(error)
            self._ends.set()
        while not self._ends.wait(_LOOK_EVERY_S):
            with suppress(Exception):  # the job itself notices errors of its Ray
                self._see_machines()
        self._over.wait()  # Linux kills the processes of Ray with the thread that started them

    def _see_machines(self) -> None:
        import ray

        self.machines.see(ray.nodes())  # type: ignore[no-untyped-call]

    def _connect(self) -> Cluster:
        import ray

        if not self.in_cluster:
            self._own = self._new_ray()
            self._own.start()
        elif not ray.is_initialized():
            self._join(self._settings.address or os.environ["RAY_ADDRESS"])
        if self.in_cluster:
            self._wait_for_nodes()
        self._see_machines()
        return _look_around(self._log)

    def _new_ray(self) -> "OwnRay | PlainRay":
        mib = self._settings.object_store_mib
        try:
            from segray.own_ray import OwnRay
        except (ImportError, AttributeError) as error:
            return PlainRay(mib, f"{error}")
        return OwnRay(mib, self._log, self._given_up, metrics_port=self._metrics_port)

    def _join(self, address: str) -> None:
        """Connect as `connect`; where nodes are awaited, the head may not exist yet either."""
        import ray

        deadline = time.monotonic() + (0 if self._settings.nodes is None else NODES_S)
        while True:
            try:
                connect(address)
                return
            except SettingsError:
                if time.monotonic() > deadline or self._given_up.is_set():
                    raise
            ray.shutdown()
            time.sleep(1)

    def _wait_for_nodes(self) -> None:
        """Wait for the nodes of a cluster that starts with the job.

        Raises SettingsError when some are missing.
        """
        import ray

        started, wanted = time.monotonic(), self._settings.nodes or 1
        while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:  # type: ignore[no-untyped-call]
            if time.monotonic() - started > NODES_S or self._given_up.is_set():
                raise SettingsError(
                    f"ray.nodes: {there} of {wanted} nodes joined the cluster within {NODES_S:.0f} s"
                )
            time.sleep(0.5)

    def __enter__(self) -> "RayStart":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        if error is not None:
            self._given_up.set()
        if self._begun is not None and not self.in_cluster:
            self._begun.exception()  # wait for it
        INTERRUPTS.ignore()
        if self._own is not None:
            if self._metrics_port is not None and error is None:
                time.sleep(1.5 * REPORT_MS / 1000)  # the last figures reach the endpoint
            self._own.stop(keep=error is not None and not isinstance(error, SettingsError | NothingToDoError))
        elif self._begun is not None and error is not None:
            _end_actors(error)
        self._over.set()


class PlainRay:
    """A Ray as `ray.init` starts it: for a release that lacks what `own_ray` needs. Slower and noisier."""

    def __init__(self, object_store_mib: int, reason: str) -> None:
        """Store the settings; reason: what is missing, one line."""
        self._object_store_mib, self._reason = object_store_mib, reason

    def start(self) -> None:
        """Start it, and warn that it listens on all addresses of this machine. Raises JobFailedError."""
        import ray

        say(
            f"ray {ray.__version__} is newer than segray knows ({self._reason}): started with its defaults, "
            "it listens on every address of this machine",
            "warning",
        )
        try:
            ray.init(
                address="local",
                num_cpus=max(2, whole_cpus()),
                object_store_memory=self._object_store_mib << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=job_config(),
            )
        except Exception as error:
            raise JobFailedError(f"Ray did not start here: {error}") from error

    def stop(self, *, keep: bool) -> None:
        """End its processes; keep: whether to keep its logs, which Ray always does."""
        import ray

        ray.shutdown()


def configure_ray_data(stall_timeout_s: float) -> Any:
    """Set, and return, this process's context of Ray Data; it fails after `stall_timeout_s` without progress.

    A block is one table as a step made it (one row, see `arrow_rows.packed`): Ray neither merges nor cuts.
    Pools grow with the work and never shrink: Ray would end an actor that waits for a slow step or for
    memory, and start another, which imports for seconds.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = stall_timeout_s
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    return context


def _end_actors(error: BaseException) -> None:
    """End the actors that a broken job has in a Ray that goes on.

    Ray Data only lets go of them, and its callbacks and state, the error and its frames refer to each other:
    until Python collected all of it, the actors would keep their CPUs, and the next job in this process could
    wait for those for ever.
    """
    causes, cause = list[BaseException](), error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in (error, *causes):
        traceback.clear_frames(each.__traceback__)
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):  # of Ray Data, about to end
            thread.join(5)
    gc.collect()


def connect(address: str) -> None:
    """Join a running cluster. Raises SettingsError."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=job_config())
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"ray.address: cannot use {address}: {reason}") from error


def _look_around(log: Path) -> Cluster:
    import ray

    loggers_to(log)
    # output of Ray's thread on dead workers, and on an interrupted run's tasks, goes there too
    print_with(_to_log)
    nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus, gpus = ([node.get(kind, 0.0) for node in nodes] for kind in ("CPU", "GPU"))
    kind = "accelerator_type:"
    named = {name.removeprefix(kind) for node in nodes for name in node if name.startswith(kind)}
    by_node = tuple(zip(cpus, gpus, strict=True))
    return Cluster(sum(cpus), sum(gpus), max(cpus), max(gpus), by_node, frozenset(named))


def _in_cluster(settings: RaySettings) -> bool:
    """Return whether a cluster is named, or Ray runs in this process already; else a local one is started."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return True
    return (settings.address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def _to_log(said: dict[str, Any], **_: Any) -> None:
    logging.getLogger("ray").warning("\n".join(said["lines"]))
