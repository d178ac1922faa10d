"""The Ray that a job runs on: a cluster that is there, or one of our own on this machine.

Imports `ray` where it is used: the environment must be set before.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segray.errors import JobFailedError, SettingsError
from segray.quiet import loggers_to
from segray.settings import RaySettings

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no calls home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would upload the folder and install it again
    "RAY_raylet_start_wait_time_s": "120",  # 30 s are too short on a busy machine
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # after 1 s, each read would import Python anew
    "RAY_DATA_OBJECT_STORE_MEMORY_LIMIT_FRACTION": "0.7",  # of 0.5, encoded files left too little for pixels
}
"""Read by Ray when it is imported; what the user has set stays."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is: in all, and on the largest node, since an actor lives on one."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float
    nodes: tuple[tuple[float, float], ...] = ()
    """(CPUs, GPUs) of each."""


def start_ray(settings: RaySettings, log: Path) -> Cluster:
    """Connect to the cluster or start a Ray of our own, with Ray's noise in `log`."""
    import ray

    if not ray.is_initialized():
        address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
        own: dict[str, Any] = {}
        if address == "local":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            own = {
                "num_cpus": max(2, cores),
                "object_store_memory": settings.object_store_mib << 20,
                "include_dashboard": False,
            }
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if address == "local":
                raise JobFailedError(f"Ray did not start here: {reason}; its messages: {log}") from error
            raise SettingsError(f"ray.address: cannot use {address}: {reason}") from error
    loggers_to(log)
    # what a thread of Ray's prints of workers that died, and of an interrupted run's tasks, goes there too
    ray._private.worker.print_to_stdstream = _to_log  # type: ignore[assignment]
    nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus, gpus = ([node.get(kind, 0.0) for node in nodes] for kind in ("CPU", "GPU"))
    return Cluster(sum(cpus), sum(gpus), max(cpus), max(gpus), tuple(zip(cpus, gpus, strict=True)))


def _to_log(said: dict[str, Any], **_: Any) -> None:
    logging.getLogger("ray").warning("\n".join(said["lines"]))
