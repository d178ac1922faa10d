"""Distribute a cluster's CPUs and GPUs to readers, decoders and model actors; no Ray."""

from dataclasses import dataclass

from segray.bulk.settings import BulkSettings
from segray.cluster import Cluster
from segray.errors import SettingsError

READ_CPUS = 0.2
"""Readers wait for the network most of the time. Different from any decoder's share, else Ray fuses the two
stages and one big archive is decoded by the one worker that reads it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of each step."""

    device: str
    cpus: float
    actors: int
    min_actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int
    readers: int
    decoders: int
    decoder_cpus: float
    batch_size: int

    @property
    def table_rows(self) -> int:
        """Return the maximum images per table for the model: few, since a kill costs what has no result."""
        return max(16, 8 * self.batch_size)


def share_out(settings: BulkSettings, device: str, cluster: Cluster) -> Resources:
    """Return shares with which all model actors, a decoder and a reader fit at the same time.

    Raises SettingsError when the minimum of model actors, one decoder and one reader do not: Ray would wait
    for ever without a message.
    """
    from segray.models.device import default_batch_size

    on_gpu, fewest, cpus = device == "cuda", settings.min_actors, cluster.cpus
    fit = _gpu_slots(settings.gpus_per_actor, cluster) if on_gpu else max(1, int(cpus) // 4)
    if on_gpu and fit < fewest:
        raise SettingsError(
            f"device: {fewest} x {settings.gpus_per_actor:g} GPUs for the model are requested "
            f"(min_actors, gpus_per_actor), the cluster has {cluster.gpus:g}"
        )
    actors = max(fewest, min(settings.actors or fit, fit) if on_gpu else settings.actors or fit)
    share = settings.cpus_per_actor or min(cpus / 2 / actors, 1.0 if on_gpu else cluster.node_cpus / 2)
    decoder_cpus = 1.0 if on_gpu and cpus >= 4 else 0.25  # with a model on the CPU, decoding is cheap
    if share > cluster.node_cpus or share * fewest + decoder_cpus + READ_CPUS > cpus:
        raise SettingsError(
            f"cpus_per_actor: {fewest} x {share:g} for the model, {decoder_cpus:g} for a decoder and "
            f"{READ_CPUS:g} for a reader do not fit into {cpus:g} CPUs, {cluster.node_cpus:g} on a node"
        )
    actors = max(fewest, min(actors, int((cpus - decoder_cpus - READ_CPUS) / share)))
    room = cpus - share * actors - READ_CPUS
    return Resources(
        device=device,
        cpus=cpus,
        actors=actors,
        min_actors=fewest,
        actor_cpus=share,
        actor_gpus=settings.gpus_per_actor if on_gpu else 0.0,
        threads=max(1, int(settings.cpus_per_actor or min(cpus / actors, cluster.node_cpus))),
        readers=settings.readers or max(1, int(cpus) // 2),
        decoders=max(1, min(settings.decoders or int(cpus), int(room / decoder_cpus))),
        decoder_cpus=decoder_cpus,
        batch_size=settings.batch_size or default_batch_size(device),
    )


def _gpu_slots(gpus_per_actor: float, cluster: Cluster) -> int:
    """Return how many actors the GPUs hold: a fraction must be on one GPU, whole ones on one node."""
    if gpus_per_actor > cluster.node_gpus:
        return 0
    if gpus_per_actor < 1:
        return int(cluster.gpus) * int(1 / gpus_per_actor)
    return int(cluster.gpus / gpus_per_actor)
