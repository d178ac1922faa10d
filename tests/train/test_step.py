"""Ways to do one optimiser step that must not change it: in parts, with maps computed again, in fp16."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from segray.errors import JobFailedError
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard
from segray.train.losses import LossSettings, outputs_for
from segray.train.lr_schedule import ScheduleSettings
from segray.train.optim import OptimizerSettings
from segray.train.tasks.semantic_training import SemanticRecipe, SemanticTraining
from segray.train.transforms.semantic import Batch

CPU = torch.device("cpu")
STEPS, PICTURES = 4, 7


def task(loss: str = "ce_dice", **more: Any) -> SemanticRecipe:
    settings = complete_settings("unet", {"width": 4, "depth": 2, "norm": "group", "groups": 2})
    classes = ("a", "b", "c") if loss == "ce_dice" else ("a", "b")
    card = SemanticCard(
        "unet", settings, outputs_for(loss, len(classes)), classes, (0.5,) * 3, (0.2,) * 3, 32, "crop"
    )
    optimizer = OptimizerSettings("sgd", 0.1, 0.0)
    plain = SemanticRecipe(
        card=card, loss=LossSettings(loss), optimizer=optimizer, schedule=ScheduleSettings("constant"),
        epochs=1, steps_per_epoch=STEPS, seed=0, precision="fp32", clip=5.0, ema=0.0,
    )  # fmt: skip
    return replace(plain, **more)


def batches(classes: int) -> list[Batch]:
    random = np.random.default_rng(0)
    found = []
    for step in range(STEPS):
        labels = random.integers(0, classes, (PICTURES, 32, 32), np.uint8)
        labels[:, :8] = 255
        labels[step % PICTURES, 8:] = 255  # one is void all over
        pixels = torch.from_numpy(random.integers(0, 256, (PICTURES, 3, 32, 32), np.uint8))
        found.append(Batch(pixels, torch.from_numpy(labels), [f"{step}-{n}" for n in range(PICTURES)]))
    return found


def trained(work: SemanticRecipe) -> tuple[list[float], torch.Tensor]:
    """(Losses, all weights in a row)."""
    training = SemanticTraining(work, CPU)
    losses = [training.train_step(batch) for batch in batches(len(work.card.classes))]
    return losses, torch.cat([value.flatten().float() for value in training.model.state_dict().values()])


@pytest.mark.parametrize("loss", ["ce_dice", "bce_dice", "focal"])
@pytest.mark.parametrize("parts", [2, 3, 20])
def test_parts_give_the_step_of_the_whole(loss: str, parts: int) -> None:
    (losses, weights), (in_parts, found) = trained(task(loss)), trained(task(loss, accumulate=parts))
    assert np.allclose(losses, in_parts, atol=1e-5)
    assert torch.allclose(weights, found, atol=1e-5)
    assert losses[0] != losses[-1]


def test_maps_computed_again_change_nothing() -> None:
    (losses, weights), (again, found) = trained(task()), trained(task(activation_checkpointing=True))
    assert np.allclose(losses, again, atol=1e-6)
    assert torch.allclose(weights, found, atol=1e-6)


def test_fp16_leaves_a_step_out_whose_gradient_is_beyond_its_range() -> None:
    training = SemanticTraining(task(precision="fp16"), CPU)
    first = batches(3)[0]
    scale = training.scaler.get_scale()
    training.scaler.scale(torch.ones(1))  # begins
    training.scaler.update(2.0**40)
    before = [value.clone() for value in training.model.parameters()]
    training.train_step(first)
    assert training.step == 1
    assert all(map(torch.equal, before, training.model.parameters()))
    assert training.scaler.get_scale() < 2.0**40
    training.scaler.update(scale / 64)
    losses = [training.train_step(batch) for batch in batches(3)]
    assert not all(map(torch.equal, before, training.model.parameters()))
    assert np.allclose(losses, trained(task())[0], atol=0.05)
    assert training.state_dict()["scaler"]["scale"] > 0


def test_a_loss_that_is_not_finite_names_its_items() -> None:
    training = SemanticTraining(task(), CPU)
    with torch.no_grad():
        next(training.model.parameters()).fill_(torch.nan)
    with pytest.raises(JobFailedError, match=r"step 0: the loss is nan.*0-0, 0-1, 0-2"):
        training.train_step(batches(3)[0])


def test_averaged_weights_follow_closely_at_first() -> None:
    """Decay min(0.25, (1 + n) / (10 + n)) after n updates; running statistics are averaged, too."""
    work = task(ema=0.25)
    settings = complete_settings("unet", {"width": 4, "depth": 2, "norm": "batch"})
    training = SemanticTraining(replace(work, card=replace(work.card, arch_settings=settings)), CPU)
    expected: dict[str, torch.Tensor] = {}
    for decay, batch in zip((0.0, 2 / 11, 0.25, 0.25), batches(3), strict=True):
        training.train_step(batch)
        now = {name: value.clone() for name, value in training.model.state_dict().items()}
        expected = {
            name: decay * expected.get(name, value) + (1 - decay) * value for name, value in now.items()
        }
    found = training.scored.state_dict()
    assert any("running_mean" in name for name in found)
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], atol=1e-6), name
            assert not torch.equal(value, now[name]), name
