"""Read tasks of Ray Data that produce indices of pairs, in order. No torch here."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from segray.arrow_rows import packed, unpacked
from segray.cluster import READ_TASK_CPUS, configure_ray_data
from segray.ray_private import find

PAUSE_S = 0.1
"""Polling interval of Ray's loop, each 1.5 ms of CPU; per poll, BUFFERED and loader.AHEAD blocks can move."""
BUFFERED = 32
"""Tables of indices that are read ahead. With Ray's default of two, two loaders got one each a poll."""
SCORING = -1
"""Index of an epoch in which nothing is drawn."""
_RETRIES = 3
"""Times that a batch is retried in another process when one died over it; Ray's default has no limit."""
MAPPED: dict[str, Any] = {
    "batch_size": None,
    "batch_format": "pyarrow",
    "max_restarts": -1,
    "max_task_retries": _RETRIES,
}
"""How tables of indices are passed to a class."""


def index_table(epoch: int, indices: Sequence[int], repeats: Sequence[int] | None = None) -> pa.Table:
    """Return one packed row for `read_indices`; repeats: which repeat in the epoch each index is, from 0."""
    columns = {
        "epoch": pa.array([epoch] * len(indices), pa.int32()),
        "index": pa.array(indices, pa.int64()),
        "repeat": pa.array(repeats or [0] * len(indices), pa.int32()),
    }
    return packed(pa.table(columns))


def read_indices(tasks: Sequence[Callable[[], Iterator[pa.Table]]]) -> ray.data.Dataset:
    """Return the packed tables (see `index_table`) of all tasks, one task after the other, each read in any
    free process."""
    indices: ray.data.Dataset = ray.data.read_datasource(
        _Indices(tasks),
        num_cpus=READ_TASK_CPUS,
        concurrency=1,  # else Ray draws all epochs at once, each in a process
        override_num_blocks=max(1, len(tasks)),
    )
    return indices


def tables(dataset: ray.data.Dataset, prefetch: int) -> Generator[pa.Table, None, None]:
    """Yield the unpacked tables, of any schema, in order; prefetch: blocks that are fetched ahead."""
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch):
        yield from unpacked(block)


def configure(stall_timeout_s: float) -> None:
    """Configure this process's context of Ray Data; it fails after `stall_timeout_s` without progress."""
    context = configure_ray_data(stall_timeout_s)
    if hasattr(context, "_max_num_blocks_in_streaming_gen_buffer"):  # a private name: see `ray_private`
        context._max_num_blocks_in_streaming_gen_buffer = BUFFERED


_Callback: Any = find("callback") or object


class Pause(_Callback):  # type: ignore[misc]
    """Pauses between two polls of Ray's loop, which runs in the process that trains.

    Where all operators have results that nothing takes yet, Ray polls again at once, for ever: training,
    which waits for the interpreter's lock after each operator, took 2.2 times as long. It is in this module
    because Ray's tasks load it, with the settings of their data.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Sleep after each poll."""
        time.sleep(PAUSE_S)


class _Indices(Datasource):
    """Sampler's order of the pairs: read tasks that return a table for each batch, in order."""

    def __init__(self, tasks: Sequence[Callable[[], Iterator[pa.Table]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(task, nothing) for task in self._tasks]
