"""Volumes of files: axes, affines, scaling; what is broken costs one item; label volumes are written back."""

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segray.data.labels import LabelRules
from segray.data.pairs import list_pairs
from segray.data.volume_reader import VolumeExample, VolumeReading
from segray.errors import ItemError
from segray.scenes.scene import Tiling
from segray.schema import FETCHED
from segray.sources.decode import decode_rgb
from segray.sources.decode_step import Decoder
from segray.sources.sandbox import DecodeSandbox
from segray.sources.volume import label_file, packed, read_volume, unpacked
from segray.storage import StorageSettings
from tests.volumes.made import AFFINE, SHAPE, ball, opened, write_nifti, write_stack

LIMIT = 1_000_000


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_has_depth_first_and_its_affine(name: str, tmp_path: Path) -> None:
    voxels, _ = ball(0)
    write_nifti(tmp_path / name, voxels)
    found = read_volume((tmp_path / name).read_bytes(), LIMIT)
    assert found.voxels.dtype == np.float32
    np.testing.assert_array_equal(found.voxels, voxels)
    np.testing.assert_allclose(np.reshape(found.place.affine, (4, 4)), AFFINE, atol=1e-5)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image: Any = nibabel.Nifti1Image(numbers, AFFINE)  # type: ignore[no-untyped-call]
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "ct.nii")
    found = read_volume((tmp_path / "ct.nii").read_bytes(), LIMIT)
    oracle = opened(tmp_path / "ct.nii").get_fdata()
    np.testing.assert_array_equal(found.voxels, oracle.T)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_stack_has_a_slice_a_page(kind: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 200, SHAPE).astype(kind)
    write_stack(tmp_path / "stack.tif", values)
    found = read_volume((tmp_path / "stack.tif").read_bytes(), LIMIT)
    np.testing.assert_array_equal(found.voxels, values)
    assert found.place.form == "tiff"


def test_a_label_volume_has_its_image_s_affine_and_codes(tmp_path: Path) -> None:
    voxels, label = ball(2)
    write_nifti(tmp_path / "a.nii.gz", voxels)
    place = read_volume((tmp_path / "a.nii.gz").read_bytes(), LIMIT).place
    (tmp_path / "label.nii.gz").write_bytes(label_file(label, place))
    before, after = (opened(tmp_path / name) for name in ("a.nii.gz", "label.nii.gz"))
    np.testing.assert_array_equal(np.asarray(after.dataobj), label.T)
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    assert [after.header[name] for name in ("sform_code", "xyzt_units")] == [
        before.header[name] for name in ("sform_code", "xyzt_units")
    ]
    assert label_file(label, place) == label_file(label, place)
    stack = Image.open(io.BytesIO(label_file(label, read_volume(_stack(label), LIMIT).place)))
    assert stack.n_frames == SHAPE[0]  # type: ignore[attr-defined]


def _stack(label: Any) -> bytes:
    first, *others = (Image.fromarray(each) for each in label)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=others)
    return file.getvalue()


def _nifti(values: Any) -> bytes:
    image: Any = nibabel.Nifti1Image(values, AFFINE)  # type: ignore[no-untyped-call]
    return bytes(image.to_bytes())


