"""What training takes over from an encoder's weights: values, normalisation, source and licence, identity."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segray.errors import SettingsError
from segray.models import BUNDLED_FOLDER
from segray.models.encoder_weights import encoder_state, in_encoder
from segray.models.modelfile import load_model_file
from segray.models.pretrained import packaged_state
from segray.train.identity import identity_of
from segray.train.settings import TrainSettings
from segray.train.tasks.instance import InstanceTask
from segray.train.tasks.semantic import SemanticTask
from tests.train.cells import write_cells

CPU = torch.device("cpu")
DATA: Any = SimpleNamespace(mean=(0.1,) * 3, deviation=(0.3,) * 3, sizes={"train": 4}, counts=[5, 5])
"""The normalisation of data that differs from every weights'."""


def semantic(folder: Path, **given: Any) -> SemanticTask:
    for name, value in (("images", 90), ("labels", 255)):
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32), value, np.uint8)).save(folder / name / "a.png")
    settings = TrainSettings(data=str(folder), output="out", **given)
    return SemanticTask.of(settings, SemanticTask.list_data(settings))


def test_a_semantic_network_begins_with_the_package(tmp_path: Path) -> None:
    task = semantic(tmp_path, arch="unet:efficientnet-lite0", pretrained=True, encoder_lr_factor=0.1)
    recipe, weights = task.recipe(DATA, "fp32"), packaged_state("efficientnet-lite0")
    assert (recipe.card.image_mean, recipe.card.image_std) == ((0.5,) * 3, (0.5,) * 3)
    assert recipe.card.source == f"encoder started from {weights.origin.source}"
    assert recipe.card.licence == "starting weights: Apache-2.0"
    assert task.transform(DATA).fill == (128, 128, 128)
    training = recipe.training(CPU)
    for name, tensor in encoder_state(training.model).items():
        assert torch.equal(tensor, weights.state[name.removeprefix("network.encoder.model.")])
    scales = {group.get("scale", 1.0): len(group["params"]) for group in training.optimizer.param_groups}
    assert scales.keys() == {1.0, 0.1}
    assert training.optimizer.param_groups[0].get("scale") is None
    kept = load_model_file(training.model_file())
    assert kept.card.arch == "unet:efficientnet-lite0"
    assert identity_of(task.settings, task.resolved())["start"] == task.encoder.digest  # type: ignore[union-attr]


def test_a_detector_begins_with_the_encoder_of_a_file(tmp_path: Path) -> None:
    file = BUNDLED_FOLDER / "buildings-small.pt"
    cells = write_cells(tmp_path / "cells", images=2)
    settings = TrainSettings(
        data=str(cells), output="out", arch="compact-maskrcnn", encoder_weights=str(file)
    )
    task = InstanceTask.of(settings, InstanceTask.list_data(settings))
    recipe, theirs = task.recipe(DATA, "fp32"), load_model_file(file)
    assert (recipe.card.image_mean, recipe.card.image_std) == (theirs.card.image_mean, theirs.card.image_std)
    assert f"buildings-small.pt, sha256 {theirs.digest[:16]}" in recipe.card.source
    ours, state = recipe.training(CPU).model.state_dict(), theirs.module.state_dict()
    assert all(torch.equal(ours[name], state[name]) for name in state if in_encoder(name))
    head = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    assert not torch.equal(ours[head], state[head])


def test_random_weights_are_normalised_by_the_data_as_before(tmp_path: Path) -> None:
    small = {"width": 4, "depth": 2}
    task = semantic(tmp_path, arch="unet", arch_settings=small)
    card = task.recipe(DATA, "fp32").card
    assert (card.image_mean, card.source, card.licence) == ((0.1,) * 3, "", "")
    assert "start" not in task.resolved()
    assert "encoder_lr_factor" not in identity_of(task.settings, task.resolved())  # runs of before continue
    with pytest.raises(SettingsError, match="encoder_lr_factor: unet has no encoder of its own"):
        semantic(tmp_path, arch="unet", arch_settings=small, encoder_lr_factor=0.1)


def test_an_encoder_that_does_not_fit_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dpt:resnet50 cannot be built with these settings"):
        semantic(tmp_path, arch="dpt:resnet50")
