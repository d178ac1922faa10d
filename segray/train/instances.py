"""Train an instance model: images in memory, augment, step, average, checkpoint, score.

One process is the rule; a launcher such as `torchrun` may start several, see `parallel`.

Every draw of a step comes from a generator seeded by (seed, step) and every rate from the step alone, so the
step number is the whole random state: a killed run that is started again ends with the same weights.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.detection import MaskRCNN

from segray.errors import SettingsError
from segray.models.maskrcnn import CompactSettings
from segray.models.modelfile import ModelCard, build_model, save_model_file
from segray.train import parallel
from segray.train.augment import AugmentSettings, augmented, training_transform
from segray.train.checkpoint import load_checkpoint, save_checkpoint
from segray.train.dataset import InstanceImage, load_coco, split_images
from segray.train.optimizers import decayed_groups
from segray.train.scoring import score_model


@dataclass(frozen=True)
class TrainSettings:
    """One training run; a flag `--name value` of the command sets a field that is a number or a path."""

    data: Path
    """Folder with instances.json and images/."""
    output: Path
    """Folder for model.pt, metrics.jsonl and the checkpoint."""
    steps: int = 3000
    """Optimiser steps; the learning rate falls to zero over them."""
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    gradient_norm: float = 5.0
    ema_decay: float = 0.998
    checkpoint_every: int = 50
    score_every: int = 250
    seed: int = 0
    split_seed: int = 0
    precision: str = "bf16"
    """bf16 (autocast) or fp32."""
    arch: str = "compact-maskrcnn"
    arch_settings: dict[str, Any] = field(default_factory=lambda: asdict(CompactSettings()))
    min_size: int = 512
    max_size: int = 1024
    licence: str = ""
    source: str = ""
    augment: AugmentSettings = field(default_factory=AugmentSettings)


class InstanceTraining:
    """The state of a run: network, its moving average, optimiser, step and the metrics so far."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.rank, self.workers = parallel.start()
        settings.output.mkdir(parents=True, exist_ok=True)
        images, categories = load_coco(settings.data)
        self.splits = split_images(images, seed=settings.split_seed)
        if not self.splits["train"] or not self.splits["val"]:
            raise SettingsError(f"{settings.data}: too few images to have some in train and in val")
        self.card = model_card(settings, self.splits["train"], categories)
        self.weights = sampling_weights(self.splits["train"])
        self.transform = training_transform(settings.augment)
        torch.manual_seed(settings.seed)
        self.model = build_model(self.card)
        if settings.precision == "bf16":  # in fp32 this order made oneDNN's backward pass corrupt the heap
            self.model.to(memory_format=torch.channels_last)
        self.model.transform._skip_resize = True  # in training only: crops have their size already
        averaging = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.model, multi_avg_fn=averaging, use_buffers=True)
        self.optimizer = torch.optim.AdamW(decayed_groups(self.model, settings.weight_decay), lr=settings.lr)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []

    def run(self) -> list[dict[str, float]]:
        """Train to the last step from where the output folder stands; return the metrics of every score."""
        self.resume()
        started, first = time.monotonic(), self.step
        while self.step < self.settings.steps:
            self.losses.append(self.train_step())
            self.step += 1
            if self._due(self.settings.score_every):
                seconds = time.monotonic() - started
                self.score((self.step - first) * self.settings.batch_size / seconds)
                started, first = time.monotonic(), self.step
            if self.rank == 0 and self._due(self.settings.checkpoint_every):
                self.save()
        return self.history

    def train_step(self) -> float:
        """One optimiser step; returns the sum of the losses. Raises ArithmeticError when it is not finite."""
        settings = self.settings
        torch.manual_seed((settings.seed * 1_000_003 + self.step) * 1000 + self.rank)
        pixels, targets = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss: Tensor = sum(self.model(pixels, targets).values(), torch.zeros(()))
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()} at step {self.step}: lower the learning rate")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        shown = parallel.average(self.model, loss.item(), self.workers)
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_norm)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return shown

    def batch(self) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Draw and augment this worker's images of the present step."""
        count = self.settings.batch_size // self.workers
        chosen = torch.multinomial(self.weights, count, replacement=True).tolist()
        train = self.splits["train"]
        samples = [augmented(train[index], self.transform, self.settings.augment) for index in chosen]
        labels = {category: label for label, category in enumerate(sorted(self.card.categories), start=1)}
        for _, target in samples:
            target["labels"].apply_(labels.__getitem__)
        return [pixels for pixels, _ in samples], [target for _, target in samples]

    def score(self, images_per_second: float) -> None:
        """Score the averaged weights on the validation images; keep them as model.pt if they are the best."""
        model = self.averaged_model()
        own = score_model(model, self.card, self.splits["val"][self.rank :: self.workers])
        scores = parallel.gathered(own, self.workers).compute()
        losses, self.losses = self.losses, []
        if self.rank != 0:
            return
        best = max((line.get("val_ap", -1.0) for line in self.history), default=-1.0)
        if not scores["ap"] < best:
            save_model_file(self.settings.output / "model.pt", self.card, model.state_dict())
        self.history.append(
            {
                "step": self.step,
                "train_loss": sum(losses) / max(1, len(losses)),
                "lr": learning_rate(self.settings, self.step - 1),
                "images_per_s": images_per_second,
                **{f"val_{name}": value for name, value in scores.items() if not math.isnan(value)},
            }
        )
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        temporary = self.settings.output / ".metrics.jsonl.partial"
        temporary.write_text(lines)
        temporary.replace(self.settings.output / "metrics.jsonl")
        print(json.dumps(self.history[-1]), flush=True)

    def averaged_model(self) -> MaskRCNN:
        """Return the moving average, in evaluation mode."""
        model = self.average.module
        assert isinstance(model, MaskRCNN)
        return model.eval()

    def save(self) -> None:
        """Write the checkpoint; all random state is the step number."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "losses": self.losses,
        }
        save_checkpoint(self.settings.output / "checkpoint.pt", state)

    def resume(self) -> None:
        """Go on from the output folder's checkpoint, if there is one."""
        state = load_checkpoint(self.settings.output / "checkpoint.pt")
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history, self.losses = state["step"], state["history"], state["losses"]

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Linear warm-up, then half a cosine to zero at the last step (Loshchilov and Hutter, SGDR)."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return settings.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def sampling_weights(images: list[InstanceImage]) -> Tensor:
    """Return how often to draw each image: a kind with n images is drawn as the square root of n."""
    kinds = [image.kind for image in images]
    return torch.tensor([kinds.count(kind) ** -0.5 for kind in kinds])


