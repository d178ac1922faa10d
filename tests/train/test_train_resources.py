"""What training workers reserve: all of it fits, or the command says so."""

from itertools import combinations_with_replacement, product

import pytest

from segray.cluster import READ_TASK_CPUS, Cluster
from segray.errors import SettingsError
from segray.train.resources import LOADER_CPUS, multiply_bfloat16, share_out

CPUS, WORKERS, LOADERS = (1, 2, 3, 4, 7, 16, 96), (1, 2, 3, 4, 8, 31), (1, 2, 4, 16)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_workers_and_loaders_fit_at_the_same_time_or_are_refused(device: str) -> None:
    refused = 0
    for cpus, workers, loaders in product(CPUS, WORKERS, LOADERS):
        cluster = Cluster(cpus, 8, cpus, 8)
        streams = workers * (loaders * LOADER_CPUS + READ_TASK_CPUS)
        try:
            shares = share_out(workers, loaders, device, cluster)
        except SettingsError:
            refused += 1
            assert streams + workers * 0.1 > cpus - 1e-9 or (device == "cuda" and workers > 8)
            continue
        assert workers * shares.cpus + streams <= cpus + 1e-9
        assert 0.0999 < shares.cpus <= 1
        assert shares.of_a_worker.get("GPU", 0.0) == (device == "cuda")
    assert 0 < refused < len(CPUS) * len(WORKERS) * len(LOADERS)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_whatever_nodes_are_lost_the_loaders_of_the_others_fit(device: str) -> None:
    """Ray counts workers by what they reserve, node by node, up to `workers`."""
    refused = tried = full = 0
    for nodes in combinations_with_replacement([(1, 0), (2, 1), (4, 4), (16, 8)], 3):
        cluster = Cluster(0, 0, 0, 0, tuple(nodes))
        for workers, loaders in product((1, 2, 3, 8), (1, 2, 8)):
            tried += 1
            try:
                share = share_out(workers, loaders, device, cluster, 1).cpus
            except SettingsError:
                refused += 1
                continue
            most = 0
            for cpus, gpus in nodes:
                number = min(workers, int(cpus // share), gpus if device == "cuda" else workers)
                assert number * (share + loaders * LOADER_CPUS + READ_TASK_CPUS) <= cpus + 1e-9
                most += number
            assert most >= 1
            full += most >= workers
    assert refused < full
    assert full < tried


def test_a_refusal_says_what_to_ask_for() -> None:
    with pytest.raises(SettingsError, match=r"workers: 8 with 4 loaders each do not fit into 4 CPUs"):
        share_out(8, 4, "cpu", Cluster(4, 0, 4, 0))
    with pytest.raises(SettingsError, match=r"workers: 2 with a GPU each are requested, there are 1; "):
        share_out(2, 1, "cuda", Cluster(16, 1, 16, 1))
    with pytest.raises(
        SettingsError, match=r"min_workers: 3 with 4 loaders each do not fit, the nodes have room"
    ):
        share_out(4, 4, "cpu", Cluster(2, 0, 1, 0, ((1, 0), (1, 0))), 3)


@pytest.mark.parametrize(
    ("accelerators", "all_do"),
    [({"A100"}, True), ({"T4"}, False), ({"H100", "V100"}, False), (set(), True), ({"something new"}, True)],
)
def test_old_gpus_emulate_bfloat16(accelerators: set[str], all_do: bool) -> None:
    """One of them makes all workers wait."""
    assert multiply_bfloat16(accelerators) == all_do
