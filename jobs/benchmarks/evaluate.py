"""COCO's figures of 5,000 images, against pycocotools and faster-coco-eval; memory of ten times as many.

Made like COCO's val set: 80 categories, about 7 objects and 20 predictions an image of 640 x 480, run lengths
of some 150 characters. All arms read the same two JSON files and compute the twelve figures of masks and of
boxes, each in a process of its own, timed after the imports. The figures must be equal to 1e-6.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jobs.benchmarks.commands import ENVIRONMENT
from jobs.benchmarks.evaluate_arms import ARMS
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import ROOT

SIZE = (480, 640)
IMAGES = 5_000
_GOALS = {"pycocotools": ">= 2", "faster-coco-eval": ">= 1"}


def figures(options: Options) -> Iterator[Figure]:
    """Ratios of times, then of memory."""
    images = options.images or (200 if options.quick else IMAGES)
    warm, usual = (made(options.scratch / f"{number}", number) for number in (20, images))
    found = {arm: run(arm, *usual, *warm) for arm in ARMS}
    for arm in _GOALS:
        same = np.allclose(found[arm]["figures"], found["segray"]["figures"], rtol=0, atol=1e-6)
        check(same, f"evaluate: figures of {arm} and segray differ")
    times = take_turns([partial(seconds, arm, *usual, *warm) for arm in ARMS], options.rounds(3))
    of = dict(zip(ARMS, times, strict=True))
    for arm, goal in _GOALS.items():
        told = [f"{images:,} images: {min(of[arm]):.1f} s, segray {min(of['segray']):.1f} s"]
        yield Figure(f"COCO figures, {arm} / segray", goal, ratios(of[arm], of["segray"]), told)
    large = made(options.scratch / "large", 10 * images)
    peaks = [run("segray", *each, *warm)["peak_bytes"] / 2**20 for each in (usual, large)]
    told = [f"{peaks[0]:,.0f} MiB for {images:,} images, {peaks[1]:,.0f} for {10 * images:,}"]
    yield Figure("peak memory, 10 x the images", "<= 1.3", [peaks[1] / peaks[0]], told)


def seconds(arm: str, *files: Path) -> float:
    """What an arm took."""
    return float(run(arm, *files)["seconds"])


def run(arm: str, *files: Path) -> dict[str, Any]:
    """What an arm printed, in a process of its own."""
    command = [sys.executable, "-m", "jobs.benchmarks.evaluate_arms", arm, *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arm}: exit {done.returncode}\n{done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def made(folder: Path, images: int) -> tuple[Path, Path]:
    """Write truth and results of so many images; return the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    random, shapes = np.random.default_rng(images), outlines()
    truth, results = folder / "truth.json", folder / "results.json"
    with truth.open("w") as labels, results.open("w") as found:
        categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
        entries = [
            {"id": number, "file_name": f"{number:07d}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for number in range(images)
        ]
        labels.write(f'{{"images": {json.dumps(entries)}, "categories": {json.dumps(categories)}, ')
        labels.write('"annotations": [')
        found.write("[")
        first, number = True, 0
        for image in range(images):
            annotations, predictions = one_image(image, random, shapes)
            for each in annotations:
                number += 1
                labels.write(("" if number == 1 else ",") + json.dumps(each | {"id": number}))
            for each in predictions:
                found.write(("" if first else ",") + json.dumps(each))
                first = False
        labels.write("]}")
        found.write("]")
    return truth, results


@cache
def outlines() -> "Shapes":
    """The same in every file."""
    return Shapes(np.random.default_rng(1))


class Shapes:
    """Outlines at random places: made once, since making masks takes longer than scoring them."""

    def __init__(self, random: np.random.Generator, number: int = 100) -> None:
        self._random = random
        self._shapes = [self._family() for _ in range(number)]

    def _family(self) -> list[dict[str, Any]]:
        """An object and four predictions near it."""
        x, y = self._random.uniform((0, 0), (SIZE[1], SIZE[0]))
        width, height = np.minimum(np.exp(self._random.normal(3.2, 0.9, 2)), 250) + 2
        moves = [(0, 0, 1), *self._random.normal((0, 0, 1), (0.12, 0.12, 0.12), (4, 3)).tolist()]
        return [
            encoded(x + dx * width, y + dy * height, width * abs(scale) + 1, height * abs(scale) + 1)
            for dx, dy, scale in moves
        ]

    def draw(self, random: np.random.Generator) -> list[dict[str, Any]]:
        """One family."""
        return self._shapes[random.integers(len(self._shapes))]


def encoded(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    """A wavy ellipse as `segmentation`, `area` and `bbox`."""
    rows, cols = np.ogrid[: SIZE[0], : SIZE[1]]
    angle = np.arctan2(rows - y, cols - x)
    mask: NDArray[np.bool_] = ((cols - x) / width) ** 2 + ((rows - y) / height) ** 2 <= (
        1 + 0.1 * np.sin(7 * angle)
    )
    mask[min(max(int(y), 0), SIZE[0] - 1), min(max(int(x), 0), SIZE[1] - 1)] = True
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    return {
        "segmentation": segmentation,
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
    }


def one_image(
    image: int, random: np.random.Generator, shapes: Shapes
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """About seven objects with two predictions each, and six false ones."""
    annotations, predictions = list[dict[str, Any]](), list[dict[str, Any]]()
    for _ in range(random.poisson(7)):
        category, family = int(random.integers(1, 81)), shapes.draw(random)
        crowd = int(random.random() < 0.01)
        annotations.append({"image_id": image, "category_id": category, "iscrowd": crowd, **family[0]})
        for place in range(1, 1 + random.integers(0, 5)):
            predictions.append(_predicted(image, category, family[place], random.beta(2, 2)))
    for _ in range(random.poisson(6)):
        false = shapes.draw(random)[0]
        predictions.append(_predicted(image, int(random.integers(1, 81)), false, random.beta(1, 3)))
    return annotations, predictions


def _predicted(image: int, category: int, shape: dict[str, Any], score: float) -> dict[str, Any]:
    row = {"image_id": image, "category_id": category, "score": round(float(score), 4)}
    return row | {"segmentation": shape["segmentation"]}
