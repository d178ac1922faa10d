"""The table of architectures: its figures are those of the networks, and `segray models` prints it."""

import json
import subprocess
import sys

import pytest
import torch

from segray.errors import SettingsError
from segray.models.architectures import (
    ARCHITECTURES,
    CHOICES,
    Architecture,
    check_recomputing,
    complete_settings,
    parsed,
)
from segray.models.catalog import NAMED_MODELS, show
from segray.models.encoder_weights import has_encoder
from segray.models.modelfile import Card, ModelCard, SemanticCard, VolumeCard, build_model
from segray.models.sam_names import SAM_WEIGHTS
from segray.models.volume_networks import least_patch


def card(row: Architecture) -> Card:
    settings, half = complete_settings(row.arch, {}), (0.5,) * 3
    if row.task == "semantic":
        return SemanticCard(row.arch, settings, 1, ("ground", "roof"), half, half, 64, "crop")
    if row.task == "volume":
        patch = least_patch(row.arch, settings)
        return VolumeCard(row.arch, settings, 1, ("ground", "roof"), (0.0,), (1.0,), patch)
    return ModelCard(row.arch, settings, {1: "roof"}, half, half, 64, 64)


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)
def test_every_row_is_built_and_has_its_parameters(row: Architecture) -> None:
    reads_a_tensor = "mit_" in row.arch or row.arch == "swinunetr"
    with torch.device("cpu" if reads_a_tensor else "meta"):
        network = build_model(card(row))
    assert sum(each.numel() for each in network.parameters()) == row.parameters
    assert network.training
    if row.task == "semantic" and row.library.pretrained:
        assert has_encoder(network), (
            "train takes the pretrained weights of what is called encoder or backbone"
        )


def test_the_network_of_a_named_model_is_in_the_table() -> None:
    rows = {row.arch: row for row in ARCHITECTURES}
    for model in NAMED_MODELS:
        assert model.name in SAM_WEIGHTS or rows[model.arch].task == model.task


@pytest.mark.parametrize("arch", ["unet", "segnet", "attention_unet", "transunet", "fpn:resnet50"])
def test_recomputing_is_supported(arch: str) -> None:
    check_recomputing(arch)


@pytest.mark.parametrize("arch", ["hrnet:w18", "segformer:mit_b0", "mask2former-semantic"])
def test_recomputing_is_refused(arch: str) -> None:
    with pytest.raises(SettingsError, match=f"activation_checkpointing: {arch} is not supported; unet, "):
        check_recomputing(arch)


def test_help_names_every_row() -> None:
    for row in ARCHITECTURES:
        assert row.family in CHOICES.replace(",", " ").split()
        parsed(row.arch)


def test_defaults_are_others_with_pretrained_weights() -> None:
    arch = "maskrcnn_resnet50_fpn"
    assert complete_settings(arch, {})["norm"] == "batch"
    begun = complete_settings(arch, {"trainable_layers": 2}, pretrained=True)
    assert begun == {"norm": "frozen", "trainable_layers": 2, "detections_per_image": 100}
    other = "maskrcnn_resnet50_fpn_v2"
    assert complete_settings(other, {}, pretrained=True) == complete_settings(other, {})


def test_settings_are_those_that_come_back_from_a_file() -> None:
    complete = complete_settings("compact-maskrcnn", {})
    assert complete == json.loads(json.dumps(complete))
    assert complete["widths"] == [48, 96, 160, 224]


def test_json_tells_weights_from_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    weights = [row for row in rows if row["kind"] == "weights"]
    packaged = [row for row in rows if row["kind"] == "encoder"]
    assert [row["name"] for row in packaged] == [f"efficientnet-lite{n}" for n in range(3)]
    assert {(row["licence"], row["bundled"]) for row in packaged} == {("Apache-2.0", True)}
    others = [row for row in rows if row["kind"] == "architecture"]
    assert [row["name"] for row in weights] == [model.name for model in NAMED_MODELS]
    keys = ["name", "task", "arch", "parameters", "categories", "licence", "origin", "bundled"]
    assert all(list(row) == ["kind", *keys] for row in (*weights, *packaged))
    assert [row["name"] for row in others] == [row.name for row in ARCHITECTURES]
    assert all(set(keys) <= row.keys() for row in others)
    encoders = {row["name"]: row["encoders"] for row in others}
    assert encoders["fcn:ENCODER"] == ["resnet50", "resnet101"]
    assert {"resnet34", "efficientnet-b0"} < set(encoders["fpn:ENCODER"])
    assert encoders["unet"] == encoders["compact-maskrcnn"] == []


def test_the_table_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(as_json=False) == 0
    printed = capsys.readouterr().out
    for name in [row.name for row in ARCHITECTURES] + [model.name for model in NAMED_MODELS]:
        assert f"\n{name} " in printed
    assert "unet:ENCODER              semantic, 32.5 M parameters as unet:resnet50\n" in printed


def test_printing_loads_nothing_heavy() -> None:
    program = """
import sys
from segray.cli import main
for options in ([], ["--json"]):
    assert main(["models", *options]) == 0
heavy = ("torch", "torchvision", "ray", "segmentation_models_pytorch", "timm", "pyarrow", "pydantic")
print([name for name in heavy if name in sys.modules], file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
