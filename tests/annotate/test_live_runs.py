"""Interrupts and second runs; kills are in `test_faults`."""

import json
import signal
from pathlib import Path

from tests.annotate.harness import QUICK, START_S
from tests.annotate.runs import committed, running, wait_for


def test_an_interrupt_keeps_what_came_back(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with running(images, "--output", output, *QUICK) as driver:
        wait_for(lambda: committed(output) > 1, START_S, "the first commits")
        driver.send_signal(signal.SIGINT)
        driver.send_signal(signal.SIGTERM)  # impatience must not break what the first one ends
        said, told = driver.communicate(timeout=START_S)
        assert driver.returncode == 130, told
    assert said == ""  # what Ray says of the tasks in hand is in its log
    assert "run the same command again to continue" in told
    assert "Traceback" not in told
    assert json.loads((output / "_segray/lease.json").read_bytes())["released"]


def test_a_second_live_run_is_refused(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = (images, "--output", output, *QUICK)
    with running(*run) as first:
        wait_for(lambda: (output / "_segray/lease.json").exists(), START_S, "the first run")
        with running(*run) as second:
            _, told = second.communicate(timeout=START_S)
            assert second.returncode == 2
        assert f"another run (process {first.pid} " in told
