"""The Ray Train side of `train`: workers in one process group; when one is lost, all start again.

They resume from the last checkpoint. `loader` streams their data, `loop` is what each of them runs.
"""

import json
import socket
import tempfile
import traceback
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from segray import ray_private
from segray.cpus import whole_cpus
from segray.errors import JobFailedError, SegrayError
from segray.output.folder import Output
from segray.output.names import PLAN
from segray.storage import StorageSettings
from segray.train.loader import Feed, batches, pictured
from segray.train.loop import Loop
from segray.train.process_group import OneAddressConfig
from segray.train.resources import Shares
from segray.train.sampler import Part
from segray.train.train_step import Recipe

_FAILED, _WARNED = "segray-train-failed", "segray-train-told"
"""Keys of failures and warnings in the key-value store of Ray's head, which all its processes share."""
_ABORT_S = 20.0


@dataclass(frozen=True)
class Run:
    """The arguments of every worker."""

    recipe: Recipe
    feed: Feed
    device: str
    output: str
    storage: StorageSettings
    checkpoint_every_s: float
    generation: int | None = None
    """Generation of the lease under which all of them write."""
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Distinguishes this call from earlier ones, whose failures are ignored."""


class _Trainer(TorchTrainer):
    """A trainer without Ray's own handler of Ctrl-C, which ends the process with exit code 0."""

    controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out callbacks that start an actor of no use here.

        One serves data sets passed to the trainer: ours are made by the workers. One frees a lost
        controller's share: so does the driver's end, and it queries a dashboard that our own Ray lacks, which
        takes 12 s at the end of each training.
        """
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in made if not isinstance(each, ray_private.idle_train_callbacks())]

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers, which must not go on in a Ray that does."""
        if self.controller is not None:
            with suppress(Exception):  # abort raises an exception of its own
                ray.get(self.controller.abort.remote(), timeout=_ABORT_S)


def train(run: Run, pairs: pa.Table, workers: tuple[int, int], shares: Shares, failures: int) -> None:
    """Train to the last epoch from the state of the output.

    pairs: schema PAIRS, those to train with first. workers: minimum and maximum, as nodes come and go.
    Raises JobFailedError, at once where the workers would fail again in the same way.
    """
    number: Any = workers[1] if workers[0] == workers[1] else workers
    with tempfile.TemporaryDirectory(prefix="segray-train-") as folder:
        trainer = _Trainer(
            _worker,
            # by reference: Ray's controller would import all its modules, seconds before workers start
            train_loop_config={"run": ray.put(run), "pairs": ray.put(pairs)},
            torch_config=OneAddressConfig(backend="nccl" if run.device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=number,
                use_gpu=run.device == "cuda",
                resources_per_worker=shares.of_a_worker,
            ),
            # Ray keeps nothing there but a marker: checkpoints are the loop's
            run_config=RunConfig(
                name="train", storage_path=folder, failure_config=FailureConfig(max_failures=failures)
            ),
        )
        try:
            trainer.fit()
        except KeyboardInterrupt:
            trainer.abort()
            raise
        except Exception as error:
            _raise_failure(run)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise JobFailedError(f"training broke: {(lines or [type(error).__name__])[-1]}") from error
    _raise_failure(run)


def warning_of(run: Run) -> str | None:
    """Return the workers' warning for the user, if any."""
    return ray_private.get(_WARNED, run.attempt)


def _raise_failure(run: Run) -> None:
    if failure := _failure(run):
        raise JobFailedError(*failure["lines"]) from _WorkerError(failure["traceback"])


class _WorkerError(Exception):
    """The traceback of a worker, as text: the cause of the driver's own error."""


def _failure(run: Run) -> Any:
    """Return why a worker of this run failed for good: `lines`, `traceback`; None if none did."""
    failure = ray_private.get(_FAILED, run.attempt)
    return None if failure is None else json.loads(failure)


def _leave_word(run: Run, error: SegrayError) -> None:
    """Publish a failure for the driver and the workers of this run, on any machine and in any folder."""
    word = {"lines": error.lines, "traceback": "".join(traceback.format_exception(error))}
    ray_private.put(_FAILED, run.attempt, json.dumps(word))


def _worker(config: dict[str, Any]) -> None:
    """Run the loop in each worker, in step with the others.

    Ray restarts all of them after any error. An error with a message would occur again: the first worker that
    raises one publishes it, and all restarted workers end at once.
    """
    run: Run = ray.get(config["run"])
    if _failure(run):
        return
    try:
        _train(run, config["pairs"], Output(run.output, run.storage))
    except SegrayError as error:
        _leave_word(run, error)
        raise


def _train(run: Run, pairs: Any, store: Output) -> None:
    context = ray.train.get_context()
    part = Part(context.get_world_rank(), context.get_world_size())
    if store.read(PLAN) is None:
        node = socket.gethostname()
        raise JobFailedError(
            f"output: {run.output} does not exist on the machine {node}; use a bucket, or a folder that all "
            "machines share"
        )
    if run.device == "cpu":  # Ray sets one thread per reserved CPU, a fraction of those that exist
        torch.set_num_threads(max(1, whole_cpus() // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    training = run.recipe.training(device)
    shown = pictured(pairs, run.feed) if part.rank == 0 else []
    loop = Loop(training, store, part.rank, run.checkpoint_every_s, shown, run.generation)
    if (word := loop.restore()) and part.rank == 0:
        ray_private.put(_WARNED, run.attempt, word)
    epochs = range(training.epoch, run.recipe.epochs)
    stream = batches(pairs, run.feed, epochs, loop.position, part)
    loop.run(stream, run.feed.sampler.train, len(part.scored(run.feed.sampler.val)))
