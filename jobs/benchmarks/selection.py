"""Whether 60 images that `segray select` chooses train a better model than 60 random ones.

    python -m jobs.benchmarks.selection NUCLEI FOLDER [--seeds 3] [--epochs 6]

NUCLEI holds `images/` and `instances.json` (COCO). A quarter of it is for test. A start model is trained on
30 random images of the rest; 12 choose the best epoch. From what remains, the pool, one arm takes what
`segray select` chooses with the start model, the other a random draw. Both go on from the start model, with
the 30 images and their 60, for the same number of steps. Mask AP of the test split, each seed, goes to
FOLDER/figures.json.

Every step is skipped whose output is finished: a killed run goes on.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from jobs.benchmarks.measure import Figure, Options, ratios

ROOT = Path(__file__).parents[2]
START, VAL, BUDGET = 30, 12, 60
START_EPOCHS, EPOCHS = 60, 6
ARMS = ("selected", "random")
GOAL = ">= 1"
RECIPE = {"min_size": 256, "max_size": 512, "size": 192, "warmup_steps": 20, "balance_kinds": False}
"""Differences from jobs/nuclei.yaml: half the scale, and no balancing of kinds, which hides a lack."""


@dataclass(frozen=True)
class Experiment:
    """Where everything lies, and how long it trains."""

    nuclei: Path
    folder: Path
    start_epochs: int
    epochs: int

    def split(self) -> dict[str, list[str]]:
        """Return file names of test, val, start and pool, in an order that the names' hashes give."""
        names = [image["file_name"] for image in self.content()["images"]]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        test = len(names) // 4
        ends = [0, test, test + VAL, test + VAL + START, len(names)]
        parts = pairwise(ends)
        return {
            part: names[a:b] for part, (a, b) in zip(("test", "val", "start", "pool"), parts, strict=True)
        }

    def content(self) -> dict[str, Any]:
        """Return the COCO file."""
        found: dict[str, Any] = json.loads((self.nuclei / "instances.json").read_text())
        return found

    def coco(self, name: str, splits: dict[str, Sequence[str]]) -> Path:
        """Write a COCO file with these images, each with its split; return its path."""
        content = self.content()
        of = {file: split for split, files in splits.items() for file in files}
        images = [
            {
                **image,
                "file_name": str(self.nuclei / "images" / image["file_name"]),
                "split": of[image["file_name"]],
            }
            for image in content["images"]
            if image["file_name"] in of
        ]
        ids = {image["id"] for image in images}
        found = [each for each in content["annotations"] if each["image_id"] in ids]
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({**content, "images": images, "annotations": found}))
        return path

    def manifest(self, name: str, files: Sequence[str]) -> Path:
        """Write a manifest of images; return its path."""
        path = self.folder / f"{name}.csv"
        path.write_text("\n".join(["uri", *(str(self.nuclei / "images" / file) for file in files)]) + "\n")
        return path

    def start_model(self, splits: dict[str, list[str]]) -> Path:
        """Train the start model; return its weights."""
        data = self.coco("start", {"train": splits["start"], "val": splits["val"]})
        output = self.folder / "start"
        if not (output / "run.json").exists():
            train(data, output, "--epochs", self.start_epochs)
        return output / "model.pt"

    def drawn(self, arm: str, seed: int, pool: Path, files: Sequence[str]) -> list[str]:
        """Return the file names that an arm adds."""
        if arm == "random":
            key = [(hashlib.sha256(f"{seed} {name}".encode()).digest(), name) for name in files]
            return [name for _, name in sorted(key)[:BUDGET]]
        output = self.folder / f"selected-{seed}.parquet"
        if not output.exists():
            work = self.folder / "work"
            known = ("--labels", self.folder / "start.json", "--work", work)
            segray("select", pool, "--budget", BUDGET, *known, "--seed", seed, "--output", output)
        return [Path(uri).name for uri in pq.read_table(output)["uri"].to_pylist()]


