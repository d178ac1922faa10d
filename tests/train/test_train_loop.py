"""A training that is killed at any moment and goes on ends as one that nobody disturbed. No Ray."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segray.errors import JobFailedError, SettingsError
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, load_model_file
from segray.output.lease import Lease
from segray.output.names import METRICS, MODEL
from segray.output.store import Store
from segray.storage import StorageSettings
from segray.train.identity import BEFORE, CHECKPOINT
from segray.train.loop import Loop
from segray.train.losses import LossSettings
from segray.train.lr_schedule import ScheduleSettings
from segray.train.optim import OptimizerSettings
from segray.train.reporting import curves
from segray.train.tasks.semantic_training import SemanticRecipe, SemanticTraining
from segray.train.transforms.semantic import Batch

SIDE, BATCH, STEPS, EPOCHS, SCORED = 16, 2, 3, 2, 2
UNET = complete_settings("unet", {"width": 2, "depth": 1, "norm": "batch"})
CARD = SemanticCard("unet", UNET, 1, ("ground", "square"), (0.4,) * 3, (0.2,) * 3, SIDE, "crop")
TASK = SemanticRecipe(
    card=CARD, loss=LossSettings("bce_dice"), optimizer=OptimizerSettings("adamw", 0.02),
    schedule=ScheduleSettings("cosine", 2), epochs=EPOCHS, steps_per_epoch=STEPS, seed=3,
    precision="fp32", clip=1.0, ema=0.3,
)  # fmt: skip
"""Everything that remembers: running statistics, moments, an average, a schedule."""


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Curves take a second, in some hundred trainings of half a second; `test_curves` looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "write_curves", lambda *_: None)
        yield


class Killed(BaseException):
    """Nothing in between catches it, as nothing catches a kill."""


@dataclass
class Mortal:
    """Counts what is done from outside, and dies before `dies_at`."""

    dies_at: int = -1
    done: int = field(default=0)

    def count(self) -> None:
        """One more."""
        self.done += 1
        if self.done == self.dies_at:
            raise Killed


class MortalStore(Store):
    """Dies before a write, or after it."""

    def __init__(self, folder: Path, life: Mortal) -> None:
        super().__init__(str(folder), StorageSettings())
        self.life = life

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        self.life.count()
        super().write(name, data)
        self.life.count()

    def copy(self, name: str, to: str) -> None:
        """See Store."""
        super().copy(name, to)
        self.life.count()


class Noisy(SemanticTraining):
    """Draws in each step, as dropout does."""

    def train_step(self, batch: Batch) -> float:
        """See SemanticTraining."""
        noise = torch.randint(0, 50, batch.pixels.shape, dtype=torch.uint8)
        return super().train_step(replace(batch, pixels=batch.pixels + noise))


LEARNT = 6
"""Epochs after which squares are found."""


class Forgetful(SemanticTraining):
    """Knows nothing any more once it has learnt."""

    def train_step(self, batch: Batch) -> float:
        """See SemanticTraining."""
        loss = super().train_step(batch)
        if self.epoch == LEARNT:
            for tensor in self.scored.parameters():
                tensor.data.fill_(-1.0)
        return loss


def pictures(name: str, number: int) -> Batch:
    """A function of the name: bright squares on noise."""
    draw = torch.Generator().manual_seed(sum(name.encode()))
    pixels = torch.randint(0, 90, (number, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    classes = torch.zeros(number, SIDE, SIDE, dtype=torch.uint8)
    for index, (row, col) in enumerate(torch.randint(0, 8, (number, 2), generator=draw).tolist()):
        classes[index, row : row + 8, col : col + 8] = 1
    return Batch(pixels + 120 * classes[:, None], classes, [name] * number)


def stream(epoch: int, position: int, epochs: int, life: Mortal) -> Iterator[Batch]:
    """What `segray.train.loader` would give a worker that is alone."""
    for each in range(epoch, epochs):
        for step in range(position if each == epoch else 0, STEPS):
            life.count()
            yield pictures(f"train {each} {step}", BATCH)
        for index in range(SCORED):
            life.count()
            yield pictures(f"val {index}", 1)


def begin(
    folder: Path, store_life: Mortal, *, task: SemanticRecipe = TASK, kind: type[SemanticTraining] = Noisy,
    rank: int = 0, every_s: float = 0.0,
) -> Loop:  # fmt: skip
    """What a worker does first."""
    training = kind(task, torch.device("cpu"))
    loop = Loop(training, MortalStore(folder, store_life), rank, every_s)
    loop.restore()
    return loop


def train(
    folder: Path, store_life: Mortal | None = None, stream_life: Mortal | None = None, **how: Any
) -> Loop:
    """From where the folder stands to the last epoch, or to the death of one of the two."""
    loop = begin(folder, store_life or Mortal(), **how)
    training = loop.training
    batches = stream(training.epoch, loop.position, training.recipe.epochs, stream_life or Mortal())
    loop.run(batches, BATCH * STEPS, SCORED)
    return loop


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without what a clock says."""
    found = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for line in found:
        assert line.pop("images_per_s") > 0
        assert line.pop("time") > 0
    return found


def tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All that are in a nested state."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{name}/{key}")


def assert_same(folder: Path, loop: Loop, other: Path, undisturbed: Loop) -> None:
    """The same lines, model file and state, bit by bit."""
    assert lines(folder) == lines(other)
    assert (folder / MODEL).read_bytes() == (other / MODEL).read_bytes()
    here, there = (dict(tensors(each.training.state_dict())) for each in (loop, undisturbed))
    assert list(here) == list(there)
    assert any("average" in name for name in here)
    assert any("exp_avg_sq" in name for name in here)
    for name in here:
        assert torch.equal(here[name], there[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Loop, Mortal, Mortal]:
    """An undisturbed training; what it wrote and read, counted; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    store_life, stream_life = Mortal(), Mortal()
    return folder, train(folder, store_life, stream_life), store_life, stream_life


def test_it_learns_and_the_model_file_is_the_network(whole: tuple[Path, Loop, Mortal, Mortal]) -> None:
    folder, loop, _, _ = whole
    found = lines(folder)
    assert [(line["epoch"], line["step"]) for line in found] == [(1, STEPS), (2, 2 * STEPS)]
    assert found[1]["train_loss"] < found[0]["train_loss"]
    best = max(found, key=lambda line: float(line["miou"]))
    assert best is found[1], "the model file is compared with the last network"
    kept = load_model_file(folder / MODEL).module.state_dict()
    for name, tensor in loop.training.scored.state_dict().items():
        assert torch.equal(kept[name], tensor), name


def test_a_kill_at_any_step_or_score_changes_nothing(
    whole: tuple[Path, Loop, Mortal, Mortal], tmp_path: Path
) -> None:
    for moment in range(1, whole[3].done + 1):
        folder = tmp_path / str(moment)
        with pytest.raises(Killed):
            train(folder, stream_life=Mortal(moment))
        again = Mortal()
        loop = train(folder, stream_life=again)
        assert_same(folder, loop, whole[0], whole[1])
        steps_redone = moment + again.done - 1 - whole[3].done
        assert 0 <= steps_redone <= SCORED, "with a checkpoint after each step, only scores are done again"


def test_a_kill_before_or_after_any_write_changes_nothing(
    whole: tuple[Path, Loop, Mortal, Mortal], tmp_path: Path
) -> None:
    assert whole[2].done > 2 * EPOCHS * (STEPS + 2)
    for moment in range(1, whole[2].done + 1):
        folder = tmp_path / str(moment)
        with pytest.raises(Killed):
            train(folder, Mortal(moment))
        assert_same(folder, train(folder), whole[0], whole[1])


def test_checkpoints_are_as_far_apart_as_asked_for(
    whole: tuple[Path, Loop, Mortal, Mortal], tmp_path: Path
) -> None:
    """With 10 s between them there are those of the epochs' ends only."""
    life = Mortal()
    with pytest.raises(Killed):
        train(tmp_path, life, Mortal(STEPS + SCORED + 3), every_s=10.0)
    assert life.done == 2 * 4  # model, confusion, metrics, checkpoint of an epoch; each is counted twice
    loop = begin(tmp_path, Mortal(), every_s=10.0)
    assert (loop.training.epoch, loop.position) == (1, 0)
    assert_same(tmp_path, train(tmp_path, every_s=10.0), whole[0], whole[1])


def test_a_run_may_be_made_longer(tmp_path: Path) -> None:
    """Of a rate that does not depend on the length."""
    constant = replace(TASK, schedule=ScheduleSettings("constant", 2))
    whole = train(tmp_path / "whole", task=constant)
    train(tmp_path / "parts", task=replace(constant, epochs=1))
    assert_same(tmp_path / "parts", train(tmp_path / "parts", task=constant), tmp_path / "whole", whole)


def test_the_best_network_stays(tmp_path: Path) -> None:
    constant = replace(TASK, schedule=ScheduleSettings("constant"))
    train(tmp_path, task=replace(constant, epochs=LEARNT), kind=SemanticTraining)
    best = (tmp_path / MODEL).read_bytes()
    train(tmp_path, task=replace(constant, epochs=LEARNT + 1), kind=Forgetful)
    found = [line["miou"] for line in lines(tmp_path)]
    assert found[LEARNT] < max(found)
    assert (tmp_path / MODEL).read_bytes() == best


def test_a_run_that_is_done_does_nothing(whole: tuple[Path, Loop, Mortal, Mortal]) -> None:
    life = Mortal(1)
    train(whole[0], life, Mortal(1))
    assert life.done == 0


def test_only_rank_0_writes(tmp_path: Path) -> None:
    loop = train(tmp_path, rank=1)
    assert not list(tmp_path.iterdir())
    assert [line["epoch"] for line in loop.training.history] == [1, 2]


def test_a_worker_whose_lease_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    """Its driver may be gone and stop nobody."""
    store = Store(str(tmp_path), StorageSettings())
    with Lease(store):
        loop = begin(tmp_path, Mortal())
    with Lease(store), pytest.raises(JobFailedError, match=r"another run took over "):
        loop.run(stream(0, 0, EPOCHS, Mortal()), STEPS * BATCH, SCORED)
    assert [path.name for path in tmp_path.iterdir()] == ["_segray"]


@pytest.mark.parametrize("killed", [5, 9])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(killed: int, tmp_path: Path) -> None:
    """Also after a kill at once, which must not put the damaged one in the place of the whole one."""
    undisturbed = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", stream_life=Mortal(killed))
    data = bytearray((tmp_path / "parts" / CHECKPOINT).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "parts" / CHECKPOINT).write_bytes(data)
    for _ in range(2):
        told = begin(tmp_path / "parts", Mortal()).restore()
        assert told is not None
        assert "checkpoints/last.pt: damaged" in told
        assert told.endswith("; resuming from the previous one")
        with pytest.raises(Killed):
            train(tmp_path / "parts", Mortal(1))
    assert_same(tmp_path / "parts", train(tmp_path / "parts"), tmp_path / "whole", undisturbed)


def test_damaged_checkpoints_are_told(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, stream_life=Mortal(4))
    for name in (CHECKPOINT, BEFORE):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SettingsError, match=r"checkpoints/before\.pt: damaged"):
        begin(tmp_path, Mortal())
    (tmp_path / BEFORE).unlink()
    with pytest.raises(SettingsError, match=r"checkpoints/last\.pt: damaged"):
        begin(tmp_path, Mortal())