_SOUND = _nifti(np.zeros((8, 8, 8), np.int16))
_HUGE = bytearray(_SOUND)
_HUGE[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
BROKEN = {
    "empty": (b"", "truncated"),
    "text": (b"hello, this is no volume", "unsupported"),
    "early": (_SOUND[:700], "truncated"),
    "early gzip": (gzip.compress(_SOUND)[:60], "truncated"),
    "damaged gzip": (gzip.compress(_SOUND)[:10] + b"\xff" * 60, "corrupt"),
    "header alone": (_SOUND[:200], "corrupt"),
    "header that promises too much": (gzip.compress(bytes(_HUGE)), "too_large"),
    "channels": (_nifti(np.zeros((4, 4, 4, 2), np.float32)), "unsupported"),
    "complex": (_nifti(np.zeros((4, 4, 4), np.complex64)), "unsupported"),
    "nan": (_nifti(np.full((4, 4, 4), np.nan, np.float32)), "unsupported"),
}


@pytest.fixture(scope="module")
def sandbox() -> Any:
    """One child for all."""
    with DecodeSandbox(timeout_s=60) as found:
        yield found


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_and_the_next_file_is_read(name: str, sandbox: DecodeSandbox) -> None:
    data, error_type = BROKEN[name]
    with pytest.raises(ItemError) as raised:
        sandbox.volume(data, LIMIT)
    assert raised.value.error_type == error_type, raised.value.reason
    assert unpacked(sandbox.volume(_SOUND, LIMIT)).voxels.shape == (8, 8, 8)


def test_packed_is_unpacked(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", ball(3)[0])
    volume = read_volume((tmp_path / "a.nii").read_bytes(), LIMIT)
    again = unpacked(np.frombuffer(packed(volume), np.uint8))
    assert again.place == volume.place
    np.testing.assert_array_equal(again.voxels, volume.voxels)


def test_a_decoder_of_volumes_rejects_one_row(sandbox: DecodeSandbox) -> None:
    rows = [
        {"image_id": name, "uri": f"file:///{name}", "data": data}
        for name, data in (("a", _SOUND), ("b", BROKEN["early"][0]), ("c", _stack(ball(0)[1])))
    ]
    fetched = pa.Table.from_pylist(rows, FETCHED)
    decoder = Decoder(sandbox, LIMIT, Tiling(volumes=True))
    (table,) = decoder.tables(fetched)
    assert table["error_type"].to_pylist() == [None, "truncated", None]
    assert table["frames"].to_pylist() == [8, None, SHAPE[0]]
    assert table["width"].to_pylist() == [8, None, SHAPE[2]]
    last = unpacked(np.frombuffer(table["pixels"][2].as_buffer(), np.uint8))
    np.testing.assert_array_equal(last.voxels, ball(0)[1])


def test_without_volumes_a_stack_is_a_picture_and_nifti_says_what_to_do() -> None:
    assert decode_rgb(_stack(ball(0)[1]), LIMIT).pixels.shape == (*SHAPE[1:], 3)
    with pytest.raises(ItemError, match=r"NIfTI is read only as a volume .* --volumes"):
        decode_rgb(_SOUND, LIMIT)


def test_pairs_of_volumes_are_found_and_compared(tmp_path: Path) -> None:
    voxels, label = ball(4)
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("good", "turned", "small", "half", "seven"):
        write_nifti(images / f"{name}.nii", voxels)
    write_nifti(labels / "good.nii.gz", label.astype(np.float64))
    write_nifti(labels / "turned.nii.gz", label, np.diag([1.0, 1, 1, 1]))
    write_nifti(labels / "small.nii.gz", label[1:])
    write_nifti(labels / "half.nii.gz", label.astype(np.float32) / 2)
    write_nifti(labels / "seven.nii.gz", 7 * label)
    listed = list_pairs(str(tmp_path), StorageSettings())
    found = VolumeReading(LabelRules(2), LIMIT, StorageSettings()).reader().read(listed.pairs)
    by_name = {
        pair.name.removeprefix("images/"): each for pair, each in zip(listed.pairs, found, strict=True)
    }
    good = by_name.pop("good.nii")
    assert isinstance(good, VolumeExample)
    np.testing.assert_array_equal(good.classes, label)
    reasons = {name: each.reason for name, each in by_name.items() if isinstance(each, ItemError)}
    assert "affine" in reasons["turned.nii"]
    assert "19 x 24 x 28 voxels, its image 20 x 24 x 28" in reasons["small.nii"]
    assert "not whole numbers" in reasons["half.nii"]
    assert "value 7 in " in reasons["seven.nii"]
