"""Networks by name against the libraries' own, and the sizes, names and settings they would not take."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.segmentation import fcn_resnet50

from segray.errors import SettingsError
from segray.models import architectures, smp_names
from segray.models.architectures import complete_settings
from segray.models.encoder_start import pretrained_start
from segray.models.pretrained import IMAGENET_MEAN, origin_of
from segray.models.semantic import build_semantic
from segray.models.smp_names import offered
from segray.models.unet import UNet, UNetSettings
from tests.models.overlap_tile import overlap_tile

SMP: dict[str, tuple[Any, int]] = {
    "unet:resnet18": (smp.Unet, 32),
    "unetplusplus:resnet18": (smp.UnetPlusPlus, 32),
    "deeplabv3:resnet18": (smp.DeepLabV3, 8),
    "deeplabv3plus:resnet18": (smp.DeepLabV3Plus, 16),
    "pspnet:resnet18": (smp.PSPNet, 8),
    "fpn:resnet18": (smp.FPN, 32),
    "linknet:resnet18": (smp.Linknet, 32),
    "manet:resnet18": (smp.MAnet, 32),
    "upernet:resnet18": (smp.UPerNet, 32),
    "segformer:mit_b0": (smp.Segformer, 32),
    "unet:tu-hrnet_w18_small": (smp.Unet, 32),
    "pspnet:tu-hrnet_w18_small": (smp.PSPNet, 32),  # its own word is 8, which HRNet cannot do
}
"""Name to the library's class and the stride we should find."""


