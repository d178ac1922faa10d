"""What the model sees of a GeoTIFF, against rasterio's own reading; and how often its bytes are asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image
from pyproj import CRS
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin

from segray.errors import ItemError
from segray.scenes import reading as reading_module
from segray.scenes.reading import SceneReader
from segray.scenes.scene import Scene, Tiling, patches, scene_from
from segray.sources.file_headers import may_be_scene

HERE = from_origin(500_000, 40_000, 0.5, 0.5)
SMALL = Tiling(128, 32)


class Reading:
    """A file in memory, and what was asked of it."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.calls: list[list[tuple[int, int]]] = []
        self.announced: list[list[tuple[int, int]]] = []

    def fetch(
        self, ranges: Sequence[tuple[int, int]], ahead: Sequence[Sequence[tuple[int, int]]] = ()
    ) -> list[bytes]:
        self.calls.append(list(ranges))
        self.announced.append([each for group in ahead for each in group])
        return [self.data[offset : offset + size] for offset, size in ranges]

    def open(self) -> SceneReader:
        return SceneReader(len(self.data), self.fetch)


def write(path: Path, values: NDArray[Any], **more: Any) -> Path:
    """values: (bands, height, width)."""
    bands, height, width = values.shape
    options = {
        "crs": "EPSG:32636",
        "transform": HERE,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        **more,
    }
    mask, kinds = options.pop("mask", None), options.pop("colours", None)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=values.dtype, **options
    ) as file:
        if kinds is not None:
            file.colorinterp = kinds
        file.write(values)
        if mask is not None:
            file.write_mask(mask)
    return path


def seen(path: Path, tiling: Tiling = SMALL) -> tuple[Scene, NDArray[np.uint8], list[int]]:
    """(scene, its pixels put together from its tiles, numbers of the tiles without data)."""
    with Reading(path).open() as reader:
        scene = reader.describe(tiling)
        assert scene is not None
        assert scene_from(scene.to_json()) == scene
        pixels, empty = np.zeros((scene.height, scene.width, 3), np.uint8), []
        for number, window in enumerate(scene.grid):
            found = reader.window(scene, window)
            part = None if found is None else found[0]
            if part is None:
                empty.append(number)
            else:
                place = np.s_[window.row_start : window.row_stop, window.col_start : window.col_stop]
                pixels[place] = part
        return scene, pixels, empty


def noise(bands: int, kind: str = "uint8", height: int = 300, width: int = 210) -> NDArray[Any]:
    random = np.random.default_rng(3)
    if kind.startswith("float"):
        return random.normal(100, 40, (bands, height, width)).astype(kind)
    top = {"uint8": 256, "uint16": 4000, "int16": 4000, "uint32": 4000}[kind]
    return random.integers(1, top, (bands, height, width)).astype(kind)


def test_bytes_stay_as_they_are(tmp_path: Path) -> None:
    values = noise(3)
    scene, pixels, empty = seen(write(tmp_path / "a.tif", values))
    assert (scene.bands, scene.scaling, empty) == ((1, 2, 3), None, [])
    assert scene.transform == tuple(HERE)[:6]
    assert np.array_equal(pixels, values.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "layout", [{"tiled": False, "blockxsize": None}, {"interleave": "band"}, {"BIGTIFF": "YES"}]
)
def test_layouts_of_the_file(layout: dict[str, Any], tmp_path: Path) -> None:
    values = noise(3)
    path = write(tmp_path / "a.tif", values, compress="deflate", **layout)
    assert np.array_equal(seen(path)[1], values.transpose(1, 2, 0))


def test_bands_that_are_asked_for(tmp_path: Path) -> None:
    values = noise(4)
    path = write(tmp_path / "a.tif", values)
    assert np.array_equal(seen(path, Tiling(128, 32, (4, 2, 1)))[1], values[[3, 1, 0]].transpose(1, 2, 0))
    grey = seen(path, Tiling(128, 32, (3,)))[1]
    assert np.array_equal(grey, np.repeat(values[2][..., None], 3, axis=2))
    with pytest.raises(ItemError, match="--bands has band 5, the file has 4"):
        seen(path, Tiling(128, 32, (1, 2, 5)))


