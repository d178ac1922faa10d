"""Batches of `train`, by Ray Data, against a torch DataLoader with the same decoder and processes.

Nothing is trained: batches are asked for as fast as they come. The gate: both give the same, in one order.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from jobs.benchmarks.commands import answered
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pairs import SIZE as PICTURE
from jobs.benchmarks.pairs import pairs_of
from jobs.benchmarks.reading import cores

SIZE, BATCH = 320, 8


def figures(options: Options) -> Iterator[Figure]:
    """Steady state: the first epoch is left out."""
    number, epochs = (64, 3) if options.quick else (options.images or 512, 7)
    folder = pairs_of(options, number)
    first = [read(name, folder, 1)["batches"] for name in ("segray", "torch")]
    check(first[0] == first[1], "feed: segray and the DataLoader give other batches")
    ours, theirs = take_turns(
        [partial(rate, name, folder, epochs) for name in ("segray", "torch")], options.rounds(5)
    )
    fact = (
        f"{BATCH} crops of {SIZE} pixels of {PICTURE[1]} x {PICTURE[0]}, {cores()} processes; "
        f"{median(ours):.1f} against {median(theirs):.1f} batches/s"
    )
    yield Figure(
        "batches by Ray Data / torch DataLoader, same decoder", ">= 0.95", ratios(ours, theirs), [fact]
    )


def read(name: str, folder: Path, epochs: int) -> dict[str, Any]:
    """One of `feeds` over a folder."""
    return answered("feeds", name, folder, SIZE, BATCH, epochs, cores())


def rate(name: str, folder: Path, epochs: int) -> float:
    """Batches a second after the first epoch."""
    times = read(name, folder, epochs)["times"]
    begun = len(times) // epochs
    return float((len(times) - begun) / (times[-1] - times[begun - 1]))
