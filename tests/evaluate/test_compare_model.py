"""`segray evaluate --weights`: the counts of training's own scoring, picture by picture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segray.cli import main
from segray.data.labels import LabelRules
from segray.data.pair_reader import Reader
from segray.data.pairs import list_pairs
from segray.evaluate.compare_model import score_semantic
from segray.evaluate.confusion_matrix import SemanticScores
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, model_bytes
from segray.models.weights import LoadedModel
from segray.storage import StorageSettings
from segray.train.losses import LossSettings
from segray.train.lr_schedule import ScheduleSettings
from segray.train.optim import OptimizerSettings
from segray.train.tasks.semantic_training import SemanticRecipe, SemanticTraining
from segray.train.transforms.semantic import SemanticTransform
from segray.train.transforms.strength import AugmentSettings

CLASSES = ("ground", "tree", "roof")
SIZES = ((40, 36), (33, 51), (64, 64), (17, 90))
CARD = SemanticCard(
    "unet",
    complete_settings("unet", {"width": 4, "depth": 2, "norm": "batch"}),
    3,
    CLASSES,
    (0.4, 0.5, 0.3),
    (0.2, 0.25, 0.15),
    48,
    "crop",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures to test with, one of them with its label at half the scale, and two to train with."""
    for number, (height, width) in enumerate((*SIZES, (20, 20), (20, 20))):
        random = np.random.default_rng(number)
        split = "test" if number < len(SIZES) else "train"
        scale = 2 if number == 2 else 1
        label = random.choice([0, 1, 2, 255], (height // scale, width // scale), p=[0.4, 0.3, 0.2, 0.1])
        save(tmp_path / f"data/images/{split}/{number}.png", random.integers(0, 256, (height, width, 3)))
        save(tmp_path / f"data/labels/{split}/{number}.png", label)
    return tmp_path / "data"


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def trained(card: SemanticCard) -> SemanticTraining:
    """Random weights, with no class before the others on the mean."""
    recipe = SemanticRecipe(
        card=card,
        loss=LossSettings("ce_dice" if card.outputs > 1 else "bce_dice"),
        optimizer=OptimizerSettings("adamw", 0.01),
        schedule=ScheduleSettings("constant"),
        epochs=1,
        steps_per_epoch=1,
        seed=5,
        precision="fp32",
        clip=1.0,
        ema=0.0,
    )
    training = SemanticTraining(recipe, torch.device("cpu"))
    *_, bias = (each for name, each in training.model.named_parameters() if name.endswith("bias"))
    with torch.no_grad():
        noise = torch.rand((4, 3, 48, 48), generator=torch.Generator().manual_seed(1))
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (card.image_mean, card.image_std))
        bias.sub_(training.model.eval()((noise - mean) / std).mean((0, 2, 3)))
    return training


def trainings_own(training: SemanticTraining, data: Path) -> SemanticScores:
    """What training says of the test pictures, from the same files."""
    card = training.recipe.card
    rules = LabelRules(len(card.classes))
    pairs = [pair for pair in list_pairs(str(data), StorageSettings()).pairs if pair.split == "test"]
    transform = SemanticTransform(card.size, card.fit, AugmentSettings(), 0, (0, 0, 0))  # type: ignore[arg-type]
    batches = []
    for pair, example in zip(pairs, Reader(rules, 10**6, StorageSettings()).read(pairs), strict=True):
        assert not isinstance(example, Exception)
        batches.append(transform.collate([(pair.name, transform.scoring(example))]))
    return training.score(batches)[1]


def evaluate(*options: object) -> int:
    return main(["evaluate", "--device", "cpu", *map(str, options)])


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(model_bytes(CARD, trained(CARD).model.state_dict()))
    return path


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_counts_of_training(tmp_path: Path, data: Path, fit: str, classes: int) -> None:
    """Two classes come from a single output."""
    outputs = 3 if classes == 3 else 1
    card = replace(CARD, fit=fit, classes=CLASSES[:classes], outputs=outputs)
    if classes == 2:
        for path in data.rglob("labels/*/*.png"):
            label = np.asarray(Image.open(path))
            save(path, np.where(label == 2, 1, label))
    training = trained(card)
    (tmp_path / "model.pt").write_bytes(model_bytes(card, training.model.state_dict()))
    expected = trainings_own(training, data)
    options = ("--weights", tmp_path / "model.pt", "--data", data, "--output", tmp_path / "out")
    assert evaluate(*options, "--precision", "fp32") == 0
    record = metrics(tmp_path / "out")
    assert record["confusion"] == expected.matrix.tolist()
    assert (expected.matrix[:, :classes].sum(axis=0) > 100).all()
    figures = expected.compute()
    for name in ("miou", "dice", "pixel_accuracy"):
        assert record["metrics"][name] == figures[name]
    assert record["counts"] == {"labels": 4, "compared": 4, "failed": 0, "extra": 0}
    assert record["digests"].keys() == {"compared", "model"}


def test_resized_pictures_are_scored_at_the_size_of_training(data: Path) -> None:
    """Whatever their own size; the truth with them."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    truth = np.zeros((30, 50), np.uint8)
    card = SemanticCard("x", {}, 2, ("a", "b"), (0.5,) * 3, (0.5,) * 3, 64, "resize")
    module, named = torch.nn.Conv2d(3, 2, 1), card.categories
    model = LoadedModel("x", "file", module, named, None, "", None, card, card.task)
    scores = score_semantic(model, [("x", pixels, truth)])
    assert scores.matrix.sum() == 64 * 64


def test_pairs_that_cannot_be_read_are_named(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images/test/0.png").write_bytes(b"no picture")
    (data / "labels/test/1.png").unlink()
    (data / "labels/train/4.png").unlink()
    save(data / "labels/test/3.png", np.full((17, 90), 7))
    options = ("--weights", model, "--data", data, "--output", tmp_path / "out")
    assert evaluate(*options) == 3
    record = metrics(tmp_path / "out")
    assert record["counts"] == {"labels": 4, "compared": 1, "failed": 3, "extra": 0}
    reasons = {each["name"].rpartition("/")[2]: each["reason"] for each in record["failed"]}
    assert reasons["0.png"].startswith("not an image")
    assert reasons["1.png"] == "no label has its stem"
    assert reasons["3.png"].startswith("label: value 7 in 1,530 pixels")
    assert "3 in no score" in capsys.readouterr().out


def test_splits_and_classes(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--weights", model, "--data", data, "--output", tmp_path / "out")
    assert evaluate(*options, "--split", "all") == 0
    assert metrics(tmp_path / "out")["counts"]["compared"] == 6
    assert evaluate(*options, "--split", "val") == 4
    assert "none in the split val: they are 4 test, 2 train; use the splits.csv" in capsys.readouterr().err
    assert evaluate(*options, "--classes", ",".join(CLASSES)) == 0
    assert evaluate(*options, "--classes", "a,b,c") == 2
    assert "the model's are ground, tree, roof" in capsys.readouterr().err
    assert evaluate(*options, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "4 pairs of the split test, 0 rejected" in said
    assert "3 classes, cpu in fp32" in said


def test_weights_that_are_none(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*options: object) -> str:
        assert evaluate(*options, "--output", tmp_path / "out") == 2
        return capsys.readouterr().err

    assert "weights" in told("--weights", tmp_path / "lost.pt", "--data", data)
    assert "lost.csv: the file is not there" in told("--weights", model, "--data", tmp_path / "lost.csv")
    assert "finds instances" in told("--weights", "nuclei-small", "--data", data)
    assert not (tmp_path / "out").exists()
