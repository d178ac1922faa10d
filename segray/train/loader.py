"""What a worker is fed with by Ray Data: pairs in the order of the run, read, decoded, augmented.

In order: a worker's part of each global batch of an epoch, then its pictures to score, then the next epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from segray.models.imports import import_torchvision

import_torchvision()  # before what follows does: each loader is ready sooner

from segray.columns import packed, unpacked
from segray.errors import ItemError, JobFailedError
from segray.data.coco_reader import CocoReading
from segray.train.collate import Framing
from segray.train.collate_instances import InstanceFraming
from segray.data.pair_table import as_surveyed, pairs_at
from segray.data.read_tasks import MAPPED, SCORING, Pause, configure, read_places, tables
from segray.train.sampler import Order, Part
from segray.data.scan import PASSING
from segray.data.scan_stream import Reading
from segray.ray_private import find
from segray.train.resources import LOADER_CPUS
from segray.train.reporting.samples import chosen

AHEAD = 8
"""Batches that a loader is given before it is done with one: else it waits for Ray's next look."""


@dataclass(frozen=True)
class Feed:
    """What all workers are fed with."""

    reading: Reading | CocoReading
    framing: Framing | InstanceFraming
    order: Order
    loaders: int
    """Processes that decode, for each worker."""
    stall_timeout_s: float


def batches(pairs: Any, feed: Feed, epochs: range, position: int, part: Part) -> Iterator[Any]:
    """From the batch `position` of the first of `epochs`, counted from 0, to the end of the last.

    pairs: reference to a table of schema PAIRS. Raises JobFailedError for a pair that could be read in the
    survey and cannot now, OSError when the storage or the machine is to blame.
    """
    configure(feed.stall_timeout_s)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Pause] if find("callback") else []
    tasks = [partial(feed.order.epoch, epoch, position * (epoch == epochs.start), part) for epoch in epochs]
    loaded = read_places(tasks).map_batches(
        _Load,
        fn_constructor_args=(pairs, feed.reading, feed.framing),
        compute=ActorPoolStrategy(min_size=1, max_size=feed.loaders, max_tasks_in_flight_per_actor=AHEAD),
        num_cpus=LOADER_CPUS,
        **MAPPED,
    )
    for table in tables(loaded, prefetch=2):
        yield _batch(table, feed.framing)


def pictured(pairs: Any, feed: Feed) -> list[Any]:
    """A few of the pictures that are scored, each alone, for a person; fewer where some cannot be read."""
    table: pa.Table = ray.get(pairs)
    names = table["name"].slice(feed.order.train, feed.order.val).to_pylist()
    some = pairs_at(table, [feed.order.train + place for place in chosen(names)])
    framing: Any = feed.framing
    found = []
    for pair, example in zip(some, feed.reading.reader().read(some), strict=True):
        if not isinstance(example, ItemError):
            row = {"name": pair.name, **framing.row(example, None, pair.item)}
            found.append(framing.batch(pa.Table.from_pylist([row], framing.columns)))
    return found


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
            framed = self._framing.row(example, None if epoch == SCORING else epoch, item)
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
