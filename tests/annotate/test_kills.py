"""kill -9 at random moments, then the same command again: the rows of an undisturbed run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.annotate.runs import (
    MODELS,
    committed,
    descendants,
    kill_tree,
    running,
    tables,
    wait_for,
)

QUICK = ("--commit-every-s", "0.2", "--ray.object-store-mib", "256")
START_S = 300.0
"""A loaded machine takes long to start Ray."""


def pids(driver: int, title: str) -> list[int]:
    """Processes of a driver that Ray titled so."""
    return [pid for pid, command in descendants(driver).items() if title in command]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_driver_loses_nothing_and_leaves_no_trace(
    seed: int, images: Path, expected: Path, tmp_path: Path
) -> None:
    output, chance = tmp_path / "out", random.Random(seed)
    run = (images, "--output", output, "--weights", MODELS + "slow", *QUICK)
    with running(*run) as driver:
        wait_for(lambda: committed(output) > chance.randint(1, 4), START_S, "the first commits")
        time.sleep(chance.random())
        kill_tree(driver.pid)
    assert not (output / "run.json").exists()
    safe = committed(output)
    assert safe > 0
    with running(*run) as driver:
        assert driver.wait(START_S) == 0, driver.stderr.read() if driver.stderr else ""
    assert tables(output) == tables(expected)
    rates = json.loads((output / "run.json").read_text())["rates"]
    assert rates["items"] < 100, "the second run did again what was committed"


def test_killed_workers_are_replaced_and_their_items_done_once(
    images: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with running(images, "--output", output, "--weights", MODELS + "slow", *QUICK) as driver:
        for title in ("MapBatches(_Annotate)", "MapBatches(_Decode)", "MapBatches(_Annotate)"):
            before = committed(output)
            wait_for(lambda n=before: committed(output) > n, START_S, "a commit")  # type: ignore[misc]
            for pid in pids(driver.pid, title):
                os.kill(pid, signal.SIGKILL)
        assert driver.wait(START_S) == 0, driver.stderr.read() if driver.stderr else ""
    assert tables(output) == tables(expected)


def test_an_interrupt_keeps_what_came_back(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with running(images, "--output", output, "--weights", MODELS + "slow", *QUICK) as driver:
        wait_for(lambda: committed(output) > 1, START_S, "the first commits")
        driver.send_signal(signal.SIGINT)
        _, told = driver.communicate(timeout=START_S)
        assert driver.returncode == 130
    assert "run the same command again to continue" in told
    assert "Traceback" not in told
    assert not (output / "_segray/lease.json").exists()


def test_a_second_live_run_is_refused(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = (images, "--output", output, "--weights", MODELS + "slow", *QUICK)
    with running(*run) as first:
        wait_for(lambda: (output / "_segray/lease.json").exists(), START_S, "the first run")
        with running(*run) as second:
            _, told = second.communicate(timeout=START_S)
            assert second.returncode == 2
        assert f"another run (process {first.pid} " in told
