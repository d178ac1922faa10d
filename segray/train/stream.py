"""The Ray Data side of `train`: one survey of the pairs, and a stream of batches for each worker.

    survey    places in the listing -> read, decoded, measured; as they come
    batches   places in the order of the run -> read, decoded, augmented; in order: a worker's part of each
              global batch of an epoch, then its pictures to score, then the next epoch

What comes when is a function of seed, epoch and position in the epoch, so a stream can begin anywhere, and
the global batches are the same whatever the number of workers. Orders are drawn where they are read, an epoch
at a time, so that no process holds all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from segray.columns import packed, unpacked
from segray.errors import ItemError, JobFailedError
from segray.sources.labels import LabelRules
from segray.sources.pair_reader import Example, Reader
from segray.storage import StorageSettings
from segray.train.coco_reader import CocoReading
from segray.train.examples import Framing, order_of, share_of, turns_of
from segray.train.instance_batches import InstanceFraming
from segray.train.pair_table import as_surveyed, pairs_at
from segray.train.resources import LOADER_CPUS, PLACES_CPUS
from segray.train.samples import chosen
from segray.train.survey import FIGURES, PASSING, figures

SURVEYED_AT_ONCE = 16
SURVEY_CPUS = 0.9
"""Of a process that surveys, so that one a CPU leaves room for the task that feeds them."""
_SCORING = -1
"""Stands in the place of an epoch where nothing is drawn."""
_RETRIES = 3
"""Times that a batch is given to another loader when one died over it; Ray's own number has no end."""


@dataclass(frozen=True)
class Reading:
    """How pairs are read, in any process."""

    rules: LabelRules
    max_pixels: int
    storage: StorageSettings

    def reader(self) -> Reader:
        """One for this process."""
        return Reader(self.rules, self.max_pixels, self.storage)

    def figures(self, example: Example | ItemError) -> dict[str, Any]:
        """One row of FIGURES."""
        return figures(example, self.rules.classes)


@dataclass(frozen=True)
class Feed:
    """What all workers are fed with; of a table of pairs, the first `train` are trained on, then `val`."""

    reading: Reading | CocoReading
    framing: Framing | InstanceFraming
    batch_size: int
    seed: int
    train: int
    val: int
    loaders: int
    """Processes that decode, for each worker."""
    stall_timeout_s: float
    repeats: Any = None
    """Reference to how often each of the first `train` is shown in an epoch; None: once."""


@dataclass(frozen=True)
class Part:
    """One worker of several."""

    rank: int
    workers: int

    def scored(self, val: int) -> range:
        """Which of the pictures it scores; one may have none."""
        return range(self.rank, val, self.workers)


def survey(
    pairs: pa.Table, reading: Reading | CocoReading, cpus: float, stall_timeout_s: float
) -> Iterator[pa.Table]:
    """Tables of FIGURES with the column `place`, the row in `pairs` (schema PAIRS), as they come."""
    _configure(stall_timeout_s)
    processes = min(int(cpus), -(-pairs.num_rows // SURVEYED_AT_ONCE))
    answers = _read([partial(_chunks, pairs.num_rows)]).map_batches(
        _Survey,
        fn_constructor_args=(ray.put(pairs), reading),
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, processes)),
        num_cpus=SURVEY_CPUS,
        **_MAPPED,
    )
    return _tables(answers, prefetch=0)


def batches(pairs: Any, feed: Feed, epochs: range, position: int, part: Part) -> Iterator[Any]:
    """From the batch `position` of the first of `epochs`, counted from 0, to the end of the last.

    pairs: reference to a table of schema PAIRS. Raises JobFailedError for a pair that could be read in the
    survey and cannot now, OSError when the storage or the machine is to blame.
    """
    _configure(feed.stall_timeout_s)
    DataContext.get_current().execution_options.preserve_order = True
    tasks = [partial(_epoch, epoch, position * (epoch == epochs.start), feed, part) for epoch in epochs]
    loaded = _read(tasks).map_batches(
        _Load,
        fn_constructor_args=(pairs, feed.reading, feed.framing),
        compute=ActorPoolStrategy(min_size=1, max_size=feed.loaders),
        num_cpus=LOADER_CPUS,
        **_MAPPED,
    )
    for table in _tables(loaded, prefetch=2):
        yield _batch(table, feed.framing)


_MAPPED: dict[str, Any] = {
    "batch_size": None,
    "batch_format": "pyarrow",
    "max_restarts": -1,
    "max_task_retries": _RETRIES,
}


def pictured(pairs: Any, feed: Feed) -> list[Any]:
    """A few of the pictures that are scored, each alone, for a person; fewer where some cannot be read."""
    table: pa.Table = ray.get(pairs)
    names = table["name"].slice(feed.train, feed.val).to_pylist()
    some = pairs_at(table, [feed.train + place for place in chosen(names)])
    framing: Any = feed.framing
    found = []
    for pair, example in zip(some, feed.reading.reader().read(some), strict=True):
        if not isinstance(example, ItemError):
            row = {"name": pair.name, **framing.row(example, None, pair.item)}
            found.append(framing.batch(pa.Table.from_pylist([row], framing.columns)))
    return found


