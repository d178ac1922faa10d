"""The training loop: it learns, and a killed run goes on to exactly the same weights."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor

from segray.models.maskrcnn import CompactSettings
from segray.models.modelfile import load_model_file
from segray.train.augment import AugmentSettings
from segray.train.checkpoint import load_checkpoint
from segray.train.instances import InstanceTraining, TrainSettings, learning_rate, parse_settings
from tests.train.cells import write_cells

TINY = CompactSettings(
    stem_width=8, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), fpn_width=16, box_width=32, mask_widths=(16,)
)


def tiny_settings(data: Path, output: Path) -> TrainSettings:
    """Return a run of eight steps that takes a second or two."""
    return TrainSettings(
        data=data,
        output=output,
        steps=8,
        batch_size=2,
        warmup_steps=2,
        checkpoint_every=1,
        score_every=4,
        arch_settings=asdict(TINY),
        min_size=128,
        max_size=128,
        augment=AugmentSettings(crop=96, resize_to=128),
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    folder = tmp_path_factory.mktemp("train")
    return tiny_settings(write_cells(folder / "cells", images=14), folder / "whole")


@pytest.fixture(scope="module")
def whole(settings: TrainSettings) -> InstanceTraining:
    training = InstanceTraining(settings)
    training.run()
    return training


def run(settings: TrainSettings) -> None:
    torch.set_num_threads(1)  # as the tests do: sums over threads differ in the last bit
    InstanceTraining(settings).run()


def killed_in_the_middle(settings: TrainSettings) -> int:
    """Train in a process of its own, kill -9 it after a few steps, and return the step it had saved."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(settings,))
    process.start()
    checkpoint = settings.output / "checkpoint.pt"
    deadline = time.monotonic() + 120
    saved = 0
    while saved < 2 and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
        state = load_checkpoint(checkpoint)
        saved = state["step"] if state else 0
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    state = load_checkpoint(checkpoint)
    assert state is not None
    return int(state["step"])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_killed_run_ends_with_the_same_weights(settings: TrainSettings, whole: InstanceTraining) -> None:
    broken = replace(settings, output=settings.output.with_name("killed"))
    assert 2 <= killed_in_the_middle(broken) < settings.steps
    resumed = InstanceTraining(broken)
    resumed.run()
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.average.state_dict(), whole.average.state_dict())
    for line, expected in zip(resumed.history, whole.history, strict=True):
        assert {**line, "images_per_s": 0} == {**expected, "images_per_s": 0}


def test_a_finished_run_does_nothing(settings: TrainSettings, whole: InstanceTraining) -> None:
    before = (settings.output / "model.pt").stat().st_mtime_ns
    again = InstanceTraining(settings)
    assert again.run() == whole.history
    assert (settings.output / "model.pt").stat().st_mtime_ns == before


def test_what_a_run_leaves(settings: TrainSettings, whole: InstanceTraining) -> None:
    lines = [json.loads(line) for line in (settings.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert lines == whole.history
    loaded = load_model_file(settings.output / "model.pt")
    assert loaded.categories == {4: "cell"}
    assert loaded.card.arch_settings == asdict(TINY)
    mean = torch.stack([image.pixels.float().mean((1, 2)) / 255 for image in whole.splits["train"]]).mean(0)
    assert loaded.card.image_mean == pytest.approx(mean.tolist(), abs=1e-4)


def test_the_loop_learns(settings: TrainSettings, tmp_path: Path) -> None:
    training = InstanceTraining(replace(settings, output=tmp_path, steps=60, lr=2e-3, precision="fp32"))
    losses = []
    for training.step in range(60):
        losses.append(training.train_step())
    assert median(losses[-20:]) < 0.85 * median(losses[:10])


def test_the_rate_rises_then_falls_to_zero(settings: TrainSettings) -> None:
    long = replace(settings, steps=1000, warmup_steps=100, lr=1.0)
    rates = [learning_rate(long, step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert rates[550] == pytest.approx(0.5, abs=0.1)
    assert rates[1000] == pytest.approx(0.0)
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_the_command_sets_numbers_and_paths(tmp_path: Path) -> None:
    parsed = parse_settings(["--data", str(tmp_path), "--output", "out", "--steps", "7", "--lr", "0.5"])
    assert (parsed.data, parsed.output, parsed.steps, parsed.lr) == (tmp_path, Path("out"), 7, 0.5)
    with pytest.raises(SystemExit):
        parse_settings(["--output", "out"])
