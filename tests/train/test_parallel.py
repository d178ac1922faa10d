"""Several processes train one model: after every step all of them hold the same weights."""

import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from segray.train import parallel
from segray.train.instances import InstanceTraining, TrainSettings
from tests.train.cells import write_cells
from tests.train.test_instances import tiny_settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker(rank: int, workers: int, port: int, settings: TrainSettings) -> None:
    """Run as a launcher would start it, and leave what this process ended with beside the output."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    training = InstanceTraining(settings)
    history = training.run()
    ended = {"model": training.model.state_dict(), "average": training.average.state_dict()}
    torch.save(ended | {"history": history}, settings.output.with_name(f"rank-{rank}.pt"))


def start(workers: int, settings: TrainSettings) -> None:
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [
        context.Process(target=worker, args=(rank, workers, port, settings)) for rank in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def test_all_workers_end_with_the_same_weights(tmp_path: Path) -> None:
    settings = tiny_settings(write_cells(tmp_path / "cells", images=14), tmp_path / "out")
    start(2, replace(settings, steps=4))
    ended = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    for part in ("model", "average"):
        for name, value in ended[0][part].items():
            assert torch.equal(value, ended[1][part][name]), name
    assert len(ended[0]["history"]) == 1  # rank 0 alone writes
    assert (tmp_path / "out" / "model.pt").exists()


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.start() == (0, 1)
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    before = layer.weight.grad.clone()
    assert parallel.average(layer, 0.5, 1) == 0.5
    assert torch.equal(layer.weight.grad, before)
