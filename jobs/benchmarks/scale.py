"""A hundred thousand different JPEGs: what grows with their number, and whether two kills change a row.

Pictures are crops of the bundled real images, 256 px, each at a place and turn of its own, with a stub model:
nothing hides what the job itself does. `--images N` for another number; a hundredth of it is what it is
compared with.
"""

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from jobs.benchmarks.measure import Figure, Options, check
from jobs.benchmarks.overhead import STUB
from jobs.benchmarks.pictures import BUNDLED
from jobs.benchmarks.processes import kill, started, wait_for
from jobs.benchmarks.restart import committed
from jobs.benchmarks.stub import INSTANCES

SIDE = 256
FILES_A_FOLDER, ROWS = 200_000, 1_000_000
"""A folder whose first images are waited for, and a manifest that is listed."""


@dataclass(frozen=True)
class Run:
    """What one job took."""

    items: int
    first_s: float
    """From the command to the first images on disk."""
    seconds: float
    driver_bytes: int
    """The most that the driver held."""

    @property
    def rate(self) -> float:
        """Images a second after the first ones."""
        return self.items / (self.seconds - self.first_s)

    def words(self) -> str:
        """For a person."""
        return (
            f"{self.items:,} images: first after {self.first_s:.1f} s, then {self.rate:,.0f} a second, "
            f"driver {self.driver_bytes / 2**20:,.0f} MiB"
        )


