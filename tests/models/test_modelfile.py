"""The model file: what is written comes back, and nothing in it is ever executed."""

import hashlib
import io
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import MaskRCNN

from segray.errors import SettingsError
from segray.models.maskrcnn import CompactSettings
from segray.models.modelfile import FORMAT, ModelCard, build_model, load_model_file, save_model_file

TINY = CompactSettings(
    stem_width=8, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), fpn_width=8, box_width=16, mask_widths=(8,)
)
CARD = ModelCard(
    arch="compact-maskrcnn",
    arch_settings=asdict(TINY),
    categories={3: "boat", 7: "quay"},
    image_mean=(0.1, 0.2, 0.3),
    image_std=(0.4, 0.5, 0.6),
    min_size=96,
    max_size=128,
    band_ranges=((0.0, 3000.0), (1.5, 2.5), (-1.0, 1.0)),
    licence="CC0-1.0",
    source="made for a test",
)


@pytest.fixture
def model() -> MaskRCNN:
    torch.manual_seed(0)
    return build_model(CARD).eval()


@torch.inference_mode()
def test_round_trip_gives_the_same_predictions(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "m.pt", CARD, model.state_dict(), half=False)
    loaded = load_model_file(tmp_path / "m.pt")
    image = torch.rand(3, 80, 100)
    model.roi_heads.score_thresh = loaded.module.roi_heads.score_thresh = 0.0
    expected, found = model([image])[0], loaded.module([image])[0]
    assert len(expected["boxes"]) > 0
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_everything_but_the_weights_comes_back(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "m.pt", CARD, model.state_dict())
    loaded = load_model_file(tmp_path / "m.pt")
    assert loaded.card == CARD
    assert loaded.categories == {3: "boat", 7: "quay"}
    assert loaded.digest == hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest()
    assert not loaded.module.training
    assert loaded.module.transform.min_size == (96,)
    assert loaded.module.transform.image_std == [0.4, 0.5, 0.6]
    assert loaded.module.roi_heads.detections_per_img == TINY.detections_per_image
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_half_precision_halves_the_file_and_rounds_the_weights(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "full.pt", CARD, model.state_dict(), half=False)
    save_model_file(tmp_path / "half.pt", CARD, model.state_dict())
    assert (tmp_path / "half.pt").stat().st_size < 0.75 * (tmp_path / "full.pt").stat().st_size
    for name, value in load_model_file(tmp_path / "half.pt").module.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(torch.float16).to(value.dtype)), name


def test_a_stream_is_read_like_a_file(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "m.pt", CARD, model.state_dict())
    streamed = load_model_file(io.BytesIO((tmp_path / "m.pt").read_bytes()))
    assert streamed.digest == load_model_file(tmp_path / "m.pt").digest


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, write: Any) -> None:
    write({"format": FORMAT, "state_dict": Trap(tmp_path / "ran")}, tmp_path / "m.pt")
    with pytest.raises(SettingsError, match=r"m\.pt: refused, it carries code") as caught:
        load_model_file(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight": torch.zeros(2)}, "not a segray model file"),
        ([1, 2], "not a segray model file"),
        ({"format": "segray-model/2", "state_dict": {}}, "not a segray model file"),
        ({"format": FORMAT, "state_dict": {}}, "incomplete"),
        ({"format": FORMAT, **asdict(CARD)}, "incomplete"),
        ({"format": FORMAT, **asdict(replace(CARD, arch="yolo")), "state_dict": {}}, "unknown architecture"),
        ({"format": FORMAT, **asdict(CARD), "state_dict": {}}, "do not fit"),
        (
            {"format": FORMAT, **asdict(replace(CARD, arch_settings={"depth": 9})), "state_dict": {}},
            "does not take",
        ),
    ],
)
def test_another_format_is_one_clear_line(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(SettingsError, match=reason) as caught:
        load_model_file(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 2000, -100])
def test_a_truncated_file_is_one_clear_line(tmp_path: Path, model: MaskRCNN, keep: int) -> None:
    save_model_file(tmp_path / "m.pt", CARD, model.state_dict())
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:keep])
    with pytest.raises(SettingsError, match=r"m\.pt: (refused|damaged)"):
        load_model_file(tmp_path / "m.pt")
