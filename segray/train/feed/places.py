"""Which pairs come when: read by Ray Data where they are needed, in order. No torch here.

What comes when is a function of seed, epoch and position in the epoch, so a stream can begin anywhere, and
the global batches are the same whatever the number of workers. Orders are drawn where they are read, an epoch
at a time, so that no process holds all of them.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, Datasource, ReadTask
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata

from segray.columns import packed, unpacked
from segray.train.feed.repeats import drawn
from segray.train.resources import PLACES_CPUS

PAUSE_S = 0.1
"""Between two looks of Ray's loop, of 1.5 ms of CPU each; what moves in one is BUFFERED and stream.AHEAD."""
BUFFERED = 32
"""Tables of places that are read ahead. With Ray's own two, two loaders had one each in every look."""
SCORING = -1
"""Stands in the place of an epoch where nothing is drawn."""
_RETRIES = 3
"""Times that a batch is given to another process when one died over it; Ray's own number has no end."""
MAPPED: dict[str, Any] = {
    "batch_size": None,
    "batch_format": "pyarrow",
    "max_restarts": -1,
    "max_task_retries": _RETRIES,
}
"""How tables of places are given to a class."""


@dataclass(frozen=True)
class Part:
    """One worker of several."""

    rank: int
    workers: int

    def scored(self, val: int) -> range:
        """Which of the pictures it scores; one may have none."""
        return range(self.rank, val, self.workers)


@dataclass(frozen=True)
class Order:
    """Of a table of pairs, the first `train` are trained on in batches, then `val` are scored, each alone."""

    batch_size: int
    """Of all workers together."""
    seed: int
    train: int
    val: int
    repeats: Any = None
    """Reference to how often each of the first `train` is shown in an epoch; None: once."""

    def epoch(self, epoch: int, position: int, part: Part) -> Iterator[pa.Table]:
        """A worker's part of each global batch from `position` on; then what it scores, each alone.

        Pictures that are scored may have any size.
        """
        repeats = None if self.repeats is None else ray.get(self.repeats)
        order = order_of(self.train, self.seed, epoch, repeats)
        turns = turns_of(order)
        for batch in share_of(np.arange(len(order)), self.batch_size, part.rank, part.workers)[position:]:
            yield places_table(epoch, order[batch].tolist(), turns[batch].tolist())
        for place in part.scored(self.val):
            yield places_table(SCORING, [self.train + place])


def order_of(
    items: int, seed: int, epoch: int, repeats: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """The order in which an epoch shows them: another one each epoch, the same in every process.

    repeats: how often each is shown in the mean, `items` in all; None: once.
    """
    draw = hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(draw, np.uint64))
    return random.permutation(items if repeats is None else drawn(repeats, random))


def turns_of(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each item of an order came before, in the order."""
    sort = np.argsort(order, kind="stable")
    starts = np.searchsorted(order[sort], order[sort])
    turns = np.empty(len(order), np.int64)
    turns[sort] = np.arange(len(order)) - starts
    return turns


def share_of(order: NDArray[np.int64], batch_size: int, rank: int, workers: int) -> list[NDArray[np.int64]]:
    """One worker's part of each global batch: the same batches whatever the number of workers.

    All workers have equally many; of the last batch a worker may have none.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batch[rank::workers] for batch in batches]


def places_table(epoch: int, places: Sequence[int], turns: Sequence[int] | None = None) -> pa.Table:
    """One packed row for `read_places`; turns: which time of the epoch it is that each comes, from 0."""
    columns = {
        "epoch": pa.array([epoch] * len(places), pa.int32()),
        "place": pa.array(places, pa.int64()),
        "turn": pa.array(turns or [0] * len(places), pa.int32()),
    }
    return packed(pa.table(columns))


def read_places(tasks: Sequence[Callable[[], Iterator[pa.Table]]]) -> ray.data.Dataset:
    """The packed tables of all tasks, one task after the other, each in whichever process has room."""
    places: ray.data.Dataset = ray.data.read_datasource(
        _Places(tasks),
        num_cpus=PLACES_CPUS,
        concurrency=1,  # else Ray draws all epochs at once, each in a process
        override_num_blocks=max(1, len(tasks)),
    )
    return places


def tables(dataset: ray.data.Dataset, prefetch: int) -> Generator[pa.Table, None, None]:
    """Unpacked, in order; prefetch: blocks that are fetched ahead."""
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch):
        yield from unpacked(block)


def configure(stall_timeout_s: float) -> None:
    """Set this process's context of Ray Data; it fails when nothing moves for `stall_timeout_s` seconds."""
    context = DataContext.get_current()
    context.target_max_block_size = 1  # a table is a block: neither gathered nor cut
    context._max_num_blocks_in_streaming_gen_buffer = BUFFERED
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = stall_timeout_s
    # Else Ray ends a loader whenever a step takes longer than a batch, and starts another: 7 s of imports
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0


class Pause(ExecutionCallback):
    """Between two looks of Ray's loop, which runs in the process that trains.

    Where all that runs has results that nobody takes yet, Ray looks again at once, for ever: training, which
    waits for the interpreter's lock after each operator, took 2.2 times as long. It stands here because Ray's
    tasks load it, with the settings of their data.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called after each look."""
        time.sleep(PAUSE_S)


class _Places(Datasource):
    """Which pairs come when: read tasks that give a table a batch, in order."""

    def __init__(self, tasks: Sequence[Callable[[], Iterator[pa.Table]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(task, nothing) for task in self._tasks]
