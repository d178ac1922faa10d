"""The part of a training that all tasks share: network, average, optimiser, schedule, epoch, step. No Ray.

One process is the normal case, several are the same: with an initialised process group, gradients are
averaged by DDP. The loop (`loop`) uses nothing of a training but what is in this file.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import fsspec
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segray.errors import JobFailedError
from segray.train.lr_schedule import (
    LearningRate,
    ScheduleSettings,
)
from segray.train.optim import OptimizerSettings, build_optimizer
from segray.train.warm_start import frozen_in

LEAST_SCALE = 1e-4
"""Minimum scale of the fp16 loss, as in fairseq: below it the scale does not explain infinite gradients."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How a network is trained: with a task's own fields, all that determines the weights but the images."""

    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    epochs: int
    steps_per_epoch: int
    seed: int
    precision: str
    """`fp32`, or autocast: `bf16`, or `fp16` with a scaled loss."""
    clip: float
    """Maximum norm of the gradient."""
    ema: float
    """Decay of the averaged weights; 0: no average."""
    accumulate: int = 1
    """Parts in which each process computes its images of a global batch: memory holds one part's maps."""
    start: dict[str, Tensor] | None = None
    """Weights to start with, see `begin_with`."""
    frozen: tuple[str, ...] = ()
    """Layers that are not trained, by prefixes of their names or as globs."""
    frozen_epochs: int | None = None
    """Epochs in which they are not trained; None: all."""

    @abstractmethod
    def training(self, device: torch.device) -> "Training":
        """Return the training of this process."""


class Training(ABC):
    """The state of a training, the same in each process; a task defines step and score."""

    best: ClassVar[str]
    """Name of the metric that decides which network is kept: the highest."""
    recipe: Recipe

    def __init__(self, recipe: Recipe, model: nn.Module, device: torch.device) -> None:
        """Store the state; model: on the device."""
        self.recipe, self.device, self.model = recipe, device, model
        self._frozen = frozen_in(model, recipe.frozen)
        if recipe.frozen_epochs is None:
            for parameter in self._frozen.parameters:
                parameter.requires_grad_(False)
        self.optimizer = build_optimizer(model, recipe.optimizer)
        self.average = (
            AveragedModel(model, multi_avg_fn=partial(_averaged, recipe.ema), use_buffers=True)
            if recipe.ema
            else None
        )
        steps = recipe.epochs * recipe.steps_per_epoch
        self.rate = LearningRate(recipe.schedule, recipe.optimizer.lr, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self.confusion: list[list[int]] | None = None
        """Of the last `figures`: pixels by true and predicted class; None without classes of pixels."""
        several = distributed.is_available() and distributed.is_initialized()
        self._workers = distributed.get_world_size() if several else 1
        self._parallel = DistributedDataParallel(model, gradient_as_bucket_view=True) if several else None
        self._network: Any = self._parallel or model

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes."""

    @abstractmethod
    def _backward(self, batch: Any) -> Tensor:
        """Compute the gradient of the global batch's loss in the parameters; return the loss, a scalar."""

    @abstractmethod
    def figures(self, pictures: Iterable[Any]) -> dict[str, Any]:
        """Return the scores of a line of metrics.jsonl, over all processes; some may have no image."""

    @abstractmethod
    def model_file(self) -> bytes:
        """Return the network that is scored, as bytes of `model.pt`."""

    @abstractmethod
    def draw(self, picture: Any, filesystem: fsspec.AbstractFileSystem, folder: str) -> None:
        """Draw a batch of one image, with truth and prediction of the scored network, into a folder."""

    @property
    def scored(self) -> nn.Module:
        """Return the network that is scored and kept."""
        return self.model if self.average is None else self.average.module

    def train_step(self, batch: Any) -> float:
        """Do one optimiser step; return the loss of the global batch.

        In fp16 the step is skipped, and the next loss scaled down, when a gradient is beyond the range.
        Raises JobFailedError, in every process, when the loss is not finite, or the gradient for another
        reason.
        """
        self.rate.set(self.optimizer, self.step)
        self._network.train()
        is_frozen = self.recipe.frozen_epochs is None or self.epoch < self.recipe.frozen_epochs
        if is_frozen:
            self._frozen.keep_statistics()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch).item()
        if is_frozen:
            self._frozen.drop_gradients()  # the optimiser skips parameters without gradient
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip).item()
        beyond_range = self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE
        if not math.isfinite(loss) or not (math.isfinite(norm) or beyond_range):
            raise JobFailedError(self._diverged(loss, batch.names))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None and math.isfinite(norm):
            self.average.update_parameters(self.model)
        self.step += 1
        return loss

    def observe(self, figures: dict[str, Any]) -> None:
        """Record the figures of a validation, the same in each process; `plateau` steps by them."""
        self.rate.observe(figures.get(self.best))

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume exactly, plain types and tensors: random draws follow from the step."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.rate.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, from a recipe with the same average and precision."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]

    def _alone(self, alone: bool) -> AbstractContextManager[None]:
        """Keep gradients in this process for now if `alone`; the last part exchanges all of them."""
        return self._parallel.no_sync() if alone and self._parallel is not None else nullcontext()

    def _diverged(self, loss: float, names: list[str]) -> str:
        everyone: list[list[str]] = [names]
        if self._parallel is not None:
            everyone = [[]] * self._workers
            distributed.all_gather_object(everyone, names)
        items = ", ".join(name for part in everyone for name in part)
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        return f"step {self.step}: {what}; lower lr, or check its images: {items}"


def _averaged(
    decay: float, averages: tuple[Tensor, ...], tensors: tuple[Tensor, ...], number: Tensor | int
) -> None:
    """Move averages, in place, towards the tensors of the model after `number` updates.

    The decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage: with all of it
    from the start, 0.998 still held a third of random weights after 500 steps, and scored 0.09 where the
    model itself scored 0.47.
    """
    steps = float(number)
    get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, tensors, number)  # type: ignore[no-untyped-call]
