"""Trainings that lose a worker, are interrupted or killed whole end as one that nobody disturbed."""

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bulk.runs import descendants, kill_tree, running, wait_for
from tests.servers import Server
from tests.train.squares import EPOCHS, STEPS, arguments, figures, train

START_S = 300.0
"""A loaded machine takes long to start Ray."""
SAVING = ("--epochs", EPOCHS, "--checkpoint-every-s", 0)
"""Each step is kept, and takes as long as a write does: time for a kill in the middle of an epoch."""


@lru_cache(1)
def progress(data: bytes) -> tuple[int, int]:
    """(epoch, steps of it) that a checkpoint holds; asked often, so the last answer is kept."""
    state = torch.load(io.BytesIO(data), weights_only=True)
    return state["training"]["epoch"], state["position"]


def assert_as_undisturbed(metrics: str, whole: Path, atol: float = 1e-4) -> None:
    """The same steps, losses and scores."""
    found, expected = figures(metrics), figures((whole / "metrics.jsonl").read_text())
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    assert np.allclose(found, expected, atol=atol)


class Killer(threading.Thread):
    """kill -9 of the training worker's process, once a checkpoint has come into the middle of an epoch."""

    def __init__(self, read: Callable[[], bytes], epoch: int) -> None:
        super().__init__(daemon=True)
        self._read, self._epoch = read, epoch
        self.killed_at: tuple[int, int] | None = None

    def run(self) -> None:
        """Until it has struck."""
        while self.killed_at is None:
            time.sleep(0.05)
            try:
                at = progress(self._read())
            except Exception:  # noqa: BLE001 - not there yet; each storage has its own error
                continue
            if at[0] >= self._epoch and 0 < at[1] < STEPS:
                for pid, command in descendants(os.getpid()).items():
                    if "RayTrainWorker" in command:
                        os.kill(pid, signal.SIGKILL)
                        self.killed_at = progress(self._read())


def test_a_bucket_and_a_worker_that_is_lost(
    data: Path, whole: Path, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and output lie on S3; the run heals by itself, and shows no credentials."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    for path in data.rglob("*.png"):
        s3_server.put(f"train/data/{path.relative_to(data)}", path.read_bytes())
    killer = Killer(lambda: s3_server.get("train/out/checkpoints/last.pt"), epoch=1)
    killer.start()
    assert train(s3_server.url("train/data"), s3_server.url("train/out"), *SAVING) == 0
    assert killer.killed_at is not None
    assert killer.killed_at < (EPOCHS, 0)
    assert_as_undisturbed(s3_server.get("train/out/metrics.jsonl").decode(), whole)
    names = {name.removeprefix("train/out/") for name in s3_server.names("train/out/")}
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"_segray", "checkpoints", "samples", "tensorboard"}
    assert names > {
        "_segray/plan.json", "_segray/survey.parquet", "checkpoints/last.pt", "curves.png", "metrics.jsonl",
        "model.pt", "run.json", "splits.csv",
    }  # fmt: skip
    for name in names:
        assert b"tester" not in s3_server.get(f"train/out/{name}"), name
    again = s3_server.url("train/out/splits.csv")
    assert train(again, s3_server.url("train/out"), *SAVING) == 0  # the same data by another name


def test_a_run_that_is_interrupted_and_then_killed_goes_on(data: Path, whole: Path, tmp_path: Path) -> None:
    """Each time in the middle of an epoch, in a Ray of its own; first as a service manager stops a unit."""
    output = tmp_path / "out"
    command = arguments(data, output, *SAVING)
    last = output / "checkpoints/last.pt"
    survey = output / "_segray/survey.parquet"

    def is_in_the_middle_of(epoch: int) -> bool:
        if not last.exists():
            return False
        at = progress(last.read_bytes())
        return at[0] >= epoch and 0 < at[1] < STEPS

    with running(*command, verb="train") as driver:
        wait_for(lambda: is_in_the_middle_of(0) or driver.poll() is not None, START_S, "the first steps")
        for pid in [driver.pid, *descendants(driver.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        _, told = driver.communicate(timeout=START_S)
        assert driver.returncode == 130, told
    assert "run the same command again to continue" in told
    assert "Traceback" not in told
    assert json.loads((output / "_segray/lease.json").read_bytes())["released"]
    interrupted, read = progress(last.read_bytes()), survey.stat().st_mtime_ns
    with running(*command, verb="train") as driver:
        wait_for(
            lambda: is_in_the_middle_of(interrupted[0] + 1) or driver.poll() is not None,
            START_S,
            "the next epoch",
        )
        assert driver.poll() is None
        kill_tree(driver.pid)
        driver.communicate()
    killed = progress(last.read_bytes())
    assert interrupted < killed < (EPOCHS, 0)
    assert not json.loads((output / "_segray/lease.json").read_bytes())["released"]
    assert train(data, output, *SAVING) == 0
    assert_as_undisturbed((output / "metrics.jsonl").read_text(), whole)
    assert survey.stat().st_mtime_ns == read
