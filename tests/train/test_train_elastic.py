"""Nodes that come and go while a model is trained, on a real cluster of several Rays on this machine."""

from pathlib import Path

from tests.bulk.cluster import AUTH, cluster
from tests.bulk.runs import running, wait_for
from tests.train.squares import EPOCHS, STEPS, arguments
from tests.train.test_train_kills import SAVING, START_S, assert_as_undisturbed, progress

SOON = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
"""Ray counts on the lost node for a while; then it looks again how many workers there is room for."""


def test_a_node_that_is_lost_for_good(data: Path, whole: Path, tmp_path: Path) -> None:
    """Two workers on a node each; one goes on alone, and ends as one that nobody disturbed."""
    output = tmp_path / "out"
    last = output / "checkpoints/last.pt"
    command = arguments(data, output, *SAVING, "--workers", 2, "--min-workers", 1)

    def is_in_the_middle() -> bool:
        at = progress(last.read_bytes()) if last.exists() else (0, 0)
        return at[0] >= 1 and 0 < at[1] < STEPS

    with (
        cluster(2, replaced=False) as (address, lose),
        running(*command, verb="train", env=AUTH | SOON | {"RAY_ADDRESS": address}) as driver,
    ):
        wait_for(lambda: is_in_the_middle() or driver.poll() is not None, START_S, "an epoch's middle")
        assert driver.poll() is None
        assert lose(0)
        lost = progress(last.read_bytes())
        _, told = driver.communicate(timeout=START_S)
    assert driver.returncode == 0, told
    assert (1, 0) < lost < (EPOCHS, 0)
    # two workers sum in another order: undisturbed ones end up to 0.002 from `whole`, which is of one worker
    assert_as_undisturbed((output / "metrics.jsonl").read_text(), whole, atol=5e-3)
