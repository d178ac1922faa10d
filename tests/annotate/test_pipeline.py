"""How a cluster is shared out: nothing may wait for what is not there, no GPU may idle for want of CPUs."""

from itertools import product

import pytest

from segray.annotate.pipeline import READ_CPUS, share_out
from segray.errors import SettingsError
from segray.settings import AnnotateSettings


def settings(**given: float | None) -> AnnotateSettings:
    return AnnotateSettings.model_validate({"sources": ["x"], "output": "o", **given})


def test_everything_fits_whatever_is_asked_for() -> None:
    asked = product([None, 1, 3, 100], [1, 4], [None, 0.5, 4.0], [None, 1, 50])
    shared = 0
    for (actors, fewest, share, decoders), cpus, gpus in product(asked, [1, 2, 3, 4, 16, 64], [0, 1, 8]):
        given = settings(actors=actors, min_actors=fewest, cpus_per_actor=share, decoders=decoders)
        try:
            found = share_out(given, "cuda" if gpus else "cpu", cpus, gpus)
        except SettingsError:
            continue
        shared += 1
        used = found.actor_cpus * found.actors + found.decoder_cpus * found.decoders + READ_CPUS
        assert used <= cpus + 1e-9, (given, cpus, gpus)
        assert found.actor_gpus * found.actors <= gpus
        assert fewest <= found.actors <= max(actors or 10**9, fewest)
        assert 1 <= found.decoders <= max(decoders or 10**9, 1)
    assert shared > 500


@pytest.mark.parametrize(
    ("cpus", "gpus", "actors", "decoders"),
    [(1, 0, 1, 1), (2, 0, 1, 2), (64, 0, 16, 64), (8, 1, 1, 6), (8, 8, 8, 3), (64, 8, 8, 55)],
)
def test_every_gpu_gets_an_actor_and_the_rest_decodes(
    cpus: int, gpus: int, actors: int, decoders: int
) -> None:
    found = share_out(settings(), "cuda" if gpus else "cpu", cpus, gpus)
    assert (found.actors, found.decoders) == (actors, decoders)


def test_fractions_of_a_gpu_hold_several_actors() -> None:
    assert share_out(settings(gpus_per_actor=0.5), "cuda", 16, 2).actors == 4


@pytest.mark.parametrize(
    ("given", "cpus", "gpus", "told"),
    [
        ({"min_actors": 2}, 8, 1, "min_actors: 2 x 1 GPUs are asked for, the cluster has 1"),
        ({"cpus_per_actor": 4}, 4, 0, "cpus_per_actor: 1 x 4 for the model"),
    ],
)
def test_what_cannot_fit_is_told_instead_of_waited_for(
    given: dict[str, float], cpus: int, gpus: int, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        share_out(settings(**given), "cuda" if gpus else "cpu", cpus, gpus)
