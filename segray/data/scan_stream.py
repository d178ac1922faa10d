"""One scan of the pairs by Ray Data: read, decoded, measured, in the order of completion. No torch here."""

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from segray.arrow_rows import packed, unpacked
from segray.data.pair_reader import LabelReading
from segray.data.pair_table import pairs_at
from segray.data.read_tasks import MAPPED, SCORING, configure, index_table, read_indices, tables
from segray.data.scan import FIGURES, figures

SCANNED_AT_ONCE = 16
SCAN_CPUS = 0.9
"""CPUs of a scanning process: less than 1, to leave room for the task that feeds them."""


def scan(
    pairs: pa.Table, reading: LabelReading, cpus: float, stall_timeout_s: float
) -> Generator[pa.Table, None, None]:
    """Yield tables of FIGURES, as completed, with the column `index`: the row in `pairs` (schema PAIRS)."""
    configure(stall_timeout_s)
    processes = min(int(cpus), -(-pairs.num_rows // SCANNED_AT_ONCE))
    answers = read_indices([partial(_chunks, pairs.num_rows)]).map_batches(
        _Scan,
        fn_constructor_args=(ray.put(pairs), reading),
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, processes)),
        num_cpus=SCAN_CPUS,
        **MAPPED,
    )
    return tables(answers, prefetch=0)


def _chunks(pairs: int) -> Iterator[pa.Table]:
    for start in range(0, pairs, SCANNED_AT_ONCE):
        yield index_table(SCORING, range(start, min(start + SCANNED_AT_ONCE, pairs)))


class _Scan:
    """Maps indices to FIGURES with their indices."""

    def __init__(self, pairs: Any, reading: LabelReading) -> None:
        self._pairs: pa.Table = ray.get(pairs)
        self._counts = reading.counts
        self._reader = reading.reader()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            indices = table["index"]
            examples = self._reader.read(pairs_at(self._pairs, indices.to_pylist()))
            rows = [figures(example, self._counts) for example in examples]
            yield packed(pa.Table.from_pylist(rows, FIGURES).append_column("index", indices))
