"""Real gloo processes: two and three learn what one learns, and none goes on when another cannot."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed

from segray.errors import JobFailedError
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard
from segray.train.losses import LossSettings
from segray.train.lr_schedule import ScheduleSettings
from segray.train.optim import OptimizerSettings
from segray.train.tasks.semantic_training import SemanticRecipe, SemanticTraining
from segray.train.transforms.semantic import Batch
from tests.train.side_by_side import run_side_by_side

STEPS, BATCH, SIDE = 20, 7, 16
"""7 pictures: no two of three processes' parts of a batch need be alike."""
UNET = complete_settings("unet", {"width": 4, "depth": 2, "norm": "group", "groups": 2})
CARD = SemanticCard("unet", UNET, 3, ("ground", "square", "rest"), (0.4,) * 3, (0.2,) * 3, SIDE, "crop")


def task(accumulate: int) -> SemanticRecipe:
    """A loss whose Dice is of the whole batch, and everything that remembers."""
    return SemanticRecipe(
        card=CARD, loss=LossSettings("ce_dice"), optimizer=OptimizerSettings("adamw", 0.01),
        schedule=ScheduleSettings("cosine", 3), epochs=1, steps_per_epoch=STEPS, seed=3,
        precision="fp32", clip=1.0, ema=0.9, accumulate=accumulate,
    )  # fmt: skip


def part(step: int, rank: int, workers: int) -> Batch:
    """A worker's pictures of a global batch, which is a function of the step: bright squares, some void."""
    draw = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 90, (BATCH, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    classes = torch.zeros(BATCH, SIDE, SIDE, dtype=torch.uint8)
    for index, (row, col) in enumerate(torch.randint(0, 8, (BATCH, 2), generator=draw).tolist()):
        classes[index, row : row + 8, col : col + 8] = 1
        classes[index, : index % 5, :4] = 255
    pixels += 120 * (classes == 1)[:, None]
    names = [f"{step}-{index}" for index in range(BATCH)]
    return Batch(pixels[rank::workers], classes[rank::workers], names[rank::workers])


def learn(rank: int, workers: int, folder: Path, accumulate: int) -> None:
    """A process: its losses, then a step in which one process alone has a network that is broken."""
    torch.set_num_threads(1)
    if workers > 1:
        distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=workers)
    training = SemanticTraining(task(accumulate), torch.device("cpu"))
    losses = [training.train_step(part(step, rank, workers)) for step in range(STEPS)]
    weights = torch.cat([each.detach().flatten() for each in training.scored.parameters()])
    if rank == workers - 1:
        next(training.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(JobFailedError) as told:
        training.train_step(part(STEPS, rank, workers))
    found = {"losses": losses, "weights": weights.tolist(), "told": str(told.value)}
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What one process learns."""
    folder = tmp_path_factory.mktemp("alone")
    learn(0, 1, folder, accumulate=1)
    found: dict[str, list[float]] = json.loads((folder / "0.json").read_text())
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    return found


@pytest.mark.parametrize(("workers", "accumulate"), [(2, 1), (3, 2)])
def test_the_number_of_processes_changes_nothing(
    alone: dict[str, list[float]], workers: int, accumulate: int, tmp_path: Path
) -> None:
    run_side_by_side(learn, (workers, tmp_path, accumulate), workers)
    for rank in range(workers):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert found["weights"] == pytest.approx(alone["weights"], abs=1e-3)
        assert f"step {STEPS}: the loss is nan" in found["told"]
        for index in range(BATCH):
            assert f"{STEPS}-{index}" in found["told"], "every process names the pictures of all"