def test_named_colours_and_alpha(tmp_path: Path) -> None:
    values = noise(5)
    values[4] = 255
    values[4, :, 100:] = 0
    kinds = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.alpha]
    scene, pixels, empty = seen(write(tmp_path / "a.tif", values, colours=kinds))
    assert scene.bands == (4, 3, 2)
    assert np.array_equal(pixels[:, :100], values[[3, 2, 1], :, :100].transpose(1, 2, 0))
    assert not pixels[:, 100:].any()
    assert empty == []


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "float32", "float64"])
def test_other_numbers_by_percentiles_of_the_scene(kind: str, tmp_path: Path) -> None:
    values = noise(3, kind)
    scene, pixels, _ = seen(write(tmp_path / "a.tif", values))
    bounds = np.percentile(values.reshape(3, -1).astype(float), (2, 98), axis=1).T
    assert np.allclose(np.array(scene.scaling), bounds)
    low, high = (side[:, None, None] for side in bounds.T)
    wanted = (values.astype(float) - low) / (high - low) * 255
    assert np.abs(pixels.transpose(2, 0, 1) - wanted.clip(0, 255)).max() <= 0.51


def test_bounds_that_are_given_count_in_the_files_own_unit(tmp_path: Path) -> None:
    values = noise(1, "int16")
    path = write(tmp_path / "a.tif", values)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.1,), (-50.0,)
    scene, pixels, _ = seen(path, Tiling(128, 32, scaling="0,200"))
    assert scene.scaling == ((500.0, 2500.0),)
    wanted = ((values[0] * 0.1 - 50) / 200 * 255).clip(0, 255)
    assert np.abs(pixels[..., 0] - wanted).max() <= 0.51


