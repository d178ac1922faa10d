"""How a cluster's CPUs and GPUs are shared out among training workers and their loaders; no Ray."""

import math
from dataclasses import dataclass

from segray.cluster import Cluster
from segray.errors import SettingsError

LOADER_CPUS = 0.1
"""Ray's tally, not a limit: training needs the cores more than decoding does."""
PLACES_CPUS = 0.1
"""Of the task that says which pairs come when."""
_LEAST_CPUS = 0.1


@dataclass(frozen=True, slots=True)
class Shares:
    """What each training worker reserves."""

    cpus: float
    gpus: float

    @property
    def of_a_worker(self) -> dict[str, float]:
        """As Ray Train takes it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def share_out(workers: int, loaders: int, device: str, cluster: Cluster) -> Shares:
    """Shares with which all workers and all of their loaders run at the same time.

    device: `cuda` or `cpu`. Raises SettingsError where they do not fit: Ray would wait without a word.
    """
    if device == "cuda" and workers > cluster.gpus:
        raise SettingsError(
            f"workers: {workers} with a GPU each are asked for, there are {cluster.gpus:g}; "
            "ask for fewer, or set device to cpu"
        )
    streams = workers * (loaders * LOADER_CPUS + PLACES_CPUS)
    share = min(1.0, (cluster.cpus - streams) / workers, cluster.node_cpus)
    if share < _LEAST_CPUS:
        raise SettingsError(
            f"workers: {workers} with {loaders} loaders each do not fit into {cluster.cpus:g} CPUs; "
            "ask for fewer workers or loaders"
        )
    return Shares(math.floor(share * 10_000) / 10_000, float(device == "cuda"))  # Ray's smallest part
