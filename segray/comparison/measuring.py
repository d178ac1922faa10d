"""Speed, memory and FLOPs of each model: rounds in which the models come in turn, each in a fresh process.

A measurement is a file in OUTPUT/_segray/measured, so that a killed run does not repeat it. What else ran on
the machine hits all models of a round alike, and the median of the rounds is reported.
"""

import gc
import json
import pickle
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from segray.comparison.candidates import Candidate
from segray.comparison.measure import Measured, Task
from segray.comparison.results import Cost
from segray.comparison.settings import CompareSettings
from segray.cpus import whole_cpus
from segray.log import say
from segray.models.architectures import Task as Kind
from segray.models.device import Precision, default_batch_size
from segray.output.folder import Output

Bytes = NDArray[np.uint8]
FOLDER = "_segray/measured"


@dataclass(frozen=True, slots=True)
class Measuring:
    """How all models are measured."""

    settings: CompareSettings
    kind: Kind
    device: str
    precision: Precision
    images: tuple[Bytes, ...]
    """Some of the data, uint8 (height, width, 3)."""
    size: tuple[int, int]
    """Height and width, where a model does not resize to its own."""

    @property
    def batch_size(self) -> int:
        """Return the number of images of a batch."""
        return self.settings.batch_size or default_batch_size(self.device)

    @property
    def threads(self) -> int:
        """Return the number of torch's threads."""
        return self.settings.threads or whole_cpus()

    def about(self) -> dict[str, Any]:
        """Return what the figures hold for."""
        return {
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": self.threads if self.device == "cpu" else None,
            "batch_size": self.batch_size,
            "rounds": self.settings.rounds,
            "round_s": self.settings.round_s,
            "warm_up": self.settings.warm_up,
        }

    def input_of(self, candidate: Candidate) -> tuple[int, int]:
        """Return height and width at which a model is measured."""
        if self.settings.size is None and candidate.resized_to is not None:
            return candidate.resized_to, candidate.resized_to
        return self.size

    def task(self, candidate: Candidate, number: int) -> Task:
        """Return what a process measures; FLOPs in the first round alone."""
        settings = self.settings
        size = self.input_of(candidate)
        return Task(
            candidate.spec,
            self.kind,
            settings.storage,
            self.device,
            self.precision,
            self.threads,
            tuple(_resized(each, size) for each in self.images),
            self.batch_size,
            settings.warm_up,
            settings.round_s,
            settings.score_threshold,
            number == 0,
        )


def measured(measuring: Measuring, candidates: Sequence[Candidate], store: Output) -> list[Cost]:
    """Measure all models; those of the rounds that are there already are not measured again."""
    settings = measuring.settings
    if settings.rounds and measuring.device == "cuda":  # what this process still holds is not theirs
        gc.collect()
        torch.cuda.empty_cache()
    others = tuple(each.digest for each in candidates)
    rounds: list[list[Measured | str]] = [[] for _ in candidates]
    for number in range(settings.rounds):
        say(f"round {number + 1} of {settings.rounds}: speed and memory of {len(candidates)} models")
        for candidate, found in zip(candidates, rounds, strict=True):
            if not any(isinstance(each, str) for each in found):
                found.append(_once(measuring, candidate, number, others, store))
    return [
        _cost(measuring.input_of(candidate), found)
        for candidate, found in zip(candidates, rounds, strict=True)
    ]


def _once(
    measuring: Measuring, candidate: Candidate, number: int, others: Sequence[str], store: Output
) -> Measured | str:
    """Return a measurement, or why there is none."""
    about = measuring.about(), measuring.input_of(candidate), torch.__version__, tuple(others)
    name = f"{FOLDER}/{candidate.slug}-{candidate.key(about)}-{number}.json"
    there = store.read_json(name)
    if isinstance(there, dict):
        return Measured(**there)
    found = in_own_process(measuring.task(candidate, number))
    if isinstance(found, Measured):
        store.write_json(name, asdict(found))
        say(f"  {candidate.name}: {found.images_per_s:,.2f} images/s, {found.peak_bytes / 1e6:,.0f} MB")
        if found.uncounted is not None:
            say(f"  {candidate.name}: no GFLOPs: {found.uncounted}", "warning")
    else:
        say(f"  {candidate.name}: cannot be measured: {found}", "warning")
    return found


def in_own_process(task: Task) -> Measured | str:
    """Measure a model in a fresh process; return why it failed where it did, also by dying."""
    with tempfile.TemporaryDirectory(prefix="segray-measure-") as folder:
        answer, log = Path(folder, "answer"), Path(folder, "log")
        command = [sys.executable, "-m", "segray.comparison.measure", str(answer)]
        with log.open("wb") as noise:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=noise, stderr=noise)
            assert process.stdin is not None
            try:
                with suppress(BrokenPipeError):  # it died: its log says why
                    process.stdin.write(pickle.dumps(task))
                    process.stdin.flush()
                process.wait()  # stdin stays open: its end tells the process that this one was killed
            finally:
                process.kill()
                process.wait()
                with suppress(BrokenPipeError):
                    process.stdin.close()
        if answer.exists():
            found = json.loads(answer.read_text())
            return str(found["error"]) if "error" in found else Measured(**found)
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        died = f"its process ended with code {process.returncode}"
        hint = " (killed: out of memory?)" if process.returncode == -9 else ""
        return f"{died}{hint}: {last[0]}" if last else died + hint


def _cost(size: tuple[int, int], rounds: Sequence[Measured | str]) -> Cost:
    error = next((each for each in rounds if isinstance(each, str)), None)
    known = [each for each in rounds if isinstance(each, Measured)]
    if error is not None or not known:
        return Cost(size, error=error)
    rates = tuple(each.images_per_s for each in known)
    return Cost(
        size,
        median(rates),
        rates,
        max(each.peak_bytes for each in known),
        max(each.loaded_bytes for each in known),
        next((each.gflops for each in known if each.gflops is not None), None),
    )


def _resized(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Return an image resized to height and width."""
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    resized = functional.resize(pixels, list(size)).numpy()
    return np.ascontiguousarray(resized.transpose(1, 2, 0))


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the CPU as the system gives it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
