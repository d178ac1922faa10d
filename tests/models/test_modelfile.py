"""The model file: what is written comes back, and nothing in it is ever executed."""

import hashlib
import io
import pickle
import struct
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection import MaskRCNN

from segray.errors import SettingsError
from segray.models.maskrcnn import CompactSettings
from segray.models.modelfile import (
    FORMAT,
    ModelCard,
    build_model,
    load_model_file,
    model_bytes,
    plain_contents,
)
from tests.models.files import save_model_file

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
    assert loaded.card.categories == {3: "boat", 7: "quay"}
    assert loaded.digest == hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest()
    assert not loaded.module.training
    assert loaded.module.transform.min_size == (96,)
    assert loaded.module.transform.image_std == [0.4, 0.5, 0.6]
    assert loaded.module.roi_heads.detections_per_img == TINY.detections_per_image
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_half_precision_halves_the_file_and_rounds_the_weights(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "full.pt", CARD, model.state_dict(), half=False)
    save_model_file(tmp_path / "half.pt", CARD, model.state_dict())
    assert (tmp_path / "half.pt").stat().st_size < 0.75 * (tmp_path / "full.pt").stat().st_size
    for name, value in load_model_file(tmp_path / "half.pt").module.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(torch.float16).to(value.dtype)), name


def test_bytes_are_read_like_a_file(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "m.pt", CARD, model.state_dict())
    read = load_model_file((tmp_path / "m.pt").read_bytes())
    assert read.digest == load_model_file(tmp_path / "m.pt").digest


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
        ({"format": "segray-model/3", "state_dict": {}}, "not a segray model file"),
        ({"format": FORMAT, "state_dict": {}}, "incomplete"),
        ({"format": FORMAT, **asdict(CARD)}, "incomplete"),
        ({"format": FORMAT, **asdict(CARD), "state_dict": "abc"}, "state_dict is a str, not tensors"),
        ({"format": FORMAT, **asdict(CARD), "state_dict": {1: 2}}, "state_dict is a dict, not tensors"),
        ({"format": FORMAT, **asdict(CARD), "state_dict": {"a": 2}}, "'a' in its state_dict is a int"),
        (
            {"format": FORMAT, **asdict(CARD), "state_dict": {"a": torch.tensor([1.0, torch.nan])}},
            "'a' in its state_dict holds NaN or infinity",
        ),
        (
            {"format": FORMAT, **asdict(CARD), "state_dict": {"a": torch.tensor([torch.inf]).half()}},
            "'a' in its state_dict holds NaN or infinity",
        ),
        ({"format": FORMAT, **asdict(CARD) | {"arch": ["a"]}, "state_dict": {}}, "incomplete .*arch: "),
        ({"format": FORMAT, **asdict(CARD) | {"more": 1}, "state_dict": {}}, "incomplete .*more: "),
        ({"format": FORMAT, **asdict(CARD) | {"min_size": "x"}, "state_dict": {}}, "incomplete .*min_size"),
        (
            {"format": FORMAT, **asdict(replace(CARD, image_std=(0.1, 0.0, 0.1))), "state_dict": {}},
            "image_std .* is not above 0",
        ),
        (
            {"format": FORMAT, **asdict(replace(CARD, image_std=(0.1, torch.inf, 0.1))), "state_dict": {}},
            "image_std .* is not above 0",
        ),
        (
            {"format": FORMAT, **asdict(replace(CARD, image_mean=(0.1, torch.nan, 0.1))), "state_dict": {}},
            "image_mean .* is not finite",
        ),
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


def rezipped(data: bytes, compression: int, more: int = 0) -> bytes:
    """A file of torch.save as another zip; `more` zeros are added to its first storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for record in old.infolist():
            new.writestr(
                record.filename, old.read(record) + bytes(more * record.filename.endswith("/data/0"))
            )
    return file.getvalue()


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path, model: MaskRCNN) -> None:
    save_model_file(tmp_path / "m.pt", CARD, model.state_dict())
    whole = (tmp_path / "m.pt").read_bytes()
    load_model_file(rezipped(whole, zipfile.ZIP_STORED))
    bomb = rezipped(whole, zipfile.ZIP_DEFLATED, more=64 << 20)
    assert len(bomb) < 1 << 20
    with pytest.raises(SettingsError, match="refused, its records are compressed"):
        load_model_file(bomb)


def test_records_that_lie_over_each_other_are_refused(model: MaskRCNN) -> None:
    """One run of bytes that a hundred entries of the directory name: stored, and still a bomb."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
        archive.filelist += archive.filelist * 99
    with pytest.raises(SettingsError, match=r"refused, 1,0\d\d,\d{3} bytes that claim to hold 104,857,600"):
        plain_contents("m.pt", file.getvalue())


def test_one_flipped_bit_anywhere_in_the_records_is_damage(model: MaskRCNN) -> None:
    data = model_bytes(CARD, model.state_dict())
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [record for record in archive.infolist() if record.file_size > 500]
    for record in rng.choice(np.array(records, object), 20):
        header = data[record.header_offset :][:30]
        name_bytes, extra_bytes = struct.unpack("<26x2H", header)
        start = record.header_offset + 30 + name_bytes + extra_bytes
        at = start + int(rng.integers(record.file_size))
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(SettingsError, match=r"m\.pt: damaged, the checksum of 'archive/data") as caught:
            plain_contents("m.pt", bytes(flipped))
        assert "\n" not in str(caught.value)


def test_files_without_checksums_are_read(model: MaskRCNN) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = model_bytes(CARD, model.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_model_file(data).card == CARD
