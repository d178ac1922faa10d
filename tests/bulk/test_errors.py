"""What can be known before work begins: one clear line each, the right exit code, no Ray started."""

import gc
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from segray.bulk.crash_counts import Attempts
from tests.bulk.runs import MODELS, annotate, make_images, wait_for
from tests.servers import Server


def all_cpus_are_free() -> bool:
    state: Any = ray
    return bool(state.available_resources().get("CPU") == state.cluster_resources()["CPU"])


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    first, *lines = [line for line in error.splitlines() if line.startswith("segray: ")]
    assert first == "segray: annotate: checking the sources, the weights and the output"
    return [line for line in lines if line != "segray: starting Ray"]


def test_unknown_weights_name_the_known_ones(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert annotate(images, "--output", tmp_path / "out", "--weights", "coco-v3") == 2
    assert any("coco-v3" in line and "nuclei-small" in line for line in told(capsys))


@pytest.mark.usefixtures("ray_session")
def test_a_broken_factory_is_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert annotate(images, "--output", tmp_path / "out", "--weights", MODELS + "broken") == 2
    starting, line = told(capsys)
    assert "its messages: " in starting
    assert "no such file: weights.bin" in line


@pytest.mark.usefixtures("ray_session")
def test_a_job_that_fails_says_why_and_returns_its_cpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once: the next one in this process could wait for ever for them."""
    images = make_images(tmp_path / "in", 25, poisoned=tuple(range(25)))
    gc.collect()
    gc.disable()
    try:
        assert annotate(images, "--output", tmp_path / "out", "--weights", MODELS + "failing") == 1
        wait_for(all_cpus_are_free, 20, "CPUs")
    finally:
        gc.enable()
    reason = "RuntimeError: the model failed on each of its first 20 images: this picture is poisoned"
    assert f"segray: the pipeline broke: {reason}\n" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_a_job_that_waits_for_others_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segray.bulk.waiting.LOOK_EVERY_S", 0.5)
    wait_for(all_cpus_are_free, 20, "CPUs")
    other = ray.remote(num_cpus=2.5)(Attempts).remote()  # of 4; what it does is not asked
    threading.Timer(4, ray.kill, [other]).start()
    assert annotate(images, "--output", tmp_path / "out", "--weights", MODELS + "seeded") == 0
    line = "segray: the model has not started: it needs 2 CPUs, 1.5 of this Ray's 4 are free; other jobs may"
    told = re.sub(r"1\.\d+ of", "1.5 of", capsys.readouterr().err)  # decoders may have theirs already
    assert told.count(line) == 1


@pytest.mark.usefixtures("ray_session")
def test_nodes_that_do_not_join(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segray.cluster.NODES_S", 0.1)
    output = ("--output", tmp_path / "out", "--weights", MODELS + "seeded")
    assert annotate(images, *output, "--ray.nodes", "9") == 2
    assert told(capsys)[-1] == "segray: ray.nodes: 1 of 9 nodes joined the cluster within 0 s"


def test_an_empty_folder_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").write_text("no image")
    assert annotate(tmp_path / "empty", "--output", tmp_path / "out", "--weights", MODELS + "seeded") == 4
    assert told(capsys) == [f"segray: no image in {tmp_path}/empty (1 other names ignored)"]
    assert not (tmp_path / "out").exists()


def test_every_problem_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "file").write_text("a file where the output should be")
    code = annotate(
        tmp_path / "nowhere", "s3://no-such-bucket/x/", "--output", tmp_path / "file", "--weights", "nothing"
    )
    assert code == 2
    lines = told(capsys)
    assert any("nowhere" in line for line in lines)
    assert any("nothing" in line for line in lines)
    assert any("output" in line and "file" in line for line in lines)


@pytest.mark.parametrize("place", ["source", "output"])
def test_a_bucket_that_is_not_there_is_named(
    place: str,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    s3_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    bucket = "s3://no-such-bucket/labels"
    source, output = (bucket, tmp_path / "out") if place == "source" else (images, bucket)
    assert annotate(source, "--output", output, "--weights", MODELS + "seeded") == 2
    assert any("no-such-bucket" in line for line in told(capsys))


def test_a_dry_run_writes_nothing(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert annotate(images, "--output", output, "--weights", MODELS + "seeded", "--dry-run") == 0
    assert "100 files and 0 archives" in capsys.readouterr().out
    assert not output.exists()