def built(arch: str, bands: int = 4, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_semantic(arch, bands, 2, settings)


def raw(arch: str, model: nn.Module, bands: int = 4) -> nn.Module:
    """The library's own network with the weights of ours."""
    encoder = arch.partition(":")[2]
    if arch == "fcn:resnet50":
        network: nn.Module = fcn_resnet50(weights=None, weights_backbone=None, num_classes=2, aux_loss=False)
        backbone: Any = network.backbone
        backbone["conv1"] = nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
    else:
        network = SMP[arch][0](encoder, encoder_weights=None, in_channels=bands, classes=2)
    network.load_state_dict(
        {key.removeprefix("network."): value for key, value in model.state_dict().items()}
    )
    return network.eval()


def image(height: int, width: int, bands: int = 4) -> Tensor:
    return torch.rand(1, bands, height, width, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def parameters_of(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    result = network(images)
    logits: Tensor = result["out"] if isinstance(result, dict) else result
    return logits


@pytest.mark.parametrize(
    ("arch", "stride"), [*((arch, at[1]) for arch, at in SMP.items()), ("fcn:resnet50", 8)]
)
def test_logits_are_the_librarys(arch: str, stride: int) -> None:
    model = built(arch)
    assert all(module.training for module in model.modules())
    model.eval()
    network = raw(arch, model)
    assert parameters_of(model) == sum(each.numel() for each in network.parameters())
    fits = image(2 * stride, 3 * stride)
    assert torch.equal(logits_of(model, fits), logits_of(network, fits))
    odd = image(stride + 1, 2 * stride - 1)
    mirrored = np.pad(odd.numpy(), [(0, 0), (0, 0), (0, stride - 1), (0, 1)], mode="reflect")
    expected = logits_of(network, torch.from_numpy(mirrored))[..., : stride + 1, : 2 * stride - 1]
    assert torch.equal(logits_of(model, odd), expected)


@pytest.mark.parametrize("arch", [*SMP, "fcn:resnet50", "unet"])
def test_one_image_of_any_size_trains(arch: str) -> None:
    model = built(arch, **({"width": 4} if arch == "unet" else {}))
    for size in ((1, 1), (33, 9)):
        logits = model(image(*size))
        logits.square().mean().backward()
        assert logits.shape == (1, 2, *size)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all(module.training for module in model.modules())
    assert logits_of(model.eval(), image(1, 40)).isfinite().all()


def test_dpt_takes_any_size() -> None:
    """Its ViT interpolates position embeddings that were learnt for 224 x 224."""
    narrow: dict[str, Any] = {"decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8}
    model: Any = built("dpt:tu-vit_tiny_patch16_224", **narrow)
    network = smp.DPT(
        "tu-vit_tiny_patch16_224", encoder_weights=None, in_channels=4, classes=2,
        decoder_intermediate_channels=(8, 8, 8, 8), decoder_fusion_channels=8,
    ).eval()  # fmt: skip
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        fits = image(224, 224)
        torch.testing.assert_close(model.eval()(fits), network(fits))
    logits = model.train()(image(33, 9))
    logits.square().mean().backward()
    assert logits.shape == (1, 2, 33, 9)
    assert model.network.encoder.model.pos_embed.grad.abs().sum() > 0


def test_pooled_branch_keeps_its_statistics_for_one_item() -> None:
    model = built("deeplabv3plus:resnet18")
    name = "network.decoder.aspp.0.convs.4.2.running_mean"
    before = model.state_dict()[name].clone()
    model(image(32, 32))
    assert torch.equal(model.state_dict()[name], before)
    model(image(32, 32).expand(2, -1, -1, -1))
    assert not torch.equal(model.state_dict()[name], before)


def test_own_unet() -> None:
    model = build_semantic("unet", 3, 1, {})
    assert isinstance(model, UNet)
    assert model.settings == UNetSettings()
    assert parameters_of(model) == 31_043_521


@pytest.mark.parametrize("size", [(1, 1), (50, 77), (60, 60)])
def test_own_unet_with_valid_padding_keeps_the_size(size: tuple[int, int]) -> None:
    model = built("unet", width=4, depth=2, padding="valid").eval()
    network: Any = model.network
    assert logits_of(model, image(*size)).shape == (1, 2, *size)
    torch.testing.assert_close(logits_of(model, image(*size)), overlap_tile(network, image(*size)))


@pytest.mark.parametrize(
    ("arch", "bands"), [("unet:resnet18", 1), ("unet:tu-hrnet_w18_small", 1), ("fcn:resnet50", 13)]
)
def test_bands(arch: str, bands: int) -> None:
    assert logits_of(built(arch, bands).eval(), image(32, 32, bands)).shape == (1, 2, 32, 32)


def test_settings_reach_the_network() -> None:
    model: Any = built("unet:resnet18", decoder_channels=[64, 32, 16, 8, 4], decoder_use_norm=False)
    assert model.network.segmentation_head[0].in_channels == 4
    assert not any(isinstance(each, nn.BatchNorm2d) for each in model.network.decoder.modules())


@pytest.mark.parametrize("arch", ["unet", "unet:resnet18", "deeplabv3plus:resnet18"])
def test_complete_settings_build_the_same_after_json(arch: str) -> None:
    complete = json.loads(json.dumps(complete_settings(arch, {})))
    assert not {"activation", "aux_params", "classes", "kwargs"} & complete.keys()
    default, again = built(arch).state_dict(), built(arch, **complete).state_dict()
    assert {key: each.shape for key, each in default.items()} == {
        key: each.shape for key, each in again.items()
    }


def test_given_settings_win() -> None:
    assert complete_settings("unet", {"width": 16})["width"] == 16
    complete = complete_settings("pspnet:resnet18", {"psp_dropout": 0.5})
    assert (complete["psp_dropout"], complete["encoder_depth"]) == (0.5, 3)


def test_the_table_of_names_is_what_the_libraries_offer() -> None:
    """After an upgrade of them: `python -m segray.models.smp_names` writes it anew."""
    assert json.loads(smp_names.SMP_NAMES.read_text()) == json.loads(json.dumps(offered()))


def test_another_version_of_the_libraries_is_asked_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = json.loads(smp_names.SMP_NAMES.read_text())
    table["encoders"].remove("resnet18")
    del table["families"]["fpn"]["decoder_dropout"]
    (tmp_path / "names.json").write_text(json.dumps(table))
    for older, told in ((False, "no encoder 'resnet18'"), (True, "")):
        table["versions"]["timm"] = "0.0.1" if older else table["versions"]["timm"]
        (tmp_path / "names.json").write_text(json.dumps(table))
        monkeypatch.setattr(smp_names, "SMP_NAMES", tmp_path / "names.json")
        for kept in (smp_names._known, smp_names._is_current):
            kept.cache_clear()
        try:
            if told:
                with pytest.raises(SettingsError, match=told):
                    architectures.parsed("fpn:resnet18")
            else:
                assert complete_settings("fpn:resnet18", {})["decoder_dropout"] == 0.2
        finally:
            for kept in (smp_names._known, smp_names._is_current):
                kept.cache_clear()


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (
            "unett:resnet18",
            "unknown architecture 'unett:resnet18'; did you mean .*unet.*; known",
        ),
        ("dpt:resnet50", "dpt:resnet50 cannot be built .*Only Timm encoders"),
        ("resnet50", "unknown architecture 'resnet50'; .*known: unet, .*FAMILY:ENCODER with .*fcn"),
        ("", "unknown architecture"),
        ("unett", "unknown architecture 'unett'; did you mean unet"),
        ("UNet", "unknown architecture 'UNet'; did you mean unet"),
        ("UNet:resnet18", "unknown architecture 'UNet:resnet18'; did you mean unet"),
        ("unet:ResNet18", "unet has no encoder 'ResNet18'; did you mean .*resnet18"),
        ("segnet:vgg16", "segnet takes no encoder; write segnet$"),
        ("sam2-tiny", "SAM is not trained here"),
        ("compact-maskrcn", "unknown architecture 'compact-maskrcn'; did you mean compact-maskrcnn"),
        ("pspnet", "architecture 'pspnet' needs an encoder, such as pspnet:resnet50"),
        ("unet:", "architecture 'unet:' needs an encoder"),
        ("unet:resnet81", "unet has no encoder 'resnet81'; did you mean .*resnet18"),
        ("unet:hrnet_w18", "no encoder 'hrnet_w18'; did you mean tu-hrnet_w18"),
        ("fpn:tu-hrnet_w81", "no encoder 'tu-hrnet_w81'; did you mean .*tu-hrnet_w18"),
        ("fcn:resnet18", "fcn has no encoder 'resnet18'; did you mean .*resnet50"),
        ("unet:tu-resnet18.none", "cannot be built .*Invalid pretrained tag"),
        ("unet:tu-vit_tiny_patch16_224", "cannot be built"),
        ("unet:tu-swin_tiny_patch4_window7_224", "the encoder does not take images of any size: .*224"),
        ("unetplusplus:mit_b0", "cannot be built with these settings: .*not support"),
    ],
)
def test_wrong_names(arch: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        build_semantic(arch, 3, 1, {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arch", "settings", "words"),
    [
        ("unet", {"wdth": 3}, "unet has no setting wdth; did you mean width"),
        ("unet", {"norm": "layer"}, "norm must be one of"),
        (
            "unet:resnet18",
            {"decoder_chanels": 1},
            "no setting decoder_chanels; did you mean decoder_channels",
        ),
        ("unet:resnet18", {"activation": "sigmoid"}, "unet:resnet18 has no setting activation"),
        ("unet:resnet18", {"encoder_weights": "imagenet"}, "no setting encoder_weights"),
        ("unet:resnet18", {"decoder_use_norm": nn.BatchNorm2d}, "must be numbers, text, or lists or tables"),
        ("unet:resnet18", {"decoder_channels": [8, 8]}, "cannot be built with these settings: .*depth is 5"),
        (
            "pspnet:resnet18",
            {"encoder_depth": 4},
            "logits are 0.5 times as high .* upsampling or encoder_depth",
        ),
        ("fcn:resnet50", {"width": 3}, "fcn:resnet50 has no setting width"),
    ],
)
def test_wrong_settings(arch: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        build_semantic(arch, 3, 1, settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("bands", "outputs"), [(0, 1), (3, 0)])
def test_no_bands_or_outputs(bands: int, outputs: int) -> None:
    with pytest.raises(SettingsError, match="must be at least 1"):
        build_semantic("unet", bands, outputs, {})


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and nobody at the other end."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request._opener", None)  # one that was made with the proxies of before
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("unet:resnet18", "no pretrained weights .*huggingface.co once.*HF_HOME.*train without pretrained"),
        ("fpn:tu-resnet18", "no pretrained weights .*huggingface.co once.*HF_HOME"),
        ("fcn:resnet50", "no pretrained weights .*download.pytorch.org once.*TORCH_HOME"),
        ("unet:tu-darknet17", "the encoder has no pretrained weights"),
        ("unet", "unet has no pretrained weights; use unet:ENCODER"),
    ],
)
def test_weights_that_cannot_be_had(arch: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        build_semantic(arch, 3, 1, {}, pretrained=True)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("bands", [1, 4])
def test_weights_from_the_cache(bands: int, tmp_path: Path) -> None:
    encoder = smp.encoders.get_encoder("resnet18")
    cached = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{cached['repo_id'].replace('/', '--')}" / "snapshots" / cached["revision"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file(encoder.state_dict(), folder / "model.safetensors")
    model: Any = build_semantic("unet:resnet18", bands, 1, {}, pretrained=True)
    assert torch.equal(model.network.encoder.layer4[1].conv2.weight, encoder.layer4[1].conv2.weight)
    torch.testing.assert_close(model.network.encoder.conv1.weight, shared_out(encoder.conv1.weight, bands))


@pytest.mark.usefixtures("_no_network")
def test_weights_bring_their_normalisation(tmp_path: Path) -> None:
    cached = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{cached['repo_id'].replace('/', '--')}" / "snapshots" / cached["revision"]
    folder.mkdir(parents=True)
    assert origin_of("unet:resnet18").mean == IMAGENET_MEAN  # nothing was fetched
    (folder / "config.json").write_text('{"mean": [0.5, 0.5, 0.25], "std": [0.5, 0.5, 0.125]}')
    save_file(smp.encoders.get_encoder("resnet18").state_dict(), folder / "model.safetensors")
    start = pretrained_start("unet:resnet18", lambda: build_semantic("unet:resnet18", 3, 1, {}, True))
    assert (start.mean, start.std) == ((0.5, 0.5, 0.25), (0.5, 0.5, 0.125))
    assert start.source == f"huggingface.co/{cached['repo_id']}, revision {cached['revision'][:12]}"
    for damaged in ('{"mean": [0.5, 0.', '{"mean": [0.5]}', '{"std": null}', "[]"):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(SettingsError, match=r"config.json is damaged; delete it"):
            origin_of("unet:resnet18")


@pytest.mark.usefixtures("_no_network")
def test_fcn_weights_from_the_cache(tmp_path: Path) -> None:
    classifier = resnet50(weights=None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(classifier.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")
    for bands in (1, 5):
        model: Any = build_semantic("fcn:resnet50", bands, 1, {}, pretrained=True)
        assert torch.equal(model.network.backbone.layer4[2].conv3.weight, classifier.layer4[2].conv3.weight)
        expected = shared_out(classifier.conv1.weight, bands)
        torch.testing.assert_close(model.network.backbone.conv1.weight, expected)


def shared_out(three: Tensor, bands: int) -> Tensor:
    if bands == 1:
        return three[:, :1] + three[:, 1:2] + three[:, 2:]
    mean = three.mean(1)
    return torch.stack([*three.unbind(1), *[mean] * (bands - 3)], dim=1) * 3 / bands


def test_libraries_are_imported_late() -> None:
    program = """
import sys
from segray.models.semantic import build_semantic
build_semantic("unet", 3, 1, {"width": 4})
print([name for name in ("segmentation_models_pytorch", "timm", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
