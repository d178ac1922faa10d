"""Every row for volumes is trained, saved, loaded and used on made volumes; a ball is found in a new one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from segray.cli import main
from segray.data.dataset import Data, assign_splits
from segray.data.scan import FIGURES, figures
from segray.data.splits import SplitRule
from segray.errors import SettingsError
from segray.evaluate.job import evaluate
from segray.evaluate.settings import EvaluateSettings
from segray.models.architectures import ARCHITECTURES, Architecture, complete_settings
from segray.models.volume_networks import build_volume, check_patch, least_patch
from segray.models.weights import load_weights
from segray.predict.settings import PredictSettings
from segray.predict.task import Predict
from segray.schema import DECODED
from segray.sources.volume import packed, read_volume
from segray.storage import StorageSettings
from segray.train.settings import TrainSettings
from segray.train.tasks import TrainingTask, kind_of
from tests.bulk.pictures import failed_row
from tests.volumes.made import AFFINE, SHAPE, ball, opened, write_nifti, write_pairs, write_stack

ROWS = [row for row in ARCHITECTURES if row.task == "volume"]
SMALL: dict[str, dict[str, Any]] = {
    "unet3d": {"arch_settings": {"channels": [8, 16, 32]}, "patch": [16, 24, 24]},
    "swinunetr": {
        "arch_settings": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
        "patch": [64, 32, 32],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three volumes to train with, one to validate with, and a broken one; not to be changed."""
    folder = write_pairs(tmp_path_factory.mktemp("volumes"))
    sound = (folder / "images/train/0.nii.gz").read_bytes()
    (folder / "images/train/broken.nii.gz").write_bytes(sound[: len(sound) // 2])
    write_nifti(folder / "labels/train/broken.nii.gz", ball(0)[1])
    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Made:
    """A task, its data, and what the workers of a training get."""

    def __init__(self, data: Path, arch: str, **more: Any) -> None:
        settings: dict[str, Any] = {"data": str(data), "output": str(data / "out"), "volumes": True}
        settings |= {"arch": arch, "precision": "fp32", "lr": 0.05, "seed": 1, **SMALL[arch], **more}
        self.settings = TrainSettings(**settings)
        kind = kind_of(self.settings)
        listed = kind.list_data(self.settings)
        self.task: TrainingTask = kind.of(self.settings, listed)
        reading = self.task.reading()
        found = reading.reader().read(listed.pairs)
        rows = [figures(each, reading.counts) for each in found]
        table = pa.Table.from_pylist(rows, FIGURES)
        self.data: Data = assign_splits(listed, table, SplitRule.of(listed.pairs, 0))
        self.transform = self.task.transform(self.data)
        examples = dict(zip((pair.item for pair in listed.pairs), found, strict=True))
        pairs = list(zip(self.data.pairs, self.data.splits, strict=True))
        self.trained, self.scored = (
            [(pair, examples[pair.item]) for pair, split in pairs if split == wanted]
            for wanted in ("train", "val")
        )
        self.training = self.task.recipe(self.data, "fp32").training(torch.device("cpu"))

    def epoch(self, number: int) -> float:
        found = [(p.name, self.transform.training(each, number, p.item)) for p, each in self.trained]
        return float(self.training.train_step(self.transform.collate(found)))

    def scoring(self) -> Any:
        return [self.transform.collate([(p.name, self.transform.scoring(each))]) for p, each in self.scored]


@pytest.fixture(scope="module")
def ball_model(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float], dict[str, Any]]:
    """A model that finds balls, the losses of its epochs and its figures on val."""
    made = Made(data, "unet3d", epochs=60, patches=2)
    losses = [made.epoch(number) for number in range(60)]
    scores = made.training.figures(made.scoring())
    path = tmp_path_factory.mktemp("ball") / "model.pt"
    path.write_bytes(made.training.model_file())
    made.training.draw(made.scoring()[0], fsspec.filesystem("file"), str(path.parent / "samples"))
    assert [reason for _, reason in made.data.rejected] == ["NIfTI: the file ends early"]
    return path, losses, scores


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_trained_saved_loaded_and_used(row: Architecture, data: Path, tmp_path: Path) -> None:
    made = Made(data, row.name, epochs=2, patches=1, batch_size=1)
    first = {name: tensor.clone() for name, tensor in made.training.model.state_dict().items()}
    pair, example = made.trained[0]
    batch = made.transform.collate([(pair.name, made.transform.training(example, 0, pair.item))])
    assert batch.pixels.shape == (1, 1, *SMALL[row.name]["patch"])
    losses = [made.training.train_step(batch) for _ in range(2)]
    assert np.isfinite(losses).all()
    moved = [name for name, each in made.training.model.named_parameters() if not each.equal(first[name])]
    assert len(moved) > 0.9 * len(list(made.training.model.parameters()))
    (tmp_path / "model.pt").write_bytes(made.training.model_file())
    model = load_weights(str(tmp_path / "model.pt"), StorageSettings(), "volume")
    assert model.card is not None
    assert model.card.arch == row.name
    patch = torch.randn(1, 1, *SMALL[row.name]["patch"])
    with torch.inference_mode():
        expected = made.training.model.eval()(patch)
        torch.testing.assert_close(model.module(patch), expected)


def test_the_loss_falls_and_the_ball_is_found(ball_model: tuple[Path, list[float], dict[str, Any]]) -> None:
    path, losses, scores = ball_model
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
    assert scores["miou"] > 0.8
    assert len(list((path.parent / "samples").iterdir())) == 1


def test_a_whole_path_from_files_to_label_volumes_and_scores(
    ball_model: tuple[Path, list[float], dict[str, Any]], tmp_path: Path
) -> None:
    """The model step of `predict`, on volumes of other sizes than those of training, and `evaluate`."""
    settings = PredictSettings(
        sources=["-"], weights=str(ball_model[0]), output=str(tmp_path / "maps"), volumes=True
    )
    task = Predict(settings)
    task.check()
    model = task.load()
    shapes = {"a": SHAPE, "b": (30, 20, 41), "c": (9, 33, 17)}
    rows: list[dict[str, Any]] = []
    for seed, (name, shape) in enumerate(shapes.items()):
        voxels, label = ball(30 + seed, (max(shape[0], 17), *shape[1:]))
        voxels, label = voxels[: shape[0]], label[: shape[0]]
        file = tmp_path / ("in.tif" if name == "c" else "in.nii.gz")
        if name == "c":
            write_stack(file, voxels.astype(np.int32))
            write_stack(tmp_path / "labels/c.tif", label)
        else:
            write_nifti(file, voxels)
            write_nifti(tmp_path / f"labels/{name}.nii.gz", label)
        data = packed(read_volume(file.read_bytes(), 10**6))
        rows.append({"image_id": name, "uri": f"file:///{name}", "height": shape[1], "width": shape[2],
                     "frames": shape[0], "pixels": data})  # fmt: skip
    rows.insert(1, failed_row("broken", "truncated", "NIfTI: the file ends early"))
    done = task.predictor(model, "cpu", "fp32", 1, 1).predict(pa.Table.from_pylist(rows, DECODED))
    assert done["status"].to_pylist() == ["annotated", "rejected", "annotated", "annotated"]
    found = opened(tmp_path / "maps/labels/b.nii.gz")
    assert found.shape == shapes["b"][::-1]
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)

    scored = EvaluateSettings(
        predictions=str(tmp_path / "maps/labels"), labels=str(tmp_path / "labels"),
        output=str(tmp_path / "scores"), volumes=True,
    )  # fmt: skip
    assert evaluate(scored) == 0
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    truth, maps = (
        np.concatenate(
            [read_volume(each.read_bytes(), 10**6).voxels.ravel() for each in sorted(folder.iterdir())]
        )
        for folder in (tmp_path / "labels", tmp_path / "maps/labels")
    )
    dice = 2 * (truth * maps).sum() / (truth.sum() + maps.sum())
    assert dice > 0.75
    assert metrics["classes"][1]["dice"] == pytest.approx(dice, abs=1e-6)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_smallest_patch_is_told_and_can_be_trained_on(row: Architecture) -> None:
    settings = complete_settings(row.name, SMALL[row.name]["arch_settings"])
    least = least_patch(row.name, settings)
    too_small = (least[1],) * 3
    told = ",".join(map(str, least))
    with pytest.raises(SettingsError, match=f"patch: .* the smallest patch is {told}"):
        check_patch(row.name, settings, too_small)
    network = build_volume(row.name, 1, settings, least)
    assert network(torch.randn(1, 1, *least)).shape == (1, 1, *least)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--arch", "unet3d"], "arch: unet3d is for volumes; set volumes"),
        (["--volumes"], "arch: unet is for images; with volumes use unet3d or swinunetr"),
        (["--volumes", "--arch", "unet3d", "--pretrained"], "pretrained: not with volumes"),
        (["--volumes", "--arch", "swinunetr", "--patch", "32,32,32"], "the smallest patch is 64,32,32"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(
    arguments: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--patch" in arguments:
        settings = TrainSettings(
            data=str(data), output=str(tmp_path), volumes=True, arch="swinunetr", patch=[32, 32, 32]
        )
        kind = kind_of(settings)
        with pytest.raises(SettingsError, match=told):
            kind.of(settings, kind.list_data(settings))
        return
    assert main(["train", "--data", str(data), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_model_of_volumes_is_not_one_of_images(
    ball_model: tuple[Path, list[float], dict[str, Any]],
) -> None:
    with pytest.raises(SettingsError, match="gives every voxel a class, use it with `segray predict --vol"):
        load_weights(str(ball_model[0]), StorageSettings(), "semantic")
