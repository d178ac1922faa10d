"""SAM's weights by name and by folder: read without pickle, or one error that says what to fetch."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from segray.errors import SettingsError
from segray.models.catalog import named_model
from segray.models.sam_files import CONFIG, TENSORS
from segray.models.sam_names import SAM_WEIGHTS
from segray.models.start_weights import load_start
from segray.models.weights import check_weights, load_weights
from segray.storage import StorageSettings
from tests.sam_models import made, save
from tests.servers import Server

STORAGE = StorageSettings()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("sam") / "sam2.1-hiera-tiny", "sam2")


def test_a_folder_is_loaded_as_transformers_saves_it(folder: Path, tmp_path: Path) -> None:
    loaded = load_weights(str(folder), STORAGE, "instance")
    assert (loaded.kind, loaded.categories, loaded.category_ids) == ("sam", {1: "object"}, None)
    state = made("sam2").state_dict()
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in loaded.module.network.state_dict().items()
    )
    again = pickle.loads(pickle.dumps(loaded))
    assert again.digest == loaded.digest
    assert again.module.side == loaded.module.side == 64
    other = save(tmp_path / "other", "sam2", seed=1)
    assert load_weights(str(other), STORAGE).digest != loaded.digest
    with pytest.raises(SettingsError, match="finds instances"):
        check_weights(str(folder), STORAGE, "semantic")
    with pytest.raises(SettingsError, match=r"start_from: .*SAM has no classes"):
        load_start(str(folder), STORAGE)


def test_sam_1_and_a_file_for_videos(folder: Path, tmp_path: Path) -> None:
    """The published files of SAM 2 say sam2_video, and hold tensors for videos as well."""
    from safetensors.torch import load_file, save_file

    assert load_weights(str(save(tmp_path / "one", "sam")), STORAGE).module.kind == "sam"
    video = tmp_path / "video"
    shutil.copytree(folder, video)
    config = json.loads((video / CONFIG).read_text())
    (video / CONFIG).write_text(json.dumps(config | {"model_type": "sam2_video"}))
    tensors = load_file(video / TENSORS) | {"memory_encoder.more": torch.ones(3)}
    save_file(tensors, video / TENSORS, {"format": "pt"})
    network = load_weights(str(video), STORAGE).module.network
    state = load_weights(str(folder), STORAGE).module.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_name_comes_from_hugging_face_s_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--facebook--sam2.1-hiera-tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert check_weights("sam2-tiny", STORAGE, "instance") == "sam"
    assert load_weights("sam2-tiny", STORAGE).digest == load_weights(str(folder), STORAGE).digest


def test_without_a_network_one_error_says_what_to_fetch(tmp_path: Path) -> None:
    """On the command line: exit code 2, and no Ray."""
    command = f"""
import os, sys
os.environ |= {{"HF_HOME": {str(tmp_path)!r}, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}}
from segray.cli import main
words = "annotate tests/data/nuclei/images --weights sam2-tiny --output {tmp_path}/o"
code = main(words.split())
print("ray" in sys.modules and sys.modules["ray"].is_initialized())
sys.exit(code)"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    for part in ("huggingface.co/facebook/sam2.1-hiera-tiny", "Apache-2.0", "config.json", "HF_HOME"):
        assert part in done.stderr
    assert done.stderr.index("licence: Apache-2.0") < done.stderr.index("cannot be fetched")
    assert "Traceback" not in done.stderr
    assert done.stdout == "False\n"


def test_a_folder_in_a_bucket(folder: Path, s3_server: Server) -> None:
    for name in (CONFIG, TENSORS):
        s3_server.put(f"test_sam/tiny/{name}", (folder / name).read_bytes())
    loaded = load_weights(s3_server.url("test_sam/tiny"), s3_server.storage, "instance")
    assert loaded.digest == load_weights(str(folder), STORAGE).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "of a model 'bert', not SAM's: sam, sam2"),
        ("no json", "config.json is not JSON"),
        ({"tensors": "lost"}, "lacks 1 tensors of Sam2Model: no_memory_embedding"),
        ({"tensors": "nan"}, "NaN or infinity"),
        ({"tensors": b"damaged"}, "not read as Sam2Model"),
        ({"tensors": None}, "a folder without model.safetensors"),
    ],
)
def test_wrong_folders_give_one_line(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    from safetensors.torch import load_file, save_file

    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    tensors = load_file(wrong / TENSORS)
    if isinstance(change, str):
        (wrong / CONFIG).write_text(change)
    elif "tensors" not in change:
        (wrong / CONFIG).write_text(json.dumps(json.loads((wrong / CONFIG).read_text()) | change))
    elif change["tensors"] is None:
        (wrong / TENSORS).unlink()
    elif isinstance(change["tensors"], bytes):
        (wrong / TENSORS).write_bytes(change["tensors"])
    else:
        tensors = copy.copy(tensors)
        lost = tensors.pop("no_memory_embedding")
        if change["tensors"] == "nan":
            tensors["no_memory_embedding"] = lost * float("nan") + float("nan")
        save_file(tensors, wrong / TENSORS, {"format": "pt"})
    with pytest.raises(SettingsError, match=message) as caught:
        load_weights(str(wrong), STORAGE)
    assert len(str(caught.value).splitlines()) == 1


def test_parameters_of_the_table() -> None:
    """The smallest two, built from transformers' own defaults, which are theirs."""
    import transformers

    with torch.device("meta"):
        networks = {
            "sam2-tiny": transformers.Sam2Model(transformers.Sam2Config()),
            "sam-vit-b": transformers.SamModel(transformers.SamConfig()),
        }
    for name, network in networks.items():
        row = named_model(name)
        assert row is not None
        assert row.parameters == sum(each.numel() for each in network.parameters())
        assert SAM_WEIGHTS[name].licence == row.licence == "Apache-2.0"
