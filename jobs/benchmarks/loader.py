"""A torch DataLoader instead of `segray.train.loader`: same decoder, transform, order and processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.benchmarks.pairs import RULES, SEED
from segray.data.pair_reader import Reader
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.storage import StorageSettings
from segray.train.sampler import order_of, share_of
from segray.train.transforms.semantic import SemanticTransform

MAX_PIXELS = 100_000_000
Loaded = tuple[Tensor, Tensor]
"""uint8 pixels (n, 3, height, width) and classes (n, height, width)."""


@dataclass(frozen=True)
class Step:
    """One batch."""

    epoch: int | None
    """None: a picture to score, whole."""
    pairs: Sequence[Pair]


def plan(
    train: Sequence[Pair], val: Sequence[Pair], batch_size: int, epochs: int, rank: int, workers: int
) -> list[Step]:
    """What one worker does: its part of each batch of an epoch, its pictures to score, the next epoch."""
    steps = []
    for epoch in range(epochs):
        parts = share_of(order_of(len(train), SEED, epoch), batch_size, rank, workers)
        steps += [Step(epoch, [train[place] for place in part]) for part in parts]
        steps += [Step(None, [pair]) for pair in val[rank::workers]]
    return steps


def loaded(steps: Sequence[Step], transform: SemanticTransform, processes: int) -> Iterator[Loaded]:
    """The batches, in order; epochs follow each other without a pause."""
    return iter(DataLoader(_Batches(steps, transform), batch_size=None, num_workers=processes))


class _Batches(Dataset[Loaded]):
    """A batch an index: a process reads the files of a batch together, as segray's loaders do."""

    def __init__(self, steps: Sequence[Step], transform: SemanticTransform) -> None:
        self._steps, self._transform = steps, transform
        self._reader: Reader | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Loaded:
        if self._reader is None:  # one a process
            self._reader = Reader(RULES, MAX_PIXELS, StorageSettings())
        step = self._steps[index]
        samples = []
        for pair, example in zip(step.pairs, self._reader.read(step.pairs), strict=True):
            if isinstance(example, ItemError):
                raise example
            if step.epoch is None:
                samples.append((pair.name, self._transform.scoring(example)))
            else:
                samples.append((pair.name, self._transform.training(example, step.epoch, pair.item)))
        batch = self._transform.collate(samples)
        return batch.pixels, batch.classes
