"""What every training has, whatever its task: network, average, optimiser, schedule, epoch and step. No Ray.

One process is the rule of which several are the case: with an initialised process group, gradients are
averaged by DDP. The loop (`loop`) knows nothing else of a training than what stands here.
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
    ScheduleSettings,
    load_plateau_state,
    plateau_factor,
    plateau_of,
    plateau_state,
    rate,
)
from segray.train.optim import OptimizerSettings, build_optimizer
from segray.train.warm_start import frozen_in

LEAST_SCALE = 1e-4
"""Of the fp16 loss, as in fairseq: gradients that are still not finite are not so because of the scale."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How a network is trained: with a task's own fields, all that decides the weights but the images."""

    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    epochs: int
    steps_per_epoch: int
    seed: int
    precision: str
    """`fp32`, or autocast: `bf16`, or `fp16` with a loss that is scaled."""
    clip: float
    """Largest norm of the gradient."""
    ema: float
    """Decay of the averaged weights; 0: none are kept."""
    pretrained: bool = False
    """Begin with ImageNet's weights in the encoder."""
    accumulate: int = 1
    """Parts in which each process does its images of a global batch: maps of one part fill the memory."""
    start: dict[str, Tensor] | None = None
    """Weights to begin with, see `begin_with`."""
    frozen: tuple[str, ...] = ()
    """Layers that stay as they are, by the beginning of their names or as globs."""
    frozen_epochs: int | None = None
    """Epochs in which they do; None: all."""

    @abstractmethod
    def training(self, device: torch.device) -> "Training":
        """Return the training of this process."""


class Training(ABC):
    """The state of a training, alike in each of its processes; a task says what a step and a score are."""

    best: ClassVar[str]
    """The figure that decides which network is kept: the highest."""
    recipe: Recipe

    def __init__(self, recipe: Recipe, model: nn.Module, device: torch.device) -> None:
        """model: on the device."""
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
        self.plateau = plateau_of(recipe.schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        several = distributed.is_available() and distributed.is_initialized()
        self._workers = distributed.get_world_size() if several else 1
        self._parallel = DistributedDataParallel(model, gradient_as_bucket_view=True) if several else None
        self._network: Any = self._parallel or model

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the classes."""

    @abstractmethod
    def _backward(self, batch: Any) -> Tensor:
        """Leave the gradient of the global batch's loss in the parameters; returns the loss, a scalar."""

    @abstractmethod
    def figures(self, pictures: Iterable[Any]) -> dict[str, Any]:
        """The scores of a line of metrics.jsonl, of the pictures of all processes; some may have none."""

    @abstractmethod
    def model_file(self) -> bytes:
        """The network that is scored, as `model.pt`."""

    @abstractmethod
    def draw(self, picture: Any, filesystem: fsspec.AbstractFileSystem, folder: str) -> None:
        """Write a batch of one picture into a folder, as a person and the network that is scored see it."""

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept."""
        return self.model if self.average is None else self.average.module

    def train_step(self, batch: Any) -> float:
        """One optimiser step; returns the loss of the global batch.

        In fp16 the step is left out, and the next loss scaled down, when a gradient is beyond the range.
        Raises JobFailedError, in every process, when the loss is not finite, or the gradient for another
        reason.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self._network.train()
        is_frozen = self.recipe.frozen_epochs is None or self.epoch < self.recipe.frozen_epochs
        if is_frozen:
            self._frozen.keep_statistics()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch).item()
        if is_frozen:
            self._frozen.drop_gradients()  # the optimiser leaves alone what has none
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
        """Take the figures of a validation, the same in each process; `plateau` steps by them."""
        if self.plateau is not None:
            self.plateau.step(figures[self.best])

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on exactly, plain types and tensors: all random draws follow from the step."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": plateau_state(self.plateau),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, of a recipe with the same average and precision."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_plateau_state(self.plateau, state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]

    def _rate(self) -> float:
        total = self.recipe.epochs * self.recipe.steps_per_epoch
        factor = rate(self.recipe.schedule, self.step, total) * plateau_factor(self.plateau)
        return self.recipe.optimizer.lr * factor

    def _alone(self, alone: bool) -> AbstractContextManager[None]:
        """Whether gradients stay in this process for now; those of the last part carry all to the others."""
        return self._parallel.no_sync() if alone and self._parallel is not None else nullcontext()

    def _diverged(self, loss: float, names: list[str]) -> str:
        everyone: list[list[str]] = [names]
        if self._parallel is not None:
            everyone = [[]] * self._workers
            distributed.all_gather_object(everyone, names)
        items = ", ".join(name for part in everyone for name in part)
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        return f"step {self.step}: {what}; lower lr, or look at its pictures: {items}"


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
