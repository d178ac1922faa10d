"""Data loader of a worker, by Ray Data: pairs in the sampler's order, read, decoded, transformed, collated.

In order: a worker's part of each global batch of an epoch, then its images to score, then the next epoch.
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

import_torchvision()  # before the imports below do: each loader starts sooner

from segray.arrow_rows import packed, unpacked
from segray.errors import ItemError, JobFailedError
from segray.train.collate import SAMPLES, Transform, sample_row, samples_in
from segray.data.pair_table import as_scanned, pairs_at
from segray.data.read_tasks import MAPPED, SCORING, Pause, configure, read_indices, tables
from segray.train.sampler import EpochSampler, Part
from segray.data.scan import PASSING
from segray.data.pair_reader import LabelReading
from segray.ray_private import find
from segray.train.resources import LOADER_CPUS
from segray.train.reporting.samples import chosen

AHEAD = 8
"""Batches queued for a loader, so that it need not wait for Ray's next poll."""


@dataclass(frozen=True)
class Feed:
    """What the loaders of all workers need."""

    reading: LabelReading
    transform: Transform
    sampler: EpochSampler
    loaders: int
    """Processes that decode, per worker."""
    stall_timeout_s: float


def batches(pairs: Any, feed: Feed, epochs: range, position: int, part: Part) -> Iterator[Any]:
    """Yield batches from `position` of the first of `epochs`, counted from 0, to the end of the last.

    pairs: reference to a table of schema PAIRS. Raises JobFailedError for a pair that could be read in the
    scan and cannot now, OSError when the storage or the machine is to blame.
    """
    configure(feed.stall_timeout_s)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Pause] if find("callback") else []
    tasks = [partial(feed.sampler.epoch, epoch, position * (epoch == epochs.start), part) for epoch in epochs]
    loaded = read_indices(tasks).map_batches(
        _Load,
        fn_constructor_args=(pairs, feed.reading, feed.transform),
        compute=ActorPoolStrategy(min_size=1, max_size=feed.loaders, max_tasks_in_flight_per_actor=AHEAD),
        num_cpus=LOADER_CPUS,
        **MAPPED,
    )
    for table in tables(loaded, prefetch=2):
        yield _batch(table, feed.transform)


def pictured(pairs: Any, feed: Feed) -> list[Any]:
    """Return a few batches of one image to score, for panels; fewer where some cannot be read."""
    table: pa.Table = ray.get(pairs)
    names = table["name"].slice(feed.sampler.train, feed.sampler.val).to_pylist()
    some = pairs_at(table, [feed.sampler.train + index for index in chosen(names)])
    read = zip(some, feed.reading.reader().read(some), strict=True)
    return [
        feed.transform.collate([(pair.name, feed.transform.scoring(example))])
        for pair, example in read
        if not isinstance(example, ItemError)
    ]


class _Load:
    """Maps indices to SAMPLES; a batch with a pair that cannot be used becomes one row with its error.

    An exception would reach the worker as Ray's own, in many lines.
    """

    def __init__(self, pairs: Any, reading: LabelReading, transform: Transform) -> None:
        torch.set_num_threads(1)
        self._pairs: pa.Table = ray.get(pairs)
        self._transform = transform
        self._reader = reading.reader()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            yield packed(self._loaded(*(table[name].to_pylist() for name in ("index", "epoch", "repeat"))))

    def _loaded(self, indices: list[int], epochs: list[int], repeats: list[int]) -> pa.Table:
        rows = []
        pairs = pairs_at(self._pairs, indices)
        drawn = zip(indices, pairs, epochs, repeats, self._reader.read(pairs), strict=True)
        for index, pair, epoch, repeat, read in drawn:
            digests = (self._pairs[name][index].as_py() for name in ("digest", "label_digest"))
            example: Any = as_scanned(read, *digests)
            if isinstance(example, ItemError):
                error = {"name": pair.name, "error_type": example.error_type, "error": example.reason}
                return pa.Table.from_pylist([error], SAMPLES)
            item = f"{pair.item}:{repeat}" if repeat else pair.item  # another crop for each repeat
            if epoch == SCORING:
                arrays = self._transform.scoring(example)
            else:
                arrays = self._transform.training(example, epoch, item)
            rows.append(sample_row(pair.name, arrays))
        return pa.Table.from_pylist(rows, SAMPLES)


def _batch(table: pa.Table, transform: Transform) -> Any:
    if table.num_rows and table["error"][0].is_valid:
        name, kind, reason = (table[column][0].as_py() for column in ("name", "error_type", "error"))
        if kind in PASSING:
            raise OSError(f"{name}: {reason}")
        raise JobFailedError(
            f"{name}: {reason}; it could be read when the data were scanned: restore it and run the same "
            "command again, or train into another --output"
        )
    return transform.collate(samples_in(table))
