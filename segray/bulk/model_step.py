"""DECODED -> ANNOTATED in a worker, with recovery when the model raises or dies. No Ray.

An error or a death costs one row: after either, the items of the table are processed one by one.
"""

import time
from collections.abc import Callable
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from segray.bulk.crash_counts import MOST_ATTEMPTS, AttemptsLike
from segray.bulk.results import rejected_rows
from segray.errors import JobFailedError
from segray.models.device import is_out_of_memory

HOPELESS = 20
"""Number of failures of the model without one success that stop the job instead of rejecting everything."""


class Predictor(Protocol):
    """One model on one device."""

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED, one row for each row, in order. May raise anything."""


class ModelStep:
    """DECODED -> ANNOTATED: the model, with recovery when it raises or dies."""

    def __init__(
        self,
        make_predictor: Callable[[], Predictor],
        attempts: AttemptsLike,
        workers: int = 1,
        computed: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Load the model; `workers`: how many may start at once; each may die `MOST_ATTEMPTS` times.

        computed: called with the seconds of each batch. Raises RuntimeError where loading killed too many
        workers.
        """
        self.attempts, self._computed = attempts, computed
        if not attempts.begin(["model"], MOST_ATTEMPTS * workers):
            raise RuntimeError(f"the model killed its process {MOST_ATTEMPTS} times while it was loaded")
        self.predictor = make_predictor()
        attempts.end(["model"])
        self._successes = self._failures = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return a table of schema ANNOTATED, one row for each row of DECODED, in order."""
        ids = _names(table.filter(pc.is_valid(table["pixels"])))
        if not self.attempts.begin(ids, 1):
            return self._one_by_one(table)
        try:
            results = self._predict(table)
        except JobFailedError:
            raise  # the model breaks its interface: no item is at fault
        except Exception as error:  # noqa: BLE001 - a model may raise anything; the item is found below
            _leave_if_device_is_lost(error)
            self.attempts.end(ids)
            return self._one_by_one(table)
        self.attempts.end(ids)
        self._successes += len(ids)
        return results

    def _predict(self, table: pa.Table) -> pa.Table:
        started = time.monotonic()
        try:
            return self.predictor.predict(table)
        finally:
            self._computed(time.monotonic() - started)

    def _one_by_one(self, table: pa.Table) -> pa.Table:
        """Process each row alone after a death or an error, to find the one at fault."""
        return pa.concat_tables([self._alone(table.slice(row, 1)) for row in range(table.num_rows)])

    def _alone(self, row: pa.Table) -> pa.Table:
        if not row["pixels"][0].is_valid:
            return self._predict(row)
        ids = _names(row)
        if not self.attempts.begin(ids, MOST_ATTEMPTS):  # still counted: may be tried again
            return rejected_rows(row, "crashed", f"the model's process died {MOST_ATTEMPTS} times on it")
        try:
            results = self._predict(row)
        except JobFailedError:
            raise  # the model breaks its interface: no item is at fault
        except Exception as error:  # noqa: BLE001 - see above
            _leave_if_device_is_lost(error)
            self.attempts.end(ids)
            return self._failed(row, error)
        self.attempts.end(ids)
        self._successes += 1
        return results

    def _failed(self, row: pa.Table, error: Exception) -> pa.Table:
        self._failures += 1
        if self._failures >= HOPELESS and not self._successes:
            raise RuntimeError(f"the model failed on each of its first {HOPELESS} images: {error}") from error
        if is_out_of_memory(error):
            return rejected_rows(row, "memory", f"the model ran out of memory: {_first_line(error)}")
        return rejected_rows(row, "crashed", f"the model failed: {_first_line(error)}")


def _names(rows: pa.Table) -> list[str]:
    """Return the names of the images and tiles that the model receives."""
    columns = rows["image_id"].to_pylist(), rows["tile"].to_pylist()
    return [item if tile is None else f"{item}/{tile}" for item, tile in zip(*columns, strict=True)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _leave_if_device_is_lost(error: Exception) -> None:
    """End this process after a CUDA error other than out of memory: only a new one can compute again."""
    text = str(error)
    if "CUDA error" in text and "out of memory" not in text:
        import os

        os._exit(1)
