"""One optimiser step of `train` against the loop that tutorials write: eager, float32, NCHW.

Same network, same weights, same pictures, same loss; one process. The gate: in float32 both learn the same.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.benchmarks.measure import Figure, Options, check, ratios, seconds_a_call, take_turns
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, build_model
from segray.train.losses import LossSettings
from segray.train.lr_schedule import ScheduleSettings
from segray.train.optim import OptimizerSettings
from segray.train.tasks.semantic_training import SemanticRecipe, SemanticTraining
from segray.train.transforms.semantic import Batch

CLASSES, BATCH, LR = 11, 8, 1e-3
MEAN, STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)


def figures(options: Options) -> Iterator[Figure]:
    """bf16 and float32 steps of segray's over the plain one."""
    width, side = (8, 64) if options.quick else (32, 320)
    batch = made(side)
    plain = plain_step(task("fp32", width, side), batch)
    ours = {kind: segray_step(task(kind, width, side), batch) for kind in ("fp32", "bf16")}
    expected, found = ([step() for _ in range(3)] for step in (plain, ours["fp32"]))
    check(np.allclose(expected, found, rtol=1e-3), f"step: losses {found}, of the plain loop {expected}")
    at_least = 0.0 if options.quick else 5.0
    arms: list[Callable[[], float]] = [
        lambda step=step: seconds_a_call(step, at_least)  # type: ignore[misc]
        for step in (plain, ours["fp32"], ours["bf16"])
    ]
    slow, same, half = take_turns(arms, options.rounds(5))
    rates = ", ".join(f"{BATCH / median(each):.2f}" for each in (slow, same, half))
    fact = f"U-Net of width {width}, {side} px, batch {BATCH}; plain, fp32, bf16: {rates} images/s"
    yield Figure("training step bf16 / plain eager fp32 NCHW loop", ">= 1.5", ratios(slow, half), [fact])
    yield Figure("training step fp32 / the same", "", ratios(slow, same))


def made(side: int) -> Batch:
    """Noise with noise for labels: what costs time is their size."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (BATCH, 3, side, side), np.uint8))
    labels = torch.from_numpy(random.integers(0, CLASSES, (BATCH, side, side), np.uint8))
    return Batch(pixels, labels, [str(number) for number in range(BATCH)])


def task(precision: str, width: int, side: int) -> SemanticRecipe:
    """Cross-entropy and Adam on our own U-Net."""
    settings = complete_settings("unet", {"width": width})
    names = tuple(f"class {number}" for number in range(CLASSES))
    card = SemanticCard("unet", settings, CLASSES, names, MEAN, STD, side, "crop")
    schedule, optimizer = ScheduleSettings("constant"), OptimizerSettings("adam", LR, 0.0)
    return SemanticRecipe(
        card=card, loss=LossSettings("ce"), optimizer=optimizer, schedule=schedule, epochs=1,
        steps_per_epoch=1_000_000, seed=0, precision=precision, clip=1e9, ema=0.0,
    )  # fmt: skip


def segray_step(work: SemanticRecipe, batch: Batch) -> Callable[[], float]:
    """What `train` does."""
    training = SemanticTraining(work, torch.device("cpu"))
    return lambda: training.train_step(batch)


def plain_step(work: SemanticRecipe, batch: Batch) -> Callable[[], float]:
    """As PyTorch's tutorials do it."""
    torch.manual_seed(work.seed)
    model: Any = build_model(work.card)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    criterion = nn.CrossEntropyLoss()
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))

    def step() -> float:
        images = (batch.pixels.float() / 255 - mean) / std
        loss = criterion(model(images), batch.classes.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step
