"""The training of an instance model on the loop, without Ray: it learns, and a kill changes nothing."""

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from segray.data.coco_listing import list_coco
from segray.data.pair_reader import CocoExample, CocoReading
from segray.models.maskrcnn import CompactSettings
from segray.models.modelfile import ModelCard
from segray.models.weights import load_weights
from segray.output.names import METRICS, MODEL
from segray.output.store import Store
from segray.storage import StorageSettings
from segray.train.loop import Loop
from segray.train.lr_schedule import ScheduleSettings
from segray.train.optim import OptimizerSettings
from segray.train.tasks.instance_training import InstanceRecipe, InstanceTraining
from segray.train.transforms.instance import CropSettings, InstanceBatch, InstanceImage, InstanceTransform
from segray.train.transforms.strength import AugmentSettings
from tests.train.cells import write_cells
from tests.train.side_by_side import run_side_by_side

TINY = CompactSettings(
    stem_width=8, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), fpn_width=16, box_width=32, mask_widths=(16,)
)
CARD = ModelCard("compact-maskrcnn", asdict(TINY), {4: "cell"}, (0.2,) * 3, (0.2,) * 3, 96, 96)
STEPS, BATCH, SCORED = 3, 2, 2
TASK = InstanceRecipe(
    card=CARD, optimizer=OptimizerSettings("adamw", 5e-3), schedule=ScheduleSettings("cosine", 2), epochs=2,
    steps_per_epoch=STEPS, seed=1, precision="fp32", clip=5.0, ema=0.5,
)  # fmt: skip
CPU = torch.device("cpu")


class KilledError(BaseException):
    """Nothing in between catches it."""


