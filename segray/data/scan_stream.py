"""One survey of the pairs by Ray Data: read, decoded, measured; as they come. No torch here."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from segray.columns import packed, unpacked
from segray.data.coco_reader import CocoReading
from segray.data.labels import LabelRules
from segray.data.pair_reader import Example, Reader
from segray.data.pair_table import pairs_at
from segray.data.read_tasks import MAPPED, SCORING, configure, places_table, read_places, tables
from segray.data.scan import FIGURES, figures
from segray.errors import ItemError
from segray.storage import StorageSettings

SURVEYED_AT_ONCE = 16
SURVEY_CPUS = 0.9
"""Of a process that surveys, so that one a CPU leaves room for the task that feeds them."""


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


def survey(
    pairs: pa.Table, reading: Reading | CocoReading, cpus: float, stall_timeout_s: float
) -> Generator[pa.Table, None, None]:
    """Tables of FIGURES with the column `place`, the row in `pairs` (schema PAIRS), as they come."""
    configure(stall_timeout_s)
    processes = min(int(cpus), -(-pairs.num_rows // SURVEYED_AT_ONCE))
    answers = read_places([partial(_chunks, pairs.num_rows)]).map_batches(
        _Survey,
        fn_constructor_args=(ray.put(pairs), reading),
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, processes)),
        num_cpus=SURVEY_CPUS,
        **MAPPED,
    )
    return tables(answers, prefetch=0)


def _chunks(pairs: int) -> Iterator[pa.Table]:
    for start in range(0, pairs, SURVEYED_AT_ONCE):
        yield places_table(SCORING, range(start, min(start + SURVEYED_AT_ONCE, pairs)))


class _Survey:
    """Places -> FIGURES with their places."""

    def __init__(self, pairs: Any, reading: Reading | CocoReading) -> None:
        self._pairs: pa.Table = ray.get(pairs)
        self._reading: Any = reading
        self._reader = reading.reader()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            places = table["place"]
            examples = self._reader.read(pairs_at(self._pairs, places.to_pylist()))
            rows = [self._reading.figures(example) for example in examples]
            yield packed(pa.Table.from_pylist(rows, FIGURES).append_column("place", places))
