"""How a cluster is shared out: nothing may wait for what is not there, no GPU may idle for want of CPUs."""

from itertools import product

import pytest

from segray.annotate.settings import AnnotateSettings
from segray.bulk.resources import READ_CPUS, Resources, share_out
from segray.cluster import Cluster
from segray.errors import SettingsError


def settings(**given: float | None) -> AnnotateSettings:
    return AnnotateSettings.model_validate({"sources": ["x"], "output": "o", **given})


def shared_out(given: AnnotateSettings, cpus: float, gpus: float, nodes: int = 1) -> Resources:
    cluster = Cluster(cpus, gpus, cpus / nodes, gpus / nodes)
    return share_out(given, "cuda" if gpus else "cpu", cluster)


def test_everything_fits_whatever_is_asked_for() -> None:
    asked = product([None, 1, 3, 100], [1, 4], [None, 0.5, 4.0], [None, 1, 50])
    shared = 0
    for (actors, fewest, share, decoders), cpus, gpus in product(asked, [1, 2, 3, 4, 16, 64], [0, 1, 8]):
        if actors is not None and actors < fewest:
            continue
        given = settings(actors=actors, min_actors=fewest, cpus_per_actor=share, decoders=decoders)
        try:
            found = shared_out(given, cpus, gpus)
        except SettingsError:
            continue
        shared += 1
        used = found.actor_cpus * found.actors + found.decoder_cpus * found.decoders + READ_CPUS
        assert used <= cpus + 1e-9, (given, cpus, gpus)
        assert found.actor_gpus * found.actors <= gpus
        assert fewest <= found.actors <= (actors or 10**9)
        assert 1 <= found.decoders <= max(decoders or 10**9, 1)
    assert shared > 500


@pytest.mark.parametrize(
    ("cpus", "gpus", "actors", "decoders"),
    [(1, 0, 1, 1), (2, 0, 1, 2), (64, 0, 16, 64), (8, 1, 1, 6), (8, 8, 8, 3), (64, 8, 8, 55)],
)
def test_every_gpu_gets_an_actor_and_the_rest_decodes(
    cpus: int, gpus: int, actors: int, decoders: int
) -> None:
    found = shared_out(settings(), cpus, gpus)
    assert (found.actors, found.decoders) == (actors, decoders)


def test_fractions_of_a_gpu_hold_several_actors() -> None:
    assert shared_out(settings(gpus_per_actor=0.5), 16, 2).actors == 4
    assert shared_out(settings(gpus_per_actor=0.6), 16, 8).actors == 8


@pytest.mark.parametrize(
    ("given", "cpus", "gpus", "nodes", "told"),
    [
        ({"min_actors": 2}, 8, 1, 1, "device: 2 x 1 GPUs for the model"),
        ({"gpus_per_actor": 2.0}, 64, 8, 8, "device: 1 x 2 GPUs for the model"),
        ({"cpus_per_actor": 4}, 4, 0, 1, "cpus_per_actor: 1 x 4 for the model"),
        ({"cpus_per_actor": 8}, 64, 0, 16, "4 on a node"),
    ],
)
def test_what_cannot_fit_is_told_instead_of_waited_for(
    given: dict[str, float], cpus: int, gpus: int, nodes: int, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        shared_out(settings(**given), cpus, gpus, nodes)