def model_card(settings: TrainSettings, images: list[InstanceImage], categories: dict[int, str]) -> ModelCard:
    """Describe the model to train; mean and deviation of the bands are those of the training images."""
    means = torch.stack([image.pixels.float().mean((1, 2)) for image in images]) / 255
    squares = torch.stack([(image.pixels.float() / 255).square().mean((1, 2)) for image in images])
    mean = means.mean(0)
    deviation = (squares.mean(0) - mean.square()).sqrt()
    return ModelCard(
        arch=settings.arch,
        arch_settings=settings.arch_settings,
        categories=categories,
        image_mean=tuple(round(value, 4) for value in mean.tolist()),
        image_std=tuple(round(value, 4) for value in deviation.tolist()),
        min_size=settings.min_size,
        max_size=settings.max_size,
        licence=settings.licence,
        source=settings.source,
    )


def parse_settings(arguments: list[str]) -> TrainSettings:
    """Read `--name value` pairs; every field that is a number, text or path can be set."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m segray.train.instances", description=__doc__)
    simple = [item for item in fields(TrainSettings) if item.type in (int, float, str, Path)]
    for item in simple:
        flag = "--" + item.name.replace("_", "-")
        parser.add_argument(flag, type=item.type, required=item.name in ("data", "output"))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    return replace(TrainSettings(given.pop("data"), given.pop("output")), **given)


if __name__ == "__main__":
    import sys

    InstanceTraining(parse_settings(sys.argv[1:])).run()