def figures(options: Options) -> Iterator[Figure]:
    """Runs of N/100, N/10 and N pictures, N with two kills, a large folder, a long manifest."""
    most = options.images or (200 if options.quick else 100_000)
    runs, folder = list[Run](), options.scratch / "scale"
    for number in sorted({max(most // 100, 2), max(most // 10, 2), most}):
        more_pictures(folder, number)
        runs.append(run(folder, options.scratch / f"scale-{number}", number))
    small, large = runs[0], runs[-1]
    facts = [each.words() for each in runs]
    yield Figure(f"driver's peak memory, {most:,} images / {small.items:,}", "<= 1.1",
                 [large.driver_bytes / small.driver_bytes], facts)  # fmt: skip
    middle = runs[-2]
    steady = (large.items - middle.items) / (large.seconds - middle.seconds)
    before = (middle.items - small.items) / (middle.seconds - small.seconds) if middle is not small else 0.0
    words = [f"{steady:,.0f} images a second between the two larger runs, {before:,.0f} between the smaller"]
    yield Figure(f"images a second, to {most:,} / to {middle.items:,}", ">= 0.95",
                 [steady / before] if before else [], words)  # fmt: skip

    killed = options.scratch / "scale-killed"
    with_kills(folder, killed, most)
    same = fingerprint(killed) == fingerprint(options.scratch / f"scale-{most}")
    check(same, f"scale: other rows after two kills of {most:,} images")
    yield Figure(f"rows that differ after two kills, {most:,} images", "<= 0", [0.0])
    yield from _beginnings(options, folder)


def _beginnings(options: Options, folder: Path) -> Iterator[Figure]:
    files, rows = (most if not options.quick else 1000 for most in (FILES_A_FOLDER, ROWS))
    many = options.scratch / "scale-folder"
    many.mkdir()
    pictures = sorted(folder.iterdir())
    for number in range(files):
        os.link(pictures[number % len(pictures)], many / f"{number:07d}.jpg")
    first = first_images(many, options.scratch / "scale-folder-output")
    yield Figure(f"seconds until the first images of {files:,} files are done", "<= 20", [first])

    manifest = options.scratch / "scale.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("uri",), *((str(many / f"{number:07d}.jpg"),) for number in range(rows))]
        )
    begun = time.perf_counter()
    arguments = ("annotate", manifest, "--output", options.scratch / "scale-listed", "--weights", STUB)
    with started("-m", "segray.cli", *arguments, "--dry-run") as process:
        held = driver_bytes(process.pid, process.poll)
    check(process.returncode == 0, f"scale: the listing ended with {process.returncode}")
    words = [f"{time.perf_counter() - begun:.1f} s, driver {held / 2**20:,.0f} MiB"]
    yield Figure(f"listing a manifest of {rows:,} rows, microseconds a row", "",
                 [(time.perf_counter() - begun) / rows * 1e6], words)  # fmt: skip


def more_pictures(folder: Path, number: int) -> None:
    """Make pictures until there are so many; the n-th is always the same."""
    folder.mkdir(exist_ok=True)
    real = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(BUNDLED.glob("*.png"))]
    real = [each for each in real if min(each.shape[:2]) >= SIDE]
    for index in range(sum(1 for _ in folder.iterdir()), number):
        Image.fromarray(crop(real, index)).save(folder / f"{index:07d}.jpg", quality=85)


def crop(real: list[NDArray[np.uint8]], index: int) -> NDArray[np.uint8]:
    """One picture, (SIDE, SIDE, 3)."""
    random = np.random.default_rng(index)
    image = real[random.integers(len(real))]
    row, col = (random.integers(size - SIDE + 1) for size in image.shape[:2])
    piece: NDArray[np.uint8] = np.rot90(
        image[row : row + SIDE, col : col + SIDE], int(random.integers(4))
    ).copy()
    piece[:4, :4] = index >> 16 & 255, index >> 8 & 255, index & 255
    return piece


def run(folder: Path, output: Path, number: int) -> Run:
    """A job from start to end; what it wrote must be complete."""
    begun = time.perf_counter()
    with started("-m", "segray.cli", *_annotate(folder, output)) as process:
        first = list[float]()

        def poll() -> int | None:
            if not first and committed(output):
                first.append(time.perf_counter() - begun)
            return process.poll()

        held = driver_bytes(process.pid, poll)
    seconds = time.perf_counter() - begun
    check(process.returncode == 0, f"scale: {number:,} images ended with {process.returncode}")
    images, instances, _ = fingerprint(output)
    check(
        (images, instances) == (number, INSTANCES * number),
        f"scale: {images:,} rows, {instances:,} instances",
    )
    return Run(number, first[0] if first else seconds, seconds, held)


def with_kills(folder: Path, output: Path, number: int) -> None:
    """The same, killed with all its processes at a third and at two thirds."""
    for before, after in pairwise((0, number // 3, 2 * number // 3)):
        with started("-m", "segray.cli", *_annotate(folder, output)) as process:
            wait_for(lambda after=after: committed(output) >= after, process)  # type: ignore[misc]
            check(process.poll() is None, f"scale: done before it was killed, after {before:,}")
            kill(process)
    with started("-m", "segray.cli", *_annotate(folder, output)) as process:
        process.wait()
    check(process.returncode == 0, f"scale: the last run ended with {process.returncode}")


def first_images(folder: Path, output: Path) -> float:
    """Seconds until an image is committed; the job is killed then."""
    begun = time.perf_counter()
    with started("-m", "segray.cli", *_annotate(folder, output)) as process:
        wait_for(lambda: committed(output) > 0, process)
        return time.perf_counter() - begun


def fingerprint(output: Path) -> tuple[int, int, int]:
    """Different images, different instances, and a sum over ids and scores that another row would change."""
    images = pq.read_table(output / "images", columns=["image_id"])["image_id"]
    instances = pq.read_table(output / "instances", columns=["instance_id", "image_id", "score"])
    rows = zip(*(instances[name].to_pylist() for name in instances.column_names), strict=True)
    names = pc.count_distinct(images).as_py(), pc.count_distinct(instances["instance_id"]).as_py()
    check(names == (len(images), len(instances)), "scale: a row is there twice")
    return *names, sum(map(hash, rows)) + sum(map(hash, images.to_pylist()))


def driver_bytes(pid: int, poll: object) -> int:
    """The most memory (VmHWM) of one process until it ends."""
    most = 0
    while callable(poll) and poll() is None:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            break
        most = max([most, *(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.2)
    return most


def _annotate(folder: Path, output: Path) -> tuple[object, ...]:
    return ("annotate", folder, "--output", output, "--weights", STUB, "--device", "cpu")
