"""The training of a semantic network: step, average, score, state; alike in each of its processes. No Ray.

One process is the rule of which several are the case: with an initialised process group, gradients are
averaged by DDP and every sum (loss, confusion matrix) is added over the processes before it is divided.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segray.errors import JobFailedError
from segray.evaluate.semantic import SemanticScores
from segray.models.semanticfile import SemanticCard, classes_of, network_of
from segray.train.losses import LossSettings, build_loss, reduce_over_ranks
from segray.train.optimizers import OptimizerSettings, build_optimizer
from segray.train.schedules import Schedule, ScheduleSettings


@dataclass(frozen=True)
class Task:
    """What is trained and how; everything that decides the weights, but the pictures."""

    card: SemanticCard
    loss: LossSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    epochs: int
    steps_per_epoch: int
    seed: int
    precision: str
    """`bf16` (autocast) or `fp32`."""
    clip: float
    ema: float
    """Decay of the averaged weights; 0: none are kept."""
    pretrained: bool = False


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch."""

    pixels: Tensor
    """uint8 (n, bands, height, width)."""
    classes: Tensor
    """uint8 (n, height, width); 255 is void."""
    names: list[str]


class SemanticTraining:
    """Network, averaged weights, optimiser, schedule, epoch and step."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.device = task, device
        torch.manual_seed(task.seed)
        self.model = network_of(task.card, pretrained=task.pretrained).to(device)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, task.optimizer)
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(task.ema), use_buffers=True)  # type: ignore[no-untyped-call]
            if task.ema
            else None
        )
        self.schedule = Schedule(task.schedule)
        self.loss = build_loss(task.loss, task.card.outputs)
        self.epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self._several = distributed.is_available() and distributed.is_initialized()
        self._parallel: nn.Module = DistributedDataParallel(self.model) if self._several else self.model
        shape = (1, len(task.card.bands), 1, 1)
        self._mean = torch.tensor(task.card.image_mean, device=device).reshape(shape)
        self._std = torch.tensor(task.card.image_std, device=device).reshape(shape)

    def train_step(self, batch: Batch) -> float:
        """One optimiser step; returns the loss of the global batch.

        Raises JobFailedError, in every process, when the loss or the gradient is not finite.
        """
        total = self.task.epochs * self.task.steps_per_epoch
        factor = self.schedule.rate(self.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.optimizer.lr * factor
        self._parallel.train()
        pixels, classes = self._on_device(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.precision == "bf16"):
            logits = self._parallel(pixels)
        loss = self.loss(logits, classes, reduce_over_ranks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
        shown = loss.item()
        if not (math.isfinite(shown) and math.isfinite(norm.item())):
            raise JobFailedError(self._diverged(shown, batch.names))
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return shown

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept."""
        return self.model if self.average is None else self.average.module

    @torch.inference_mode()
    def score(self, pictures: Iterable[Batch]) -> tuple[float, SemanticScores]:
        """(Loss, confusion matrix) over the pictures of all processes; each may have another number."""
        scores = SemanticScores(len(self.task.card.classes))
        sums: Tensor | float = 0.0
        model = self.scored.eval()
        for batch in pictures:
            pixels, classes = self._on_device(batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.precision == "bf16"):
                logits = model(pixels)
            sums = sums + self.loss.sums(logits, classes).double()
            scores.add(batch.classes, classes_of(logits).cpu())
        length = sum(term.length for term in self.loss.terms)
        total = sums if isinstance(sums, Tensor) else torch.zeros(length, dtype=torch.float64)
        total = total.to(self.device)
        matrix = torch.from_numpy(scores.matrix).to(self.device)
        if self._several:
            distributed.all_reduce(total)
            distributed.all_reduce(matrix)
        merged = SemanticScores(scores.classes, matrix=matrix.cpu().numpy())
        return self.loss.value(total).item(), merged

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on exactly, plain types and tensors: all random draws follow from the step."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels = batch.pixels.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
        return pixels.contiguous(memory_format=torch.channels_last), batch.classes.to(self.device)

    def _diverged(self, loss: float, names: list[str]) -> str:
        everyone: list[list[str]] = [names]
        if self._several:
            everyone = [[]] * distributed.get_world_size()
            distributed.all_gather_object(everyone, names)
        items = ", ".join(name for part in everyone for name in part)
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        return f"step {self.step}: {what}; lower lr, or look at its pictures: {items}"
