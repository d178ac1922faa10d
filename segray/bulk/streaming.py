"""Ray Data for bulk jobs: one table per block, no progress bars, ready blocks handed on quickly."""

import math
import time
from collections.abc import Generator

import pyarrow as pa
import ray.data

from segray.arrow_rows import unpacked
from segray.cluster import configure_ray_data
from segray.errors import JobFailedError, SegrayError
from segray.ray_private import poll_every
from segray.settings import RaySettings

POLL_S = (0.02, 0.5)
"""Minimum and maximum polling interval of Ray Data's scheduler, in seconds. It lets a worker be at most two
blocks ahead: at its own 0.1 s, decoders that fill two in less stood idle; and each poll takes 3 ms of a core,
which a slow model on two cores misses. So it polls four times while a table is made, by the mean of the last
ones. A constant of Ray's, not an option."""


def configure(settings: RaySettings) -> None:
    """Set this process's context of Ray Data."""
    configure_ray_data(settings.stall_timeout_s)
    _poll_every(0)


def stream(dataset: ray.data.Dataset, prefetch: int = 0) -> Generator[pa.Table, None, None]:
    """Run the steps, and yield their tables (schema of the last step) as they come; `prefetch` more are
    fetched meanwhile.

    A prefetched block waits for the next one before it can be committed.
    Raises JobFailedError when a step breaks; what was yielded before stays valid.
    """
    last, mean = math.inf, 0.0
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch)
    try:
        for block in blocks:
            now = time.monotonic()
            mean += (max(now - last, 0.0) - mean) / 8  # the first: Ray started
            last = now
            _poll_every(mean / 4)
            yield from unpacked(block)
    except SegrayError:
        raise
    except Exception as error:
        raise JobFailedError(f"the pipeline broke: {cause(error)}") from error


def _poll_every(seconds: float) -> None:
    poll_every(min(max(seconds, POLL_S[0]), POLL_S[1]))


def cause(error: BaseException) -> str:
    """Return the error in one line: of a worker's its own words, else the last line of Ray's long text."""
    own = error
    while isinstance(inner := getattr(own, "cause", None), BaseException):
        own = inner
    lines = [line.strip() for line in str(own).splitlines() if line.strip()]
    if own is not error:  # Ray Data adds lines of advice
        return f"{type(own).__name__}: {lines[0] if lines else ''}"
    last = lines[-1] if lines else ""
    return last if ": " in last else f"{type(error).__name__}: {last}"
