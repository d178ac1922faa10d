"""Peak memory of `segray train` and all its processes: ten times the items in as many steps."""

import json
import shutil
from collections.abc import Iterator
from functools import partial

from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pairs import pairs_of
from jobs.benchmarks.processes import peak_bytes, started

BATCH = 8


def figures(options: Options) -> Iterator[Figure]:
    """A small U-Net: a large one would hide what the pipeline holds."""
    once = -(-(options.images or (160 if options.quick else 5120)) // 10 // BATCH) * BATCH
    jobs = [partial(peak, options, once, 10), partial(peak, options, 10 * once, 1)]
    base, tenfold = take_turns(jobs, options.rounds(2))
    words = f"{base[0] / 2**20:,.0f} MiB, {tenfold[0] / 2**20:,.0f} MiB"
    facts = [f"{once} pairs ten times and {10 * once} pairs once, {10 * once // BATCH} steps: {words}"]
    yield Figure("peak memory of train, 10 x the items / 1 x", "<= 1.1", ratios(tenfold, base), facts)


def peak(options: Options, items: int, epochs: int) -> float:
    """Bytes; the job must have done its steps."""
    output = options.scratch / "train-memory"
    shutil.rmtree(output, ignore_errors=True)
    arguments = (
        *("--data", pairs_of(options, items), "--output", output, "--device", "cpu"),
        *("--epochs", epochs, "--batch-size", BATCH, "--size", 64, "--arch-settings", '{"width": 4}'),
    )
    with started("-m", "segray.cli", "train", *arguments) as job:
        most = peak_bytes(job)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    check(json.loads(lines[-1])["step"] == items * epochs // BATCH, "train_memory: steps are missing")
    return float(most)
