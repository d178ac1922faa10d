"""Sampler: the order of the pairs in each epoch, produced as Ray Data read tasks. No torch here.

The order is a function of seed, epoch and position in the epoch, so a stream can begin anywhere, and the
global batches are the same for any number of workers. Orders are drawn in the read tasks, an epoch at a time,
so that no process holds all of them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from segray.data.read_tasks import SCORING, index_table
from segray.data.repeats import drawn


@dataclass(frozen=True)
class Part:
    """One of the workers that train together."""

    rank: int
    workers: int

    def scored(self, val: int) -> range:
        """Return which of the `val` images it scores; one may have none."""
        return range(self.rank, val, self.workers)


@dataclass(frozen=True)
class EpochSampler:
    """Order of a table of pairs: the first `train` in batches to train, then `val` to score, one by one."""

    batch_size: int
    """Global batch size, of all workers together."""
    seed: int
    train: int
    val: int
    repeats: Any = None
    """Reference to how often each of the first `train` is drawn in an epoch; None: once."""

    def epoch(self, epoch: int, position: int, part: Part) -> Iterator[pa.Table]:
        """Yield tables (`index_table`) of a worker's part of each global batch from `position` on; then what
        it scores, one by one.

        Images to score may have any size.
        """
        repeats = None if self.repeats is None else ray.get(self.repeats)
        order = order_of(self.train, self.seed, epoch, repeats)
        repeats = repeats_of(order)
        for batch in share_of(np.arange(len(order)), self.batch_size, part.rank, part.workers)[position:]:
            yield index_table(epoch, order[batch].tolist(), repeats[batch].tolist())
        for index in part.scored(self.val):
            yield index_table(SCORING, [self.train + index])


def shared(repeats: NDArray[np.float64] | None) -> Any:
    """Put the repeats, float64 (items,), into Ray's shared memory; return the reference, or None."""
    return None if repeats is None else ray.put(repeats)


def order_of(
    items: int, seed: int, epoch: int, repeats: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Return the order of an epoch, int64 (items,): another one each epoch, the same in every process.

    repeats: float64 (items,), how often each is shown in the mean, `items` in all; None: once.
    """
    draw = hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(draw, np.uint64))
    return random.permutation(items if repeats is None else drawn(repeats, random))


def repeats_of(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each item of an order came before in it, int64 of the order's shape."""
    sort = np.argsort(order, kind="stable")
    starts = np.searchsorted(order[sort], order[sort])
    repeats = np.empty(len(order), np.int64)
    repeats[sort] = np.arange(len(order)) - starts
    return repeats


def share_of(order: NDArray[np.int64], batch_size: int, rank: int, workers: int) -> list[NDArray[np.int64]]:
    """Return one worker's part of each global batch, int64 (k,): the same batches for any number of workers.

    All workers have equally many; of the last batch a worker may have none.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batch[rank::workers] for batch in batches]
