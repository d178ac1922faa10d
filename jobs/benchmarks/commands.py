"""Arms that are whole programs: started, timed from start to end, their outputs read."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.benchmarks.pictures import ROOT

_DROPPED = ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")  # the second makes each process compile all it imports
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in _DROPPED},
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}
Instances = dict[str, list[dict[str, Any]]]
"""Name of a picture -> what was found: category_id, score, box (x, y, width, height), size, counts."""


def python(*arguments: object) -> float:
    """Seconds that a Python program took. Raises RuntimeError with its last words when it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return seconds


def segray(folder: Path, output: Path, *options: object) -> float:
    """Seconds of `segray annotate` into a fresh output."""
    shutil.rmtree(output, ignore_errors=True)
    return python("-m", "segray.cli", "annotate", folder, "--output", output, *options)


def plain(folder: Path, output: Path, *options: object) -> float:
    """Seconds of the plain torchvision script."""
    return python("jobs/plain_torchvision.py", folder, output, *options)


def answered(program: str, *arguments: object) -> dict[str, Any]:
    """What a program of this folder printed: one JSON object."""
    command = [sys.executable, "-m", f"jobs.benchmarks.{program}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program}: exit {done.returncode}\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def seconds_an_image(run: Callable[[Path], float], few: Path, many: Path) -> float:
    """What one more image costs: the time of a larger job less that of a smaller one, over the difference.

    Starting, loading, filling and draining are in both and drop out; committing and merging stay in.
    """
    sizes = [sum(1 for _ in folder.iterdir()) for folder in (few, many)]
    return max(run(many) - run(few), 1e-9) / (sizes[1] - sizes[0])


def plain_seconds_an_image(few: Path, many: Path, output: Path, *options: object) -> float:
    """What one more image costs the plain script."""
    return seconds_an_image(lambda folder: plain(folder, output, *options), few, many)


def segray_instances(output: Path) -> Instances:
    """By name of the picture; pictures without instances are there, too."""
    images = pq.read_table(output / "images").to_pylist()
    names = {row["image_id"]: Path(row["uri"]).name for row in images}
    if any(row["status"] != "annotated" for row in images):
        raise RuntimeError("a picture was rejected: " + str(next(row["error"] for row in images)))
    found: Instances = {name: [] for name in names.values()}
    for row in pq.read_table(output / "instances").to_pylist():
        found[names[row["image_id"]]].append(
            {
                "category_id": row["category_id"],
                "score": row["score"],
                "box": row["box"],
                **row["segmentation"],
            }
        )
    return found


def plain_instances(output: Path, folder: Path) -> Instances:
    """Likewise; masks without a pixel, which segray drops, are dropped."""
    found: Instances = {path.name: [] for path in folder.iterdir()}
    for row in pq.read_table(output).to_pylist():
        x0, y0, x1, y1 = row["box"]
        found[row.pop("image")].append({**row, "box": [x0, y0, x1 - x0, y1 - y0]})
    return found
