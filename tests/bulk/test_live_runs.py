"""Interrupts and second runs; kills are in `test_faults`."""

import json
import signal
from pathlib import Path

import pytest

from segray.status import status_of
from segray.storage import StorageSettings
from tests.bulk.harness import QUICK, START_S
from tests.bulk.runs import annotate, committed, running, wait_for


def test_a_second_live_run_is_refused_and_an_interrupt_keeps_what_came_back(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    run = (images, "--output", output, *QUICK)
    with running(*run) as first:
        wait_for(lambda: (output / "_segray/lease.json").exists(), START_S, "the first run")
        assert annotate(*run) == 2
        assert f"another run (process {first.pid} " in capsys.readouterr().err
        wait_for(lambda: committed(output) > 1, START_S, "the first commits")
        state = status_of(str(output), StorageSettings())
        assert (state.state, state.holder and state.holder["pid"]) == ("running", first.pid)
        assert 0 < state.counts["done"] <= len(list(images.iterdir()))
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGTERM)  # impatience must not break what the first one ends
        said, told = first.communicate(timeout=START_S)
        assert first.returncode == 130, told
    assert said == ""  # what Ray says of the tasks in hand is in its log
    assert "run the same command again to continue" in told
    assert "Traceback" not in told
    assert status_of(str(output), StorageSettings()).state == "stopped"
    assert json.loads((output / "_segray/lease.json").read_bytes())["released"]
