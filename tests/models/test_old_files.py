"""Model files of the two formats before `task`: read as they were, with the same digest."""

import hashlib
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from segray.errors import SettingsError
from segray.models import bundled_models
from segray.models.architectures import Task, complete_settings
from segray.models.modelfile import ModelCard, SemanticCard, build_model, load_model_file, model_bytes
from segray.models.start_weights import load_start
from segray.models.weights import load_weights
from segray.registry.add import card_of
from segray.storage import StorageSettings

STORAGE = StorageSettings()
OLD_INSTANCE = {
    "format": "segray-model/1",
    "arch": "compact-maskrcnn",
    "arch_settings": {
        **{
            "stem_width": 8,
            "widths": (8, 8, 16, 16),
            "depths": (1, 1, 1, 1),
            "fpn_width": 8,
            "box_width": 16,
        },
        **{"mask_widths": (8,), "anchor_sizes": (14, 28, 56, 112), "aspect_ratios": (0.5, 1.0, 2.0)},
        "detections_per_image": 400,
    },
    "categories": {3: "boat", 7: "quay"},
    "image_mean": (0.1, 0.2, 0.3),
    "image_std": (0.4, 0.5, 0.6),
    "min_size": 96,
    "max_size": 128,
    "bands": ("red", "green", "blue"),
    "band_ranges": ((0.0, 3000.0), (1.5, 2.5), (-1.0, 1.0)),
    "licence": "CC0-1.0",
    "source": "made for a test",
}
OLD_SEMANTIC = {
    "format": "segray-semantic/1",
    "arch": "unet",
    "arch_settings": complete_settings("unet", {"width": 4, "depth": 2}),
    "outputs": 1,
    "classes": ("background", "road"),
    "image_mean": (0.4, 0.5, 0.6),
    "image_std": (0.3, 0.2, 0.1),
    "size": 48,
    "fit": "resize",
    "bands": ("red", "green", "blue"),
    "licence": "CC0-1.0",
    "source": "made for a test",
}
CARDS: dict[Task, Any] = {"instance": ModelCard, "semantic": SemanticCard}
OLD: dict[Task, dict[str, Any]] = {"instance": OLD_INSTANCE, "semantic": OLD_SEMANTIC}
TASKS: tuple[Task, ...] = ("instance", "semantic")


def old_file(folder: Path, task: Task) -> Path:
    """What the code before wrote: `format` without `task`, instance weights in half precision."""
    content = {key: value for key, value in OLD[task].items() if key != "format"}
    torch.manual_seed(3)
    state = build_model(CARDS[task](**content)).state_dict()
    kind = torch.float16 if task == "instance" else torch.float32
    stored = {name: each.to(kind) if each.is_floating_point() else each for name, each in state.items()}
    torch.save({**OLD[task], "state_dict": stored}, folder / "old.pt")
    return folder / "old.pt"


@pytest.mark.parametrize("task", TASKS)
def test_an_old_file_is_read(tmp_path: Path, task: Task) -> None:
    path = old_file(tmp_path, task)
    stored = torch.load(path, weights_only=True)
    loaded = load_model_file(path)
    assert loaded.card.task == task
    assert {"format": stored["format"], **asdict(loaded.card)} == {**OLD[task], "task": task} | (
        {} if task == "instance" else {"band_ranges": None}
    )
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    state = loaded.module.state_dict()
    assert state.keys() == stored["state_dict"].keys()
    assert all(
        torch.equal(state[name], each.to(state[name].dtype)) for name, each in stored["state_dict"].items()
    )
    assert card_of(str(path), path.read_bytes())["task"] == task


@pytest.mark.parametrize("task", TASKS)
def test_a_new_file_has_every_old_key_and_the_task(tmp_path: Path, task: Task) -> None:
    loaded = load_model_file(old_file(tmp_path, task))
    (tmp_path / "new.pt").write_bytes(model_bytes(loaded.card, loaded.module.state_dict()))
    old, new = (torch.load(tmp_path / name, weights_only=True) for name in ("old.pt", "new.pt"))
    assert {key: new[key] for key in OLD[task] if key != "format"} | {"format": old["format"]} == OLD[task]
    assert (new["format"], new["task"]) == ("segray-model/2", task)
    assert old["state_dict"].keys() == new["state_dict"].keys()
    for name, tensor in old["state_dict"].items():
        assert torch.equal(tensor, new["state_dict"][name])
        assert tensor.dtype == new["state_dict"][name].dtype
    assert load_model_file(tmp_path / "new.pt").card == loaded.card


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_loaded_for_their_task_alone(tmp_path: Path, task: Task) -> None:
    path = old_file(tmp_path, task)
    model = load_weights(str(path), STORAGE, task)
    assert model.task == task
    again = pickle.loads(pickle.dumps(model))
    assert (again.card, again.task, again.digest) == (model.card, task, model.digest)
    assert load_weights(str(path), STORAGE).digest == model.digest
    start = load_start(str(path), STORAGE)
    assert (start.digest, start.arch, start.mean) == (
        model.digest,
        OLD[task]["arch"],
        OLD[task]["image_mean"],
    )
    other, use = ("semantic", "annotate") if task == "instance" else ("instance", "predict")
    with pytest.raises(SettingsError, match=f"old.pt: .*, use it with `segray {use}`"):
        load_weights(str(path), STORAGE, other)  # type: ignore[arg-type]


def test_a_semantic_model_says_how_images_go_in(tmp_path: Path) -> None:
    model = load_weights(str(old_file(tmp_path, "semantic")), STORAGE, "semantic")
    assert (model.classes, model.mean, model.std) == (
        ("background", "road"),
        (0.4, 0.5, 0.6),
        (0.3, 0.2, 0.1),
    )
    assert model.resized_to == 48
    assert load_weights("nuclei-small", STORAGE).resized_to is None
    assert load_start(model.name, STORAGE).labels == ("road",)


@pytest.mark.parametrize(
    ("name", "version", "digest"),
    [
        ("nuclei-small", 2, "dbba5d501d7b73aa"),
        ("buildings-small", 1, "720c00eb953c9ef3"),
    ],
)
def test_bundled_files_keep_their_digests(name: str, version: int, digest: str) -> None:
    """Outputs that they made go on by it."""
    assert torch.load(bundled_models()[name], weights_only=True)["format"] == f"segray-model/{version}"
    assert load_weights(name, STORAGE).digest.startswith(digest)


def test_a_model_for_a_task_of_later_is_refused(tmp_path: Path) -> None:
    content = {**OLD_SEMANTIC, "format": "segray-model/2", "task": "panoptic", "state_dict": {}}
    torch.save(content, tmp_path / "m.pt")
    told = "a segray model for 'panoptic', this version reads instance, semantic"
    with pytest.raises(SettingsError, match=told):
        load_model_file(tmp_path / "m.pt")
    del content["task"]
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(SettingsError, match="incomplete segray model file: task: Field required"):
        load_model_file(tmp_path / "m.pt")
