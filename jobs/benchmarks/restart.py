"""A job that is killed when half is done, and again at half of the rest, against one that is left alone.

The kills come at a drawn moment after that, since commits come a few seconds apart.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.benchmarks.measure import Figure, Options, check, ratios, stopwatch, take_turns
from jobs.benchmarks.pictures import folder_of
from jobs.benchmarks.processes import kill, started, wait_for

STUB = "python:jobs.benchmarks.stub:slow"
WAIT_S = 0.1
LATER_S = 8.0
"""Most seconds between the commit that makes a half and the kill."""


def figures(options: Options) -> Iterator[Figure]:
    """A stub model that waits 0.1 s an image, so that one process is the bottleneck and the CPU is not."""
    folder = folder_of(options, options.images or (60 if options.quick else 2500))
    whole, killed = options.scratch / "restart-whole", options.scratch / "restart-killed"
    seconds = take_turns([lambda: run(folder, whole, 0), lambda: run(folder, killed, 2)], options.rounds(1))
    check(rows(whole) == rows(killed), "restart: other rows after two kills")
    number, ((alone, *_), (disturbed, *_)) = len(list(folder.iterdir())), seconds
    fact = f"{number} pictures; {disturbed:.0f} s with two kills, {alone:.0f} s without"
    yield Figure("killed at a half, twice / undisturbed", "<= 1.2", ratios(seconds[1], seconds[0]), [fact])


def run(folder: Path, output: Path, kills: int) -> float:
    """Seconds of all starts together."""
    shutil.rmtree(output, ignore_errors=True)
    items, chance = sum(1 for _ in folder.iterdir()), random.Random(kills)
    arguments = ("annotate", folder, "--output", output, "--weights", STUB, "--device", "cpu")
    with stopwatch() as seconds:
        for number in range(kills):
            until = items - items / 2 ** (number + 1)
            with started("-m", "segray.cli", *arguments) as process:
                wait_for(lambda: committed(output) >= until, process)  # noqa: B023 - called in this turn
                time.sleep(chance.uniform(0, min(LATER_S, items * WAIT_S / 8)))
                check(process.poll() is None, "restart: the job was done before it could be killed")
                kill(process)
        with started("-m", "segray.cli", *arguments) as process:
            process.wait()
    check(process.returncode == 0, f"restart: the last run ended with {process.returncode}")
    return seconds()


def committed(output: Path) -> int:
    """Items that would not be done again."""
    total = 0
    for path in [*output.glob("_segray/staging/*.parquet"), *output.glob("images/*.parquet")]:
        try:
            total += pq.read_metadata(path).num_rows
        except FileNotFoundError:  # merged in between
            continue
    return total


def rows(output: Path) -> list[list[dict[str, Any]]]:
    """Of the ledger and of the instances, by id."""
    keys = {"images": "image_id", "instances": "instance_id"}
    return [pq.read_table(output / name).sort_by(key).to_pylist() for name, key in keys.items()]
