"""`--blur`: what is hidden cannot be got back, the rest stays, and nothing unblurred is ever written."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segray.cli import main
from segray.predict.blur import CELLS, LEAST, copy_name, encoded_copy, hidden
from tests.bulk.runs import FEW, REAL, tables
from tests.predict.networks import NAMES
from tests.predict.test_predict_job import NETWORKS, labels, maps, predict
from tests.scenes.made import town, write
from tests.sources.exif_made import STREET

Pixels = NDArray[np.uint8]


def noise(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def disc(height: int, width: int, radius: int) -> NDArray[np.bool_]:
    rows, cols = np.ogrid[:height, :width]
    inside: NDArray[np.bool_] = (rows - height // 2) ** 2 + (cols - width // 2) ** 2 <= radius**2
    return inside


@pytest.mark.parametrize(("radius", "margin"), [(1, 0.2), (12, 0.0), (60, 0.2), (60, 0.5)])
def test_nothing_but_the_region_and_its_margin_changes(radius: int, margin: float) -> None:
    pixels, hide = noise(1, 300, 320), disc(300, 320, radius)
    copy, regions = hidden(pixels, hide, margin)
    assert regions == 1
    grown = max(2.0, np.ceil(margin * (2 * radius + 1)))
    changed = (copy != pixels).any(2)
    assert not changed[~disc(300, 320, int(radius + grown) + 2)].any()
    assert changed[disc(300, 320, int(radius + grown) - 2)].mean() > 0.98


def test_two_regions_with_the_same_means_become_the_same() -> None:
    """So whatever there was below the size of a cell is gone: faces, letters."""
    hide = np.zeros((400, 400), bool)
    hide[120:280, 120:280] = True
    grown = 32  # 0.2 of 160; the box is 224 pixels wide, its cells 56
    cell = (160 + 2 * grown) // CELLS
    first, second = (noise(seed, 400, 400).astype(np.float64) / 2 + 60 for seed in (1, 2))
    box = np.s_[120 - grown : 280 + grown, 120 - grown : 280 + grown]
    for each in (first, second):
        cells = each[box].reshape(CELLS, cell, CELLS, cell, 3)
        cells += 127 - cells.mean((1, 3), keepdims=True)
    second[~hide] = first[~hide]
    cells = second[box].reshape(CELLS, cell, CELLS, cell, 3)
    cells += 127 - cells.mean((1, 3), keepdims=True)
    copies = [
        hidden(each.clip(0, 255).astype(np.uint8), hide, 0.2)[0].astype(int) for each in (first, second)
    ]
    assert np.abs(first - second)[hide].mean() > 20
    assert np.abs(copies[0] - copies[1])[hide].max() <= 2
    assert np.ptp(copies[0][hide], axis=0).max() <= 4


def test_text_is_gone_at_every_size() -> None:
    """Stripes of a letter's width: their contrast is lost, however large the region."""
    for side in (LEAST * 2, 40, 160, 640):
        pixels = np.zeros((side * 2, side * 2, 3), np.uint8)
        stripe = max(1, side // 20)
        pixels[:, (np.arange(side * 2) // stripe) % 2 == 0] = 255
        hide = np.zeros(pixels.shape[:2], bool)
        hide[side // 2 : -side // 2, side // 2 : -side // 2] = True
        copy, _ = hidden(pixels, hide, 0.2)
        assert np.ptp(copy[hide]) < 60, side


def test_regions_at_the_border_and_next_to_each_other() -> None:
    pixels, hide = noise(3, 60, 80), np.zeros((60, 80), bool)
    hide[:5, :5] = hide[:6, 7:12] = hide[-1:, -1:] = True
    copy, regions = hidden(pixels, hide, 1.0)
    assert regions == 3
    assert (copy != pixels).any(2)[hide].mean() > 0.9
    untouched, regions = hidden(pixels, np.zeros_like(hide), 1.0)
    assert regions == 0
    assert np.array_equal(untouched, pixels)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jpg", "jpg"),
        ("a.JPEG", "jpg"),
        ("a.heic", "jpg"),
        ("a.webp", "jpg"),
        ("a.PNG", "png"),
        ("a", "jpg"),
    ],
)
def test_the_format_is_of_the_images_family(name: str, suffix: str) -> None:
    assert copy_name("0" * 32, name, 10, 10) == f"blurred/{'0' * 32}.{suffix}"
    data = encoded_copy(noise(0, 10, 10), f"x.{suffix}")
    assert Image.open(io.BytesIO(data)).format == {"jpg": "JPEG", "png": "PNG"}[suffix]


def test_sides_that_jpeg_does_not_have() -> None:
    assert copy_name("0", "a.jpg", 10, 70_000).endswith(".png")


# jobs


BLURRED = list(NAMES.values())[1]


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGRAY_PRECISION", "fp32")
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG, a JPEG on its side with GPS and a thumbnail, a large one, a scene, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos") / "in"
    folder.mkdir()
    shutil.copyfile(REAL[0], folder / "small.png")
    block = Image.Exif()
    block.load(STREET.tobytes())
    block[0x0112] = 6
    coarse = np.kron(noise(1, 30, 40), np.ones((10, 10, 1), np.uint8))
    Image.fromarray(coarse).save(folder / "street.jpg", exif=block.tobytes(), quality=95, comment=b"at home")
    Image.fromarray(np.kron(noise(2, 40, 50), np.ones((16, 16, 1), np.uint8))).save(folder / "large.png")
    write(folder / "scene.tif", town(300, 300))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.usefixtures("ray_session")
def test_a_job(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    cut = ("--tile-above", "300000", "--tile", "256", "--overlap", "64")
    given = (photos, "--output", output, "--weights", NETWORKS + "local", *cut, "--blur", BLURRED)
    assert predict(*given) == 3
    rows = {Path(row["uri"]).name: row for row in tables(output)[0]}
    assert {name: row["error_type"] for name, row in rows.items() if row["error_type"]} == {
        "broken.png": "corrupt",
        "scene.tif": "unsupported",
    }
    assert "--blur copies images, not scenes" in rows["scene.tif"]["error"]
    copies = maps(output, "blurred")
    assert sorted(copies) == sorted(
        f"{rows[name]['image_id']}{Path(name).suffix}" for name in ("small.png", "street.jpg", "large.png")
    )
    for name in ("small.png", "street.jpg", "large.png"):
        row = rows[name]
        data = copies[f"{row['image_id']}{Path(name).suffix}"]
        copy = Image.open(io.BytesIO(data))
        assert not copy.getexif()
        assert not {"exif", "comment", "xmp", "icc_profile"} & set(copy.info)
        assert b"Exif" not in data
        classes = labels(output / f"labels/{row['image_id']}.png")
        assert copy.size == classes.shape[::-1]
        hide = classes == list(NAMES.values()).index(BLURRED)
        _, regions = hidden(np.zeros((*hide.shape, 3), np.uint8), hide, 0.0)
        assert row["blurred"] == regions > 0
        with Image.open(photos / name) as image:
            pixels = np.asarray(
                image.convert("RGB").rotate(-90, expand=True) if "jpg" in name else image.convert("RGB")
            )
        expected, _ = hidden(pixels, hide, 0.2)
        difference = np.abs(np.asarray(copy).astype(int) - expected)
        assert difference.max() == 0 if name.endswith("png") else difference.mean() < 3
    assert rows["large.png"]["tiles"] is None
    assert predict(*given, "--max-rejects", "1") == 0
    assert maps(output, "blurred") == copies
    assert predict(*given[:-2]) == 2  # another run


@pytest.mark.usefixtures("ray_session")
def test_the_map_of_a_large_image_is_that_of_a_run_without(photos: Path, tmp_path: Path) -> None:
    cut = ("--tile-above", "300000", "--tile", "256", "--overlap", "64", "--include", "large.png")
    weights = ("--weights", NETWORKS + "local")
    found = []
    for number, more in enumerate(((), ("--blur", BLURRED, "--probabilities"))):
        assert predict(photos, "--output", tmp_path / str(number), *weights, *cut, *more) == 0
        found.append(next(iter(maps(tmp_path / str(number)).values())))
    assert found[0] == found[1]


@pytest.mark.usefixtures("ray_session")
def test_a_replaced_image_takes_its_copy_along(photos: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copyfile(photos / "small.png", folder / "a.png")
    given = (folder, "--output", output, "--weights", NETWORKS + "local", "--blur", BLURRED)
    assert predict(*given) == 0
    before = set(maps(output, "blurred"))
    shutil.copyfile(REAL[1], folder / "a.png")
    assert predict(*given) == 0
    assert len(maps(output, "blurred")) == 1
    assert set(maps(output, "blurred")).isdisjoint(before)


@pytest.mark.usefixtures("ray_session")
def test_a_failing_model_writes_no_copy(photos: Path, tmp_path: Path) -> None:
    given = (photos, "--output", tmp_path / "out", "--weights", NETWORKS + "nan", "--include", "small.png")
    assert main(["predict", *FEW, *map(str, given), "--blur", BLURRED]) == 3
    assert not (tmp_path / "out/blurred").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_class_that_the_model_does_not_have(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (photos, "--output", tmp_path / "out", "--weights", NETWORKS + "local", "--blur", "face")
    assert predict(*given) == 2
    assert "has no class face; it has: " + ", ".join(NAMES.values()) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