class Pictures:
    """What `segray.train.loader` would give."""

    def __init__(self, folder: Path) -> None:
        listing = list_coco(str(folder), StorageSettings())
        read = CocoReading(listing.categories, 100_000, StorageSettings()).reader().read(listing.pairs)
        self.examples = [each for each in read if isinstance(each, CocoExample)]
        self.transform = InstanceTransform(
            CropSettings(96, 96, smallest_area=10), AugmentSettings(preset="off"), (4,), 0
        )

    def batch(self, places: list[int], epoch: int | None) -> InstanceBatch:
        samples = []
        for place in places:
            example, name = self.examples[place], f"{place}.png"
            if epoch is None:
                samples.append((name, self.transform.scoring(example)))
            else:
                samples.append((name, self.transform.training(example, epoch, str(place))))
        return self.transform.collate(samples)

    def stream(self, epoch: int, position: int, epochs: int, dies_at: int = -1) -> Iterator[InstanceBatch]:
        given = 0
        for each in range(epoch, epochs):
            for step in range(position if each == epoch else 0, STEPS):
                given += 1
                if given == dies_at:
                    raise KilledError
                yield self.batch([BATCH * step, BATCH * step + 1], each)
            for place in range(SCORED):
                yield self.batch([BATCH * STEPS + place], None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(write_cells(tmp_path_factory.mktemp("cells") / "cells", images=BATCH * STEPS + SCORED))


def train(pictures: Pictures, folder: Path, task: InstanceRecipe = TASK, dies_at: int = -1) -> Loop:
    """From where the folder stands to the last epoch, or to a kill."""
    training = InstanceTraining(task, CPU)
    shown = [pictures.batch([BATCH * STEPS], None)]
    loop = Loop(training, Store(str(folder), StorageSettings()), 0, 0.0, shown)
    loop.restore()
    loop.run(pictures.stream(training.epoch, loop.position, task.epochs, dies_at), BATCH * STEPS, SCORED)
    return loop


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without what a clock says."""
    found = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("time", "images_per_s")}
        for line in found
    ]


@pytest.fixture(scope="module")
def whole(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Loop]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(pictures, folder)


def test_what_a_run_leaves(whole: tuple[Path, Loop]) -> None:
    folder, loop = whole
    found = lines(folder)
    assert [line["epoch"] for line in found] == [1, 2]
    sizes = {"ap_small", "ap_medium", "ap_large"}
    assert set(found[0]) == {"epoch", "step", "train_loss", "ap", "ap50", "ap75", "lr"} | sizes
    assert found[0]["ap_large"] is None  # no cell is large: null, not NaN
    assert "NaN" not in (folder / METRICS).read_text()
    loaded = load_weights(str(folder / MODEL), StorageSettings())
    assert loaded.categories == {4: "cell"}
    assert (folder / "curves.png").stat().st_size > 1000
    assert len(list((folder / "samples").iterdir())) == 1
    assert loop.training.step == 2 * STEPS


@pytest.mark.parametrize("moment", [2, STEPS + 2])
def test_a_kill_changes_nothing(
    pictures: Pictures, whole: tuple[Path, Loop], tmp_path: Path, moment: int
) -> None:
    with pytest.raises(KilledError):
        train(pictures, tmp_path, dies_at=moment)
    loop = train(pictures, tmp_path)
    assert lines(tmp_path) == lines(whole[0])
    for name, tensor in whole[1].training.scored.state_dict().items():
        assert torch.equal(loop.training.scored.state_dict()[name], tensor), name


def test_it_finds_cells(pictures: Pictures) -> None:
    """On what it was trained on: AP50 of a network that learnt nothing is 0."""
    task = replace(TASK, epochs=20, ema=0.0, schedule=ScheduleSettings("constant", 10))
    training = InstanceTraining(task, CPU)
    for epoch in range(task.epochs):
        for step in range(STEPS):
            torch.manual_seed(training.step)
            training.train_step(pictures.batch([BATCH * step, BATCH * step + 1], epoch))
    figures = training.figures(pictures.batch([place], None) for place in range(BATCH * STEPS))
    assert figures["ap50"] > 0.3


def test_a_picture_without_instances_is_learnt_from(pictures: Pictures) -> None:
    training = InstanceTraining(TASK, CPU)
    batch = pictures.batch([0, 1], 0)
    empty = {name: value[:0] for name, value in batch.pictures[0].target.items()}
    training.train_step(InstanceBatch([replace(batch.pictures[0], target=empty)]))
    for name, tensor in training.model.state_dict().items():
        assert tensor.isfinite().all(), name


def test_parts_make_the_loss_of_the_whole_nearly(pictures: Pictures) -> None:
    batch = pictures.batch([0, 1], 0)
    losses = [InstanceTraining(replace(TASK, accumulate=parts), CPU).train_step(batch) for parts in (1, 2, 9)]
    assert losses[1] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def worker(rank: int, port: int, folder: Path, data: Path) -> None:
    """One of two; the last step has a picture for the first alone."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    pictures, training = Pictures(data), InstanceTraining(TASK, CPU)
    for step in range(2):
        torch.manual_seed(10 * step + rank)
        places = [rank] if step == 0 else [2][rank:]
        loss = training.train_step(pictures.batch(places, 0))
    found = training.figures([pictures.batch([3 + rank], None)])
    torch.save({"model": training.model.state_dict(), "loss": loss, "ap": found["ap"]}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_hold_the_same_weights(tmp_path: Path) -> None:
    data = write_cells(tmp_path / "cells", images=5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    run_side_by_side(worker, (port, tmp_path, data), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["loss"], first["ap"]) == (second["loss"], second["ap"])
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in first["model"].items():
        assert value.isfinite().all(), name
        if not name.endswith(buffers):  # statistics are rank 0's when they are scored, see Loop
            assert torch.equal(value, second["model"][name]), name


def test_boxes_of_a_bf16_training_are_exact(pictures: Pictures) -> None:
    """Autocast gives the anchors 8 bits: at column 300 they were up to one pixel off what annotate uses."""
    training = InstanceTraining(replace(TASK, precision="bf16"), CPU)
    seen = []
    model: Any = training.model
    model.rpn.anchor_generator.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    wide = InstanceImage(
        "wide",
        torch.zeros(3, 32, 1000, dtype=torch.uint8),
        {
            "boxes": torch.tensor([[900.0, 4.0, 930.0, 30.0]]),
            "labels": torch.ones(1, dtype=torch.int64),
            "masks": torch.ones(1, 32, 1000, dtype=torch.uint8),
        },
    )
    training._loss([wide]).backward()  # type: ignore[no-untyped-call]
    (anchors,) = seen
    assert anchors.dtype == torch.float32
    finest = anchors[anchors[:, 2] - anchors[:, 0] == anchors[0, 2] - anchors[0, 0]]
    left = finest[:, 0].unique()
    steps = left.diff()
    assert len(left) > 100
    assert steps.unique().numel() == 1
    head = model.rpn.head
    with torch.autocast("cpu", torch.bfloat16):
        scores, _ = head([torch.zeros(1, TINY.fpn_width, 4, 4)])
    assert scores[0].dtype == torch.float32


def test_a_narrow_image_first_leaves_the_scales(pictures: Pictures) -> None:
    """torchvision infers the scales of its maps from the first images without their padding."""
    training = InstanceTraining(TASK, CPU)
    training.predict(torch.zeros(3, 8, 300, dtype=torch.uint8))
    training.predict(torch.zeros(3, 96, 96, dtype=torch.uint8))
    scored: Any = training.scored
    assert scored.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