def test_ranges_of_the_model_file(tmp_path: Path) -> None:
    ranges = ((100.0, 1100.0), (0.0, 4000.0), (-500.0, 500.0))
    values = noise(3, "uint16")
    path = write(tmp_path / "a.tif", values)
    scene, pixels, _ = seen(path, Tiling(128, 32, ranges=ranges))
    assert scene.scaling == ranges
    low, high = (side[:, None, None] for side in np.array(ranges).T)
    wanted = ((values - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(pixels.transpose(2, 0, 1) - wanted).max() <= 0.51
    bytes_stay, _, _ = seen(write(tmp_path / "b.tif", noise(3)), Tiling(128, 32, ranges=ranges))
    assert bytes_stay.scaling is None
    asked, _, _ = seen(path, Tiling(128, 32, scaling="0,200", ranges=ranges))
    assert asked.scaling == ((0.0, 200.0),) * 3
    with pytest.raises(ItemError, match="ranges of 3 bands, but 1 are read"):
        seen(path, Tiling(128, 32, bands=(2,), ranges=ranges))


@pytest.mark.parametrize("how", ["nodata", "nan", "mask"])
def test_what_is_no_data_is_black_and_in_no_percentile(how: str, tmp_path: Path) -> None:
    values = noise(3, "float32")
    hole = np.zeros(values.shape[1:], bool)
    hole[:130, :] = True
    hole[200:220, 50:60] = True
    more: dict[str, Any] = {}
    if how == "mask":
        values[:, hole] = 9e6
        more["mask"] = ~hole
    else:
        values[:, hole] = np.nan if how == "nan" else -9999
        more["nodata"] = None if how == "nan" else -9999
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "a.tif", values, **more)
    scene, pixels, empty = seen(path)
    assert np.allclose(
        np.array(scene.scaling), np.percentile(values[:, ~hole].astype(float), (2, 98), axis=1).T
    )
    assert not pixels[hole].any()
    assert empty == [0, 1]


def smooth(bands: int, kind: str = "uint8", low: float = 20, high: float = 230) -> NDArray[Any]:
    """(bands, 200, 260), each another slope from low to high."""
    rows, cols = np.mgrid[0:200, 0:260]
    slopes = [(rows * number + cols) % 200 / 199 for number in range(1, bands + 1)]
    return (low + np.stack(slopes) * (high - low)).astype(kind)


NAMED = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_near_infrared_that_is_marked_as_alpha_hides_nothing(kind: str, tmp_path: Path) -> None:
    """As GDAL writes four bands, and public NAIP has it; water is black there."""
    values = smooth(4, kind)
    values[3, 40:90, 30:120] = 0
    path = write(tmp_path / "a.tif", values, colours=NAMED)
    scene, pixels, _ = seen(path, replace(SMALL, scaling="0,255"))
    assert np.array_equal(pixels, values[:3].transpose(1, 2, 0))
    assert scene.bands == (1, 2, 3)
    assert "band 4 is marked as alpha but has values" in (scene.told or "")
    scene, pixels, _ = seen(path, replace(SMALL, bands=(4, 1, 2), scaling="0,255"))
    assert np.array_equal(pixels, values[[3, 0, 1]].transpose(1, 2, 0))
    assert scene.told is None


def test_alpha_with_soft_edges_is_a_mask(tmp_path: Path) -> None:
    values = smooth(4)
    values[3] = 255
    values[3, :, :60] = 0
    values[3, :, 60:70] = 100
    scene, pixels, _ = seen(write(tmp_path / "a.tif", values, colours=NAMED))
    assert not pixels[:, :60].any()
    assert np.array_equal(pixels[:, 60:], values[:3, :, 60:].transpose(1, 2, 0))
    assert (scene.masked, scene.told) == (True, None)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_grey_that_is_white_where_it_is_zero(kind: str, tmp_path: Path) -> None:
    """As Pillow shows it: other numbers by their percentiles, turned around."""
    values = smooth(1, kind)
    grey = write(tmp_path / "a.tif", values)
    white = write(tmp_path / "b.tif", values, photometric="MINISWHITE")
    _, expected, _ = seen(grey)
    _, pixels, _ = seen(white)
    assert np.abs(pixels.astype(int) - (255 - expected.astype(int))).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_fewer_bits_reaches_white(bits: int, tmp_path: Path) -> None:
    most = 2**bits - 1
    values = (smooth(1).astype(int) * (most + 1) // 256).astype(np.uint8)
    _, pixels, _ = seen(write(tmp_path / "a.tif", values, nbits=bits))
    assert np.array_equal(pixels[..., 0], np.round(values[0] * (255 / most)))


@pytest.mark.parametrize(
    ("kind", "low"), [("float64", 1e9), ("uint32", 3e9), ("int32", 2e9), ("int64", 2.0**52), ("float32", 4e6)]
)
def test_large_numbers_with_a_small_range(kind: str, low: float, tmp_path: Path) -> None:
    values = smooth(1, "float64", low, low + 10).astype(kind)
    _, pixels, _ = seen(write(tmp_path / "a.tif", values))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert len(np.unique(pixels)) >= 9


def test_a_palette_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.where(smooth(1, "uint16") > 120, 300, 0).astype(np.uint16)
    path = tmp_path / "a.tif"
    write(path, values, photometric="PALETTE")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30), 300: (200, 100, 50)})
    _, pixels, _ = seen(path)
    assert {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()} == {(10, 20, 30), (200, 100, 50)}


