"""`segray annotate` in steady state against the plain torchvision script, and against the bare model step.

Steady state: seconds of a larger job less those of a smaller one, over the difference of their pictures. Both
arms are whole programs and are timed so, from the command to the end of the process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from jobs.benchmarks import commands
from jobs.benchmarks.agreement import SCORES, check_alike, check_as_many, check_same
from jobs.benchmarks.commands import Instances
from jobs.benchmarks.flops import flops_an_image, peak_flops
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import folder_of
from jobs.benchmarks.weights import THRESHOLD, write_random_resnet50

FEW = 12
"""Pictures of the smaller job: so many that all processes of the larger one have started in it, too."""
FIRST = 2
"""Pictures that the random weights are made for; those of the smaller job of a quick check."""
ARMS = ["segray fp32", "segray bf16", "plain fp32", "plain bf16", "bare fp32", "bare bf16"]


@dataclass(frozen=True)
class Case:
    """One model on one device."""

    name: str
    weights: str
    many: int
    """Pictures of the larger job."""
    trained: bool
    """Random weights make much of a rounding: in fp32 scores differ a little more, and in bf16 they find
    other things altogether (torchvision's own autocast does: a tenth of its instances had a partner)."""
    device: str = "cpu"


def figures(options: Options) -> Iterator[Figure]:
    """COCO's architecture and the bundled model on the CPU; the first on a GPU, where there is one."""
    weights = options.scratch / "resnet50.pth"
    write_random_resnet50(weights, sorted(folder_of(options, FIRST).iterdir()))
    resnet = Case("R50-FPN", str(weights), FEW + 40, trained=False)
    yield from _on_cpu(resnet, options)
    yield from _on_cpu(Case("nuclei-small", "nuclei-small", FEW + 188, trained=True), options)
    if not torch.cuda.is_available():
        yield Figure("annotate / plain script, on a GPU", ">= 10", [])
        return
    arms, times, facts = _measured(Case("R50-FPN", str(weights), FEW + 1000, False, "cuda"), options)
    for other, goal in (("fp32", ">= 10"), ("bf16", "")):
        against = ratios(times[f"plain {other}"], times["segray bf16"])
        name = f"annotate bf16 / plain {other}, {arms.case.name}, on a GPU"
        yield Figure(name, goal, against, facts if goal else ())


def _on_cpu(case: Case, options: Options) -> Iterator[Figure]:
    _, times, facts = _measured(case, options)

    def against(name: str, goal: str, slow: str, fast: str, *told: str) -> Figure:
        return Figure(f"{name}, {case.name}", goal, ratios(times[slow], times[fast]), told)

    yield against("annotate fp32 / plain fp32", ">= 1.3", "plain fp32", "segray fp32", *facts)
    yield against("annotate bf16 / plain fp32", ">= 2.5", "plain fp32", "segray bf16")
    yield against("annotate bf16 / plain autocast bf16", "", "plain bf16", "segray bf16")
    yield against("annotate fp32 / bare model step", ">= 0.95", "bare fp32", "segray fp32")
    yield against("annotate bf16 / bare model step", ">= 0.95", "bare bf16", "segray bf16")


def _measured(case: Case, options: Options) -> "tuple[Arms, dict[str, list[float]], list[str]]":
    """The arms, seconds an image of each arm in each round, and what to tell."""
    number = FIRST if options.quick else FEW
    many = max(number + 1, options.images or (number + 2 if options.quick else case.many))
    arms = Arms(case, folder_of(options, number), folder_of(options, many), options.scratch)
    facts = arms.check()
    taken = take_turns([partial(arms.seconds, name) for name in ARMS], options.rounds(3))
    times = dict(zip(ARMS, taken, strict=True))
    return arms, times, [*facts, *_absolute(arms, times, options.price_per_hour)]


class Arms:
    """The six programs over two folders."""

    def __init__(self, case: Case, few: Path, many: Path, scratch: Path) -> None:
        self.case, self.few, self.many, self.scratch = case, few, many, scratch

    def seconds(self, name: str) -> float:
        """What one more picture costs."""
        who, precision = name.split()
        if who == "bare":
            return float(self.bare(self.many, precision, 0)["seconds_an_image"])
        return commands.seconds_an_image(lambda folder: self.run(who, folder, precision), self.few, self.many)

    def run(self, who: str, folder: Path, precision: str) -> float:
        """Seconds of the whole program."""
        program = commands.segray if who == "segray" else commands.plain
        common = ("--weights", self.case.weights, "--score-threshold", THRESHOLD)
        return program(
            folder, self.output(who), *common, "--precision", precision, "--device", self.case.device
        )

    def bare(self, folder: Path, precision: str, count: int) -> dict[str, Any]:
        """The model step alone; what it found in the first `count` pictures."""
        return commands.answered("bare", folder, self.case.weights, precision, self.case.device, count)

    def output(self, who: str) -> Path:
        """A folder (segray), a file (plain)."""
        return self.scratch / f"annotate-{who}-{self.case.name}"

    def check(self) -> list[str]:
        """The gate; returns what was found, in words."""
        what = f"annotate, {self.case.name}"
        found: dict[str, Instances] = {}
        for precision in ("fp32", "bf16"):
            self.run("segray", self.few, precision)
            ours = found[f"segray {precision}"] = commands.segray_instances(self.output("segray"))
            strings = {name: [row["counts"] for row in rows] for name, rows in ours.items()}
            bare = self.bare(self.few, precision, len(strings))["counts"]
            check(strings == bare, f"{what}: annotate and its bare model step differ in {precision}")
            self.run("plain", self.few, precision)
            found[f"plain {precision}"] = commands.plain_instances(self.output("plain"), self.few)
        truth = found["plain fp32"]
        scores = SCORES if self.case.trained else 10 * SCORES
        check_same(found["segray fp32"], truth, THRESHOLD, f"{what}, fp32", scores)
        check_as_many(found["segray bf16"], truth, f"{what}, bf16")
        share = check_alike(found["segray bf16"], truth, 0.9 if self.case.trained else 0.0, f"{what}, bf16")
        autocast = check_alike(found["plain bf16"], truth, 0.0, what)
        return [
            _about(truth),
            f"instances with a partner in fp32: {share:.0%} of bf16's, {autocast:.0%} of autocast's",
        ]


def _about(found: Instances) -> str:
    counts = [len(rows) for rows in found.values()]
    rows = [row for each in found.values() for row in each]
    sides = [side for row in rows for side in row["box"][2:]] or [0.0]
    height, width = rows[0]["size"] if rows else (0, 0)
    return (
        f"{width} x {height} pixels, {min(counts)} to {max(counts)} instances a picture, "
        f"median side of a box {np.median(sides):.0f} px"
    )


def _absolute(arms: Arms, times: dict[str, list[float]], price: float) -> Iterator[str]:
    """Rates, MFU and prices: told, never a gate."""
    device = arms.case.device
    flops = flops_an_image(arms.case.weights, next(iter(sorted(arms.few.iterdir()))), THRESHOLD)
    peaks = {precision: peak_flops(precision, device) for precision in ("fp32", "bf16")}
    for name, taken in times.items():
        second = median(taken)
        yield (
            f"{name:12} {1 / second:8.3g} images/s, MFU {flops / second / peaks[name.split()[1]]:4.0%}, "
            f"${price / 3600 * second * 1e6:,.2f} a million at ${price:g} an hour"
        )
    yield f"{flops / 1e9:,.0f} GFLOP an image; peak of a matrix product: " + ", ".join(
        f"{precision} {peak / 1e9:,.0f} GFLOP/s" for precision, peak in peaks.items()
    )
