"""Peak memory of a job and all its processes: ten times the items, and sixteen times the pixels."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.overhead import STUB, check_instances
from jobs.benchmarks.pictures import MEGAPIXEL, SIXTEEN, folder_of
from jobs.benchmarks.processes import peak_bytes, started


def figures(options: Options) -> Iterator[Figure]:
    """A stub model: a real one would hide what the pipeline holds."""
    once = (options.images or (100 if options.quick else 5000)) // 10
    base, tenfold = folder_of(options, once), folder_of(options, 10 * once)
    large = folder_of(options, 4 if options.quick else 60, SIXTEEN)
    output = options.scratch / "memory"
    peaks = take_turns([partial(peak, each, output) for each in (base, tenfold, large)], options.rounds(2))
    words = ", ".join(f"{each[0] / 2**20:,.0f} MiB" for each in peaks)
    sizes = f"{MEGAPIXEL[1]} x {MEGAPIXEL[0]}", f"{SIXTEEN[1]} x {SIXTEEN[0]}"
    facts = [f"{once} and {10 * once} pictures of {sizes[0]}, {count(large)} of {sizes[1]}: {words}"]
    yield Figure("peak memory, 10 x the items / 1 x", "<= 1.1", ratios(peaks[1], peaks[0]), facts)
    yield Figure("peak memory, 16 MP / 1 MP pictures", "<= 4", ratios(peaks[2], peaks[0]))


def count(folder: Path) -> int:
    """Files in it."""
    return sum(1 for _ in folder.iterdir())


def peak(folder: Path, output: Path) -> float:
    """Bytes; the job must have done its work."""
    target = output / folder.name
    arguments = ("annotate", folder, "--output", target, "--weights", STUB, "--device", "cpu")
    with started("-m", "segray.cli", *arguments) as process:
        most = peak_bytes(process)
    check(process.returncode == 0, f"memory: the job over {folder.name} ended with {process.returncode}")
    check_instances(target, folder)
    return float(most)
