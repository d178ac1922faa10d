"""Running `segray annotate` in tests, and reading what it wrote."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from segray.cli import main
from tests.warm_segray import WarmSegray

REAL = sorted((Path(__file__).parents[1] / "data/nuclei/images").glob("*.png"))
MODELS = "python:tests.bulk.models:"
TILING = ("--tile", "640", "--overlap", "128")
"""Of the two scenes in `mixed`, which have 16 tiles each so."""
FEW = ("--decoders", "1")
"""On the tests' Ray of four CPUs there would be four, which start in more time than a test's work takes."""
OTHER_NAMES = ("image_id", "instance_id", "uri", "member", "member_index", "version")


def make_images(folder: Path, number: int, poisoned: tuple[int, ...] = ()) -> Path:
    """Crops of the bundled real images, 64 x 64 PNG, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [np.asarray(Image.open(path).convert("RGB")) for path in REAL]
    for index in range(number):
        source = sources[index % len(sources)]
        top, left = (31 * index) % (source.shape[0] - 64), (17 * index) % (source.shape[1] - 64)
        crop = source[top : top + 64, left : left + 64].copy()
        crop[0, 0, 0] = 7 if index in poisoned else 100
        crop[0, 1] = index
        Image.fromarray(crop).save(folder / f"{index:04d}.png")
    return folder


def annotate(*arguments: object) -> int:
    """The command in this process; returns its exit code. Options given here win over `FEW`."""
    return main(["annotate", *FEW, *map(str, arguments)])


def tables(
    output: object, filesystem: AbstractFileSystem | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(ledger rows, instance rows) as a user's globs find them, each sorted by id."""
    filesystem = filesystem or LocalFileSystem()

    def rows(folder: str, key: str) -> list[dict[str, Any]]:
        found = []
        for path in filesystem.glob(f"{output}/{folder}/*.parquet"):
            with filesystem.open(path) as file:
                found += pq.read_table(file).to_pylist()
        return sorted(found, key=lambda row: str(row[key]))

    return rows("images", "image_id"), rows("instances", "instance_id")


def tiles(output: object) -> list[dict[str, Any]]:
    """Tile rows, as a user's globs find them."""
    found = [
        row for path in Path(str(output)).glob("tiles/*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return sorted(found, key=lambda row: (row["image_id"], row["tile_row"], row["tile_col"]))


def by_base_name(output: object, filesystem: AbstractFileSystem | None = None) -> dict[str, Any]:
    """Base name -> (ledger row, instances) without ids and addresses."""
    return rows_by_base_name(*tables(output, filesystem))


def rows_by_base_name(images: list[dict[str, Any]], instances: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of some ledger rows, and of instances among which are theirs."""
    names = {row["image_id"]: Path(row["member"] or row["uri"]).name for row in images}
    assert len(set(names.values())) == len(images)

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name not in OTHER_NAMES}

    return {
        names[image["image_id"]]: (
            plain(image),
            [plain(row) for row in instances if row["image_id"] == image["image_id"]],
        )
        for image in images
    }


@contextmanager
def running(
    *arguments: object,
    program: str = "tests.warm_segray",
    env: Mapping[str, str] = MappingProxyType({}),
    verb: str = "annotate",
) -> Iterator[subprocess.Popen[str]]:
    """The command as a process group of its own; all of it is killed at the end."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | dict(env)
    process = WarmSegray(program, [verb, *map(str, arguments)], environment)
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.communicate()


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, command line) of everything that runs."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue
        found[int(folder.name)] = (parent, command)
    return found


def descendants(pid: int) -> dict[int, str]:
    """pid -> command line of all processes below `pid`."""
    everything = processes()
    below, last = {pid}, set[int]()
    while below != last:
        last = set(below)
        below |= {child for child, (parent, _) in everything.items() if parent in below}
    return {child: everything[child][1] for child in below - {pid} if child in everything}


def kill_tree(pid: int) -> None:
    """kill -9 of a driver and everything it started."""
    for victim in [pid, *descendants(pid)]:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until it holds; fails with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


def committed(output: Path) -> int:
    """Files that hold committed items."""
    return sum(1 for folder in ("_segray/staging", "images") for _ in (output / folder).glob("*.parquet"))