def _read(tasks: Sequence[Callable[[], Iterator[pa.Table]]]) -> ray.data.Dataset:
    places: ray.data.Dataset = ray.data.read_datasource(
        _Places(tasks),
        num_cpus=PLACES_CPUS,
        concurrency=1,  # else Ray draws all epochs at once, each in a process
        override_num_blocks=max(1, len(tasks)),
    )
    return places


def _tables(dataset: ray.data.Dataset, prefetch: int) -> Iterator[pa.Table]:
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch):
        yield from unpacked(block)


def _configure(stall_timeout_s: float) -> None:
    context = DataContext.get_current()
    context.target_max_block_size = 1  # a table is a block: neither gathered nor cut
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = stall_timeout_s


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


def _chunks(pairs: int) -> Iterator[pa.Table]:
    for start in range(0, pairs, SURVEYED_AT_ONCE):
        yield _places(_SCORING, range(start, min(start + SURVEYED_AT_ONCE, pairs)))


def _epoch(epoch: int, position: int, feed: Feed, part: Part) -> Iterator[pa.Table]:
    """A worker's part of each global batch from `position` on; then what it scores, each alone.

    Pictures that are scored may have any size.
    """
    repeats = None if feed.repeats is None else ray.get(feed.repeats)
    order = order_of(feed.train, feed.seed, epoch, repeats)
    turns = turns_of(order)
    for batch in share_of(np.arange(len(order)), feed.batch_size, part.rank, part.workers)[position:]:
        yield _places(epoch, order[batch].tolist(), turns[batch].tolist())
    for place in part.scored(feed.val):
        yield _places(_SCORING, [feed.train + place])


def _places(epoch: int, places: Sequence[int], turns: Sequence[int] | None = None) -> pa.Table:
    """turns: which time of the epoch it is that each comes, from 0."""
    columns = {
        "epoch": pa.array([epoch] * len(places), pa.int32()),
        "place": pa.array(places, pa.int64()),
        "turn": pa.array(turns or [0] * len(places), pa.int32()),
    }
    return packed(pa.table(columns))


class _Survey:
    """Places -> FIGURES with their places."""

    def __init__(self, pairs: Any, reading: Reading | CocoReading) -> None:
        torch.set_num_threads(1)
        self._pairs: pa.Table = ray.get(pairs)
        self._reading: Any = reading
        self._reader = reading.reader()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            places = table["place"]
            examples = self._reader.read(pairs_at(self._pairs, places.to_pylist()))
            rows = [self._reading.figures(example) for example in examples]
            yield packed(pa.Table.from_pylist(rows, FIGURES).append_column("place", places))


class _Load:
    """Places -> pixels and labels; a batch with a pair that cannot be used becomes one row with its error.

    An exception would come to the worker as Ray's own, in many lines.
    """

    def __init__(
        self, pairs: Any, reading: Reading | CocoReading, framing: Framing | InstanceFraming
    ) -> None:
        torch.set_num_threads(1)
        self._pairs: pa.Table = ray.get(pairs)
        self._framing: Any = framing
        self._reader = reading.reader()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            yield packed(self._loaded(*(table[name].to_pylist() for name in ("place", "epoch", "turn"))))

    def _loaded(self, places: list[int], epochs: list[int], turns: list[int]) -> pa.Table:
        rows = []
        pairs = pairs_at(self._pairs, places)
        drawn = zip(places, pairs, epochs, turns, self._reader.read(pairs), strict=True)
        for place, pair, epoch, turn, read in drawn:
            digests = (self._pairs[name][place].as_py() for name in ("digest", "label_digest"))
            example: Any = as_surveyed(read, *digests)
            if isinstance(example, ItemError):
                error = {"name": pair.name, "error_type": example.error_type, "error": example.reason}
                return pa.Table.from_pylist([error], self._framing.columns)
            item = f"{pair.item}:{turn}" if turn else pair.item  # another crop each time
            framed = self._framing.row(example, None if epoch == _SCORING else epoch, item)
            rows.append({"name": pair.name, **framed})
        return pa.Table.from_pylist(rows, self._framing.columns)


def _batch(table: pa.Table, framing: Framing | InstanceFraming) -> Any:
    if table.num_rows and table["error"][0].is_valid:
        name, kind, reason = (table[column][0].as_py() for column in ("name", "error_type", "error"))
        if kind in PASSING:
            raise OSError(f"{name}: {reason}")
        raise JobFailedError(
            f"{name}: {reason}; it could be read when the data were surveyed: put it back and run the same "
            "command again, or train into another --output"
        )
    return framing.batch(table)
