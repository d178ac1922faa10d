"""The process that measures one model once: `python -m segray.comparison.measure ANSWER`, TASK on stdin.

TASK is a pickled `Task`; the end of stdin ends the process. ANSWER is a file for JSON: a
`Measured`, or an error. Each measurement has a fresh process: the peak of its memory is the model's own, and
no model finds caches that another one warmed.
"""

import json
import os
import pickle
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segray.errors import SegrayError
from segray.evaluate.compare_model import Classifier
from segray.models.architectures import Task as Kind
from segray.models.device import Precision
from segray.models.weights import LoadedModel, load_weights
from segray.storage import StorageSettings

Bytes = NDArray[np.uint8]
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_LEAST_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured, and how."""

    spec: str
    kind: Kind
    storage: StorageSettings
    device: str
    precision: Precision
    threads: int
    images: tuple[Bytes, ...]
    """uint8 (height, width, 3), of one size: they are repeated."""
    batch_size: int
    warm_up: int
    seconds: float
    score_threshold: float
    """Of instance models."""
    counts_flops: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement."""

    images_per_s: float
    batches: int
    peak_bytes: int
    """Most memory of the process while it predicted (resident set), on a GPU of its tensors there."""
    loaded_bytes: int
    """Memory before the first prediction, with the model loaded."""
    gflops: float | None
    """Of one image: 2 for each multiplication with addition of convolutions, matrix products and attention;
    None where it was not counted, or the model does not compute in torch."""
    uncounted: str | None = None
    """Why there are no FLOPs, where they were to be counted."""


def measure(task: Task) -> Measured:
    """Load the model, warm it up, and time it; FLOPs are not counted.

    Raises SegrayError as loading does, and whatever the model raises.
    """
    torch.set_num_threads(task.threads)
    model = load_weights(task.spec, task.storage, task.kind)
    run = _semantic(task, model) if task.kind == "semantic" else _instance(task, model)
    del model
    memory = _Memory(task.device)
    for _ in range(task.warm_up):
        run()
    batches, started = 0, time.perf_counter()
    while batches < _LEAST_BATCHES or time.perf_counter() - started < task.seconds:
        run()
        batches += 1
    rate = batches * task.batch_size / (time.perf_counter() - started)
    return Measured(rate, batches, memory.peak(), memory.before, None)


def counted(task: Task, measured: Measured) -> Measured:
    """Return a measurement with its FLOPs, or with why there are none: that costs nothing else."""
    try:
        gflops = gflops_of(task)
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        return replace(measured, uncounted=_in_words(error))
    why = "the model computes nothing in torch that is counted" if gflops is None else None
    return replace(measured, gflops=gflops, uncounted=why)


def _semantic(task: Task, model: LoadedModel) -> Callable[[], Any]:
    """Return a function that classifies the next batch: normalisation, network, classes on the CPU."""
    classifier = Classifier(model, task.device, task.precision)
    batches = cycle([_tensor(batch) for batch in _batches(task.images, task.batch_size)])
    return lambda: classifier.classes(next(batches))


def _tensor(images: Sequence[Bytes]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _instance(task: Task, model: LoadedModel) -> Callable[[], Any]:
    """Return a function that detects in the next batch, up to masks inside their boxes."""
    from segray.annotate.predictor import Predictor

    threshold = task.score_threshold
    predictor = Predictor(model, task.device, task.precision, threshold, task.batch_size, task.threads)
    predictor.model = None  # type: ignore[assignment]  # its detector has a copy; one is measured
    batches = cycle(_batches(task.images, task.batch_size))
    return lambda: predictor.detector.detect(next(batches))


def _batches(images: Sequence[Bytes], size: int) -> list[list[Bytes]]:
    """Return batches of images, in turn; as many as there are images."""
    turn = cycle(images)
    return [list(islice(turn, size)) for _ in images]


def gflops_of(task: Task) -> float | None:
    """Return the billions of operations of a forward pass on one image, on the CPU in float32.

    Those that `torch.utils.flop_counter` knows: convolutions, matrix products, attention; not
    normalisation, activations, pooling, interpolation, RoI alignment or NMS. For an instance model they
    depend on the image: how many regions its second stage gets. None where none was counted. Raises
    SegrayError for SAM, whose number of prompts differs, and whatever the model raises.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads much of torch, after memory was measured

    model = load_weights(task.spec, task.storage, task.kind)
    if model.kind == "sam":
        raise SegrayError("FLOPs of SAM depend on the number of prompts")
    pixels = torch.from_numpy(np.ascontiguousarray(task.images[0].transpose(2, 0, 1)))
    if task.kind == "semantic" or getattr(model.module, "image_dtype", None) != torch.uint8:
        pixels = pixels.float() / 255
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # inference mode hides operators
        if task.kind == "semantic":
            mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.mean, model.std))
            model.module(((pixels - mean) / std)[None])
        else:
            model.module([pixels])
    total = counter.get_total_flops()
    return total / 1e9 if total else None


class _Memory:
    """Peak of memory from now on."""

    def __init__(self, device: str) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = int(torch.cuda.memory_allocated())
            return
        with suppress(OSError):  # else the peak includes loading
            _RESET.write_text("5")  # resets VmHWM, see man proc_pid_clear_refs
        self.before = _resident("VmRSS")

    def peak(self) -> int:
        """Return the peak in bytes."""
        return int(torch.cuda.max_memory_allocated()) if self._on_gpu else _resident("VmHWM")


def _resident(name: str) -> int:
    """Return a line of Linux's status file in bytes; elsewhere the peak of `getrusage`.

    On Linux `ru_maxrss` of a new process begins with what its parent had.
    """
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, and with it our stdin."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """Measure what stdin says, and write the answer; return the exit code."""
    task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        measured = measure(task)
        if task.counts_flops:  # they may end this process, as with too little memory
            _answer(asdict(replace(measured, uncounted="the process ended while they were counted")))
            measured = counted(task, measured)
        _answer(asdict(measured))
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        _answer({"error": _in_words(error)})
    return 0


def _in_words(error: Exception) -> str:
    if isinstance(error, SegrayError):
        return "; ".join(error.lines)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _answer(content: dict[str, Any]) -> None:
    """Write the answer, whole or not at all."""
    part = Path(f"{sys.argv[1]}.part")
    part.write_text(json.dumps(content))
    part.replace(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
