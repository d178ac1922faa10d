"""From the command to the first instance on disk, against starting Ray and loading the model alone.

The second arm imports torchvision as every program does; segray leaves a part of it out (`models.imports`).
"""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import folder_of
from jobs.benchmarks.processes import started, wait_for

WEIGHTS = "nuclei-small"
ALONE = """
import sys
import ray, torchvision
ray.init(address="local", include_dashboard=False, log_to_driver=False)
from segray.models.weights import load_weights
from segray.storage import StorageSettings
load_weights("nuclei-small", StorageSettings())
open(sys.argv[1], "w").close()
"""


def figures(options: Options) -> Iterator[Figure]:
    """Over a folder of 100 pictures, with the bundled model."""
    folder = folder_of(options, 8 if options.quick else 100)
    first, alone = take_turns(
        [
            lambda: first_instance(folder, options.scratch / "start"),
            lambda: ray_and_model(options.scratch / "ready"),
        ],
        options.rounds(3),
    )
    fact = f"{median(first):.1f} s against {median(alone):.1f} s"
    yield Figure("first instance on disk / ray.init + model load", "<= 2", ratios(first, alone), [fact])


def ray_and_model(ready: Path) -> float:
    """Seconds until Ray runs and the model is loaded, one after the other; how both end is not counted."""
    ready.unlink(missing_ok=True)
    begun = time.perf_counter()
    with started("-c", ALONE, ready) as process:
        wait_for(ready.exists, process)
        return time.perf_counter() - begun


def first_instance(folder: Path, output: Path) -> float:
    """Seconds until a committed file holds an instance; the job is interrupted then."""
    shutil.rmtree(output, ignore_errors=True)
    begun = time.perf_counter()
    arguments = ("annotate", folder, "--output", output, "--weights", WEIGHTS)
    with started("-m", "segray.cli", *arguments) as process:
        wait_for(lambda: instances(output) > 0, process)
        seconds = time.perf_counter() - begun
        process.send_signal(signal.SIGTERM)
        process.wait()
    check(instances(output) > 0, "start: the first instances are gone after the interruption")
    return seconds


def instances(output: Path) -> int:
    """Of the items that are committed."""
    files = [*output.glob("_segray/staging/*.parquet"), *output.glob("images/*.parquet")]
    total = 0
    for path in files:
        try:
            total += sum(pq.read_table(path, columns=["instances"])["instances"].to_pylist())
        except FileNotFoundError:  # merged in between
            continue
    return total