def figures(options: Options) -> Iterator[Figure]:
    """Of both arms' AP, a ratio a seed; needs the nuclei, and about an hour of two idle cores."""
    name = f"mask AP with {BUDGET} selected images / with {BUDGET} random ones, nuclei"
    if options.labelled is None:
        yield Figure(name, GOAL, [], ["needs --labelled FOLDER"])
        return
    epochs = (1, 1) if options.quick else (START_EPOCHS, EPOCHS)
    this = Experiment(options.labelled.resolve(), options.scratch / "selection", *epochs)
    found = trained(this, options.rounds(3))
    selected, drawn = ([float(each["ap"]) for each in found if each["arm"] == arm] for arm in ARMS)
    told = [", ".join(f"{each['arm']} {each['seed']}: AP {each['ap']:.4f}" for each in found)]
    yield Figure(name, GOAL, ratios(selected, drawn), told)


def trained(this: Experiment, seeds: int) -> list[dict[str, Any]]:
    """Train and score all arms; return and write their figures, the start model's first."""
    this.folder.mkdir(parents=True, exist_ok=True)
    splits = this.split()
    weights, pool = this.start_model(splits), this.folder / "pool"
    if not (pool / "run.json").exists():
        manifest = this.manifest("pool", splits["start"] + splits["pool"])
        segray("annotate", manifest, "--weights", weights, "--output", pool)
    found: list[dict[str, Any]] = [
        {"arm": "start", "seed": 0, "images": START, **score(this, weights, "start", splits)}
    ]
    for seed in range(seeds):
        for arm in ARMS:
            found.append(figure(this, arm, seed, weights, pool, splits))
            (this.folder / "figures.json").write_text(json.dumps(found, indent=2) + "\n")
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> int:
    """Run the experiment in a folder that stays, so that a killed one goes on."""
    given = _parser().parse_args()
    this = Experiment(given.nuclei.resolve(), given.folder.resolve(), given.start_epochs, given.epochs)
    found = trained(this, given.seeds)
    for arm in ARMS:
        scores = [float(each["ap"]) for each in found if each["arm"] == arm]
        print(f"{arm}: AP {statistics.mean(scores):.4f}, mean of {', '.join(f'{ap:.4f}' for ap in scores)}")
    return 0


def figure(
    this: Experiment, arm: str, seed: int, weights: Path, pool: Path, splits: dict[str, list[str]]
) -> dict[str, Any]:
    """Train and score one arm with one seed."""
    name = f"{arm}-{seed}"
    added = this.drawn(arm, seed, pool, splits["pool"])
    data = this.coco(name, {"train": [*splits["start"], *added], "val": splits["val"]})
    output = this.folder / name
    if not (output / "run.json").exists():
        train(data, output, "--start-from", weights, "--epochs", this.epochs, "--seed", seed)
    instances = len(json.loads(data.read_text())["annotations"])
    about = {"arm": arm, "seed": seed, "images": START + len(added), "instances_with_val": instances}
    return {**about, **score(this, output / "model.pt", name, splits)}


def score(this: Experiment, weights: Path, name: str, splits: dict[str, list[str]]) -> dict[str, float]:
    """Return mask AP and AP50 of the test images."""
    labels = this.coco("test", {"test": splits["test"]})
    run, scores = this.folder / f"{name}-test", this.folder / f"{name}-scores"
    if not (run / "run.json").exists():
        manifest = this.manifest("test", splits["test"])
        segray("annotate", manifest, "--weights", weights, "--score-threshold", 0.05, "--output", run)
    segray("evaluate", "--predictions", run, "--labels", labels, "--detections", 500, "--output", scores)
    found = json.loads((scores / "metrics.json").read_text())
    return {name: float(found["metrics"]["segm"][name]) for name in ("ap", "ap50")}


def train(data: Path, output: Path, *more: object) -> None:
    """Train by the recipe."""
    recipe = output.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(yaml.safe_load((ROOT / "jobs/nuclei.yaml").read_text()) | RECIPE))
    segray("train", "--config", recipe, "--data", data, "--output", output, *more)


def segray(*arguments: object) -> None:
    """Run a command; its output goes to this one's. Raises CalledProcessError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "segray.cli", *map(str, arguments)]
    print(" ".join(["segray", *map(str, arguments)]), flush=True)
    subprocess.run(command, check=True, env=environment, cwd=ROOT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("nuclei", type=Path, help="folder with images/ and instances.json")
    parser.add_argument("folder", type=Path, help="folder for everything that is made")
    parser.add_argument("--seeds", type=int, default=3, help="how often both arms are trained")
    parser.add_argument(
        "--start-epochs", type=int, default=START_EPOCHS, help="epochs of the start model, of 30 images"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of each arm, of 90 images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
