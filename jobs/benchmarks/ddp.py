"""`segray train` with two workers, by Ray Train, against a plain DDP script by torchrun: images a second.

Same network, weights, order, decoder and loaders; both take channels_last. Time in steps counts, waiting for
batches included; the first epoch does not, nor do scores and checkpoints. The gate: both learn the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

import numpy as np

from jobs.benchmarks import commands
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pairs import FRAMING_FLAGS, pairs_of

WORKERS, LOADERS, BATCH, LR = 2, 1, 8, 1e-3


@dataclass(frozen=True)
class Work:
    """What both arms do."""

    data: Path
    scratch: Path
    epochs: int
    width: int
    size: int


def figures(options: Options) -> Iterator[Figure]:
    """On the CPU, by gloo; U-Net and cross-entropy."""
    number, *sizes = (32, 2, 8, 96) if options.quick else (options.images or 64, 4, 32, 320)
    work = Work(pairs_of(options, number), options.scratch, *sizes)
    told: dict[str, list[list[float]]] = {"segray": [], "plain": []}

    def rate(name: str, arm: Callable[[Work], list[dict[str, Any]]]) -> float:
        lines = arm(work)
        told[name].append([line["train_loss"] for line in lines])
        return float(harmonic_mean([line["images_per_s"] for line in lines[1:]]))

    # the first is segray's: its model file says what the script trains
    ours, theirs = take_turns(
        [lambda: rate("segray", segray), lambda: rate("plain", plain)], options.rounds(3)
    )
    same = np.allclose(told["segray"], told["plain"], rtol=1e-2)
    check(same, f"ddp: losses {told['segray'][0]}, of the plain script {told['plain'][0]}")
    fact = (
        f"width {work.width}, {work.size} px, batches of {BATCH}, {WORKERS} workers with {LOADERS} loader; "
        f"{median(ours):.2f} against {median(theirs):.2f} images/s"
    )
    yield Figure("DDP by segray train / plain script by torchrun", ">= 0.98", ratios(ours, theirs), [fact])


def segray(work: Work) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    output = work.scratch / "ddp"
    shutil.rmtree(output, ignore_errors=True)
    commands.python(
        *("-m", "segray.cli", "train", "--data", work.data, "--output", output, "--device", "cpu"),
        *("--workers", WORKERS, "--loaders", LOADERS, "--batch-size", BATCH, "--epochs", work.epochs),
        *("--size", work.size, *FRAMING_FLAGS, "--loss", "ce", "--optimizer", "adam", "--weight-decay", 0),
        *("--lr", LR, "--schedule", "constant", "--arch-settings", json.dumps({"width": work.width})),
    )
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def plain(work: Work) -> list[dict[str, Any]]:
    """Likewise."""
    output = work.scratch / "ddp.json"
    commands.python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", WORKERS),
        *("-m", "jobs.benchmarks.ddp_plain", work.data, work.scratch / "ddp/model.pt"),
        *(BATCH, work.epochs, LOADERS, LR, output),
    )
    lines: list[dict[str, Any]] = json.loads(output.read_text())
    return lines
