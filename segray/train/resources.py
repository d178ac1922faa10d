"""Distribute a cluster's CPUs and GPUs to training workers and their loaders; no Ray."""

import math
from collections.abc import Set
from dataclasses import dataclass

from segray.cluster import READ_TASK_CPUS, Cluster
from segray.errors import SettingsError

LOADER_CPUS = 0.1
"""Ray's accounting, not a limit: training needs the cores more than decoding does."""
_LEAST_CPUS = 0.1
_EMULATE = frozenset({"V100", "P100", "T4", "P4", "K80"})
"""GPUs older than Ampere, as Ray names them: they emulate bfloat16, slower than float32."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Resources that each training worker reserves."""

    cpus: float
    gpus: float

    @property
    def of_a_worker(self) -> dict[str, float]:
        """Return the resources in Ray Train's format."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def multiply_bfloat16(accelerators: Set[str]) -> bool:
    """Return whether all GPUs of a cluster support bfloat16; accelerators: Ray's names of the known ones."""
    return not accelerators & _EMULATE


def share_out(workers: int, loaders: int, device: str, cluster: Cluster, least: int | None = None) -> Shares:
    """Return shares with which all workers and all of their loaders run at the same time.

    device: `cuda` or `cpu`. least: minimum workers, as the nodes come and go. Raises SettingsError where they
    do not fit: Ray would wait without a message.
    """
    if least is not None:
        return _elastic(workers, least, loaders, device, cluster)
    if device == "cuda" and workers > cluster.gpus:
        raise SettingsError(
            f"workers: {workers} with a GPU each are requested, there are {cluster.gpus:g}; "
            "request fewer, or set device to cpu"
        )
    share = min(1.0, cluster.cpus / workers - _stream(loaders), cluster.node_cpus)
    if share < _LEAST_CPUS:
        raise SettingsError(
            f"workers: {workers} with {loaders} loaders each do not fit into {cluster.cpus:g} CPUs; "
            "request fewer workers or loaders"
        )
    return Shares(_part(share), float(device == "cuda"))


def _elastic(workers: int, least: int, loaders: int, device: str, cluster: Cluster) -> Shares:
    """Fit workers per node: Ray fills a node with workers, and their loaders must still fit there."""
    stream = _stream(loaders)

    def on_a_node(share: float, cpus: float, gpus: float) -> int:
        return min(int(cpus // share), int(gpus) if device == "cuda" else workers)

    def fits(share: float) -> bool:
        return all(on_a_node(share, cpus, gpus) * (share + stream) <= cpus for cpus, gpus in cluster.nodes)

    def in_all(share: float) -> int:
        return min(workers, sum(on_a_node(share, *node) for node in cluster.nodes))

    whole = {_part(cpus / number - stream) for cpus, _ in cluster.nodes for number in range(1, workers + 1)}
    shares = [share for share in {1.0, *whole} if share >= _LEAST_CPUS and fits(share)]
    share = max(shares, key=lambda each: (in_all(each), min(each, 1.0), -each), default=1.0)
    number = in_all(share) if shares else 0
    if number < least:
        raise SettingsError(
            f"min_workers: {least} with {loaders} loaders each do not fit, the nodes have room for {number}; "
            "request fewer workers or loaders"
        )
    return Shares(share, float(device == "cuda"))


def _stream(loaders: int) -> float:
    """Return the CPUs of the processes that feed a worker."""
    return loaders * LOADER_CPUS + READ_TASK_CPUS


def _part(cpus: float) -> float:
    """Return at most `cpus`, in Ray's smallest fractions."""
    return math.floor(cpus * 10_000) / 10_000
