"""`--log-format json`: each line that segray writes to stderr is one object, and stdout stays empty."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segray.cli import main
from segray.log import Log
from tests.bulk.runs import MODELS, annotate, make_images, running

JSON = ("--log-format", "json")
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def objects(text: str, verb: str) -> list[dict[str, Any]]:
    """The lines, each with what all of them have."""
    found = [json.loads(line) for line in text.splitlines()]
    for each in found:
        assert TIME.fullmatch(each["time"])
        assert each["level"] in ("info", "warning", "error")
        assert each["verb"] == verb
        assert not each["message"].startswith("segray")
    assert [each["time"] for each in found] == sorted(each["time"] for each in found)
    return found


def told(capsys: pytest.CaptureFixture[str], verb: str) -> list[dict[str, Any]]:
    """Those of a command that ran in this process."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return objects(captured.err, verb)


def test_a_run(tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = make_images(tmp_path / "in", 9), tmp_path / "out"
    (images / "broken.png").write_bytes(b"no picture")
    assert annotate(images, "--output", out, "--weights", MODELS + "seeded", *JSON) == 3
    lines = told(capsys, "annotate")
    record = json.loads((out / "run.json").read_text())
    progress = [line for line in lines if "images_per_s" in line and line["message"].startswith("annotate: ")]
    last = {name: progress[-1][name] for name in ("images", "total", "rejected", "instances", "tiles")}
    found = record["counts"]["instances"]
    assert last == {"images": 10, "total": 10, "rejected": 1, "instances": found, "tiles": 0}
    assert progress[-1].keys() >= {"images_per_s", "left_s"}
    messages = [line["message"] for line in lines]
    assert "10 items: 9 annotated, 1 rejected; " in " ".join(messages)
    assert f"output: file://{out}" in messages
    assert (lines[-1]["exit_code"], lines[-1]["level"]) == (3, "warning")
    assert lines[-1]["counts"] == record["counts"]
    assert lines[-1]["machine_hours"] == record["machine_hours"]


def test_a_run_that_fails(tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "in", 25, poisoned=tuple(range(25)))
    assert annotate(images, "--output", tmp_path / "out", "--weights", MODELS + "failing", *JSON) == 1
    *_, broke, again, end = told(capsys, "annotate")
    assert broke["message"].startswith("the pipeline broke: ")
    assert "run the same command again" in again["message"]
    assert (broke["level"], end["level"], end["exit_code"]) == ("error", "error", 1)


@pytest.mark.parametrize("where", ["flag", "flag=", "environment", "file"])
def test_wrong_settings(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever names the format, though not all of the settings can be used."""
    (tmp_path / "a.yaml").write_text("log_format: json\n")
    if where == "environment":
        monkeypatch.setenv("SEGRAY_LOG_FORMAT", "json")
    said = {"flag": [*JSON], "flag=": ["--log-format=json"], "file": ["--config", str(tmp_path / "a.yaml")]}
    assert main(["annotate", "x", "--tile", "3", "--nonsense", *said.get(where, [])]) == 2
    lines = told(capsys, "annotate")
    assert [line["message"].partition(":")[0] for line in lines[:3]] == ["--nonsense", "output", "tile"]
    assert {line["level"] for line in lines} == {"error"}
    assert lines[-1]["exit_code"] == 2


def test_a_flag_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *JSON, "--epochs"]) == 2
    assert told(capsys, "train")[0]["message"] == "argument --epochs: expected one argument"
    assert main(["train", "--epochs"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["segray: argument --epochs: expected one argument", "segray: see `segray train --help`"]


def test_what_was_asked_for_stays_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [str(make_images(tmp_path / "in", 2)), "--output", str(tmp_path / "out"), *JSON]
    assert main(["annotate", *common, "--print-config"]) == 0
    assert "log_format: json\n" in capsys.readouterr().out
    assert main(["annotate", *common, "--weights", MODELS + "seeded", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "dry run: nothing was written" in captured.out
    assert objects(captured.err, "annotate")[-1]["exit_code"] == 0


def test_what_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.begin("train", JSON)
    log.say("epoch 1", train_loss=math.nan, val_loss=math.inf, lr=0.1)
    (line,) = told(capsys, "train")
    assert (line["train_loss"], line["val_loss"], line["lr"]) == (None, None, 0.1)


def test_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, grey in (("maps", 1), ("labels", 0)):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), grey).save(tmp_path / folder / "a.png")
    where = [f"--{name}={tmp_path}/{folder}" for name, folder in
             (("predictions", "maps"), ("labels", "labels"), ("output", "out"))]  # fmt: skip
    assert main(["evaluate", *where, "--classes", "one,two", *JSON]) == 0
    lines = told(capsys, "evaluate")
    record = json.loads((tmp_path / "out/metrics.json").read_text())
    assert "done: 1 of 1 labels compared in" in lines[1]["message"]
    assert (lines[-1]["exit_code"], lines[-1]["counts"]) == (0, record["counts"])


def test_an_interrupt(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    options = ("--output", tmp_path / "out", "--weights", MODELS + "seeded", *JSON)
    with running(images, *options) as driver:
        assert driver.stderr is not None
        first = driver.stderr.readline()
        driver.send_signal(signal.SIGINT)
        _, rest = driver.communicate(timeout=120)
    *_, word, end = objects(first + rest, "annotate")
    assert word["message"] == "interrupted; run the same command again to continue"
    assert (word["level"], end["exit_code"], driver.returncode) == ("warning", 130, 130)


DIES = """
import os, sys
from segray.log import LOG
from segray.log_redirect import noise_to_file
LOG.begin("predict", sys.argv)
with noise_to_file():
    os._exit(9)
"""


@pytest.mark.parametrize("flags", [(), JSON])
def test_the_last_word_of_a_process_that_dies(flags: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, *flags], capture_output=True, text=True)
    assert done.returncode == 9
    if flags:
        (line,) = objects(done.stderr, "predict")
        assert line["level"] == "error"
        assert line["message"].startswith("the job died without an error message: it was killed, ")
    else:
        assert done.stderr.startswith("segray: the job died without an error message: it was killed, ")
        assert done.stderr.count("\n") == 1