def test_palette(tmp_path: Path) -> None:
    values = noise(1)
    path = tmp_path / "a.tif"
    colours = {value: (value, 255 - value, value // 2, 255) for value in range(256)}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=300,
        width=210,
        count=1,
        dtype="uint8",
        crs="EPSG:4326",
        transform=HERE,
    ) as file:
        file.write(values)
        file.write_colormap(1, colours)
    pixels = seen(path)[1]
    wanted = np.stack([values[0], 255 - values[0], values[0] // 2], axis=2)
    assert np.array_equal(pixels, wanted)


@pytest.mark.parametrize("transform", [Affine.rotation(30) @ Affine.scale(0.5), Affine(0.5, 0, 7, 0, 0.5, 9)])
def test_rotated_and_south_up(transform: Affine, tmp_path: Path) -> None:
    values = noise(3)
    scene, pixels, _ = seen(write(tmp_path / "a.tif", values, transform=transform))
    assert np.allclose(np.array(scene.transform), tuple(transform)[:6])
    assert np.array_equal(pixels, values.transpose(1, 2, 0))


def test_places_and_no_places(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.tif", noise(3), crs=None, transform=Affine.identity())
    with Reading(plain).open() as reader:
        assert reader.describe(SMALL) is None
        assert reader.describe(Tiling(128, 32, picture_pixels=1000)) is not None
    points = [
        GroundControlPoint(0, 0, 30, 1),
        GroundControlPoint(0, 200, 31, 1),
        GroundControlPoint(300, 0, 30, 0),
    ]
    loose = write(tmp_path / "loose.tif", noise(3), crs=None, transform=Affine.identity())
    with rasterio.open(loose, "r+") as file:
        file.gcps = points, "EPSG:4326"
    scene, _, _ = seen(loose)
    assert (scene.crs, scene.transform) == (None, None)
    assert "control points" in (scene.note or "")


def test_rational_polynomials(tmp_path: Path) -> None:
    """As raw satellite pictures have them."""
    raw = write(tmp_path / "raw.tif", noise(4, "uint16"), crs=None, transform=Affine.identity())
    line = [0.0, 0.0, 0.0, 1.0, *16 * [0.0]]
    with rasterio.open(raw, "r+") as file:
        file.rpcs = RPC(10.0, 5.0, 0.5, 0.1, line, line, 150.0, 150.0, 30.0, 0.1, line, line, 105.0, 105.0)
    assert may_be_scene(memoryview(raw.read_bytes()))
    scene, _, _ = seen(raw)
    assert (scene.crs, scene.transform) == (None, None)
    assert "gdalwarp -rpc" in (scene.note or "")


def jpeg_2000(path: Path, values: NDArray[Any], **more: Any) -> Path:
    """Without loss, in tiles."""
    plain = write(path.with_suffix(".plain.tif"), values, **more)
    rasterio.shutil.copy(
        plain, path, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", BLOCKXSIZE=64, BLOCKYSIZE=64
    )
    plain.unlink()
    return path


@pytest.mark.parametrize(("bands", "kind"), [(3, "uint8"), (1, "uint16"), (4, "uint16"), (1, "uint8")])
def test_jpeg_2000_with_a_place_is_a_scene(bands: int, kind: str, tmp_path: Path) -> None:
    """Sentinel-2's own format: what the same pixels in a GeoTIFF are."""
    values = noise(bands, kind)
    path = jpeg_2000(tmp_path / "scene.jp2", values)
    assert may_be_scene(memoryview(path.read_bytes()))
    scene, pixels, empty = seen(path)
    expected, as_tiff, _ = seen(write(tmp_path / "scene.tif", values, photometric="MINISBLACK"))
    assert (scene.height, scene.width, scene.bands) == (300, 210, expected.bands)
    assert scene.transform == expected.transform
    assert CRS.from_user_input(scene.crs) == CRS.from_user_input(expected.crs)
    assert np.array_equal(pixels, as_tiff)
    assert empty == []


def test_jpeg_2000_without_a_place_is_a_picture(tmp_path: Path) -> None:
    path = jpeg_2000(tmp_path / "plain.jp2", noise(3), crs=None, transform=Affine.identity())
    with Reading(path).open() as reader:
        assert reader.describe(SMALL) is None
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(path)  # without the boxes that GDAL writes anyway
    assert not may_be_scene(memoryview(path.read_bytes()))


@pytest.mark.parametrize("cut", [100, 3000])
def test_jpeg_2000_that_is_cut_off(cut: int, tmp_path: Path) -> None:
    path = jpeg_2000(tmp_path / "scene.jp2", noise(3))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ItemError, match="GDAL cannot"):
        seen(path)


@pytest.mark.parametrize("overviews", [[], [2, 4]])
def test_a_coarser_resolution(overviews: list[int], tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(400), np.arange(480)).astype(np.uint16)[None] * 20
    path = write(tmp_path / "a.tif", smooth)
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews(overviews, rasterio.enums.Resampling.average)
    scene, pixels, _ = seen(path, Tiling(64, 16, resolution=2.0))
    assert abs(scene.height - 100) <= 1
    assert abs(scene.width - 120) <= 1
    a, b, c, d, e, f = scene.transform or (0.0,) * 6
    assert (c, f, b, d) == (500_000, 40_000, 0, 0)
    assert np.allclose((a, -e), 2, rtol=0.02)
    ramp = np.add.outer(np.arange(scene.height), np.arange(scene.width))[..., None]
    slope = np.polyfit(ramp.ravel(), pixels[..., 0].ravel().astype(float), 1)
    assert np.abs(np.polyval(slope, ramp) - pixels).mean() < 6
    finer, _, _ = seen(path, Tiling(64, 16, resolution=0.1))
    assert (finer.height, finer.width) == (400, 480)


def test_more_pixels_than_run_lengths_count(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=70_000, width=62_000, count=1, dtype="uint8", crs="EPSG:32636",
        transform=HERE, tiled=True, blockxsize=1024, blockysize=1024, SPARSE_OK=True,
    ):  # fmt: skip
        pass
    with Reading(path).open() as reader:
        with pytest.raises(ItemError) as caught:
            reader.describe(Tiling())
        assert caught.value.error_type == "too_large"
        coarser = reader.describe(Tiling(resolution=1.0))
        assert coarser is not None
        assert abs(coarser.height - 35_000) < 20


def test_each_block_is_asked_for_about_once(tmp_path: Path) -> None:
    values = noise(3, height=1500, width=1500)
    reading = Reading(write(tmp_path / "a.tif", values, compress="deflate"))
    with reading.open() as reader:
        scene = reader.describe(Tiling(256, 32))
        assert scene is not None
        reading.calls.clear()
        for tiles in patches(scene.grid, None, 3):
            for tile in tiles:
                reader.window(scene, scene.grid.window(tile))
    blocks = Counter(each for call in reading.calls for each in call)
    assert len(blocks) >= 24**2
    assert sum(blocks.values()) <= len(blocks) + 8  # the directory's pieces
    assert len(reading.calls) <= len(scene.grid) + 8


@pytest.mark.parametrize("overviews", [[], [2], [2, 4, 8]])
def test_percentiles_of_a_large_scene_ask_for_little_of_it(
    overviews: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overview of half its size is no small one."""
    monkeypatch.setattr(reading_module, "SAMPLED", 64)
    monkeypatch.setattr(reading_module, "BLOCKS", 4)
    path = write(tmp_path / "scene.tif", noise(1, "uint16", 1000, 1000))
    with rasterio.open(path, "r+") as file:
        file.build_overviews(overviews, Resampling.average)
    reading = Reading(path)
    with reading.open() as reader:
        scene = reader.describe(SMALL)
    assert scene is not None
    asked = sum(size for ranges in reading.calls for _, size in ranges)
    assert asked < len(reading.data) / 5
    assert scene.scaling is not None
    assert 0 < scene.scaling[0][0] < scene.scaling[0][1] < 4000


def read_one(reading: Reading) -> None:
    with reading.open() as reader:
        scene = reader.describe(SMALL)
        assert scene is not None
        reader.window(scene, scene.grid.window(3))


def test_what_comes_next_is_announced(tmp_path: Path) -> None:
    """Blocks of the windows that follow, none that is here already."""
    reading = Reading(write(tmp_path / "a.tif", noise(3, height=700, width=700)))
    with reading.open() as reader:
        scene = reader.describe(SMALL)
        assert scene is not None
        windows = list(scene.grid)
        for place, window in enumerate(windows):
            before = len(reading.calls)
            reader.window(scene, window, windows[place + 1 : place + 3])
            for call in reading.calls[before:] if place else ():
                known = [each for announced in reading.announced[:before] for each in announced]
                assert set(call) <= set(known)
    here: set[tuple[int, int]] = set()
    for call, announced in zip(reading.calls, reading.announced, strict=True):
        here |= set(call)
        assert not here & set(announced)


@pytest.mark.parametrize("cut", [100, 5000])
def test_a_file_that_is_cut_off(cut: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(3), compress="deflate")
    reading = Reading(path)
    reading.data = reading.data[:cut]
    with pytest.raises(ItemError) as caught:
        read_one(reading)
    assert caught.value.error_type == "corrupt"
