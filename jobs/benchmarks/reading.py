"""Pixels into memory: segray's reader stages against torch's DataLoader and `ray.data.read_images`."""

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from jobs.benchmarks.commands import answered
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import folder_of

FEW, MANY = 1000, 4000


def figures(options: Options) -> Iterator[Figure]:
    """Steady state: a larger job less a smaller one, over the difference of their pictures."""
    number, many = (32, 64) if options.quick else (FEW, max(options.images or MANY, FEW + 1))
    few, folder = folder_of(options, number), folder_of(options, many)
    pictures = {name: read(name, few)["pictures"] for name in ("torch", "ray", "segray")}
    for name in ("torch", "ray"):
        check(pictures["segray"] == pictures[name], f"reading: segray and {name} saw other pixels")
    ours, torch, ray = take_turns(
        [lambda name=name: seconds_a_picture(name, few, folder) for name in ("segray", "torch", "ray")],  # type: ignore[misc]
        options.rounds(3),
    )
    rates = [f"{1 / median(each):,.1f}" for each in (ours, torch, ray)]
    fact = f"{cores()} processes; segray {rates[0]}, DataLoader {rates[1]}, read_images {rates[2]} images/s"
    yield Figure(
        "reading / torch DataLoader, same decoder and processes", ">= 0.9", ratios(torch, ours), [fact]
    )
    yield Figure("reading / ray.data.read_images", ">= 2", ratios(ray, ours))


def read(name: str, folder: Path) -> dict[str, object]:
    """One of `readers` over a folder."""
    return answered("readers", name, folder, cores())


def seconds_a_picture(name: str, few: Path, many: Path) -> float:
    """In steady state."""
    answers = [answered("readers", name, folder, cores()) for folder in (few, many)]
    more = len(answers[1]["pictures"]) - len(answers[0]["pictures"])
    return float(max(answers[1]["seconds"] - answers[0]["seconds"], 1e-9)) / more


def cores() -> int:
    """Of this machine, for us."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
