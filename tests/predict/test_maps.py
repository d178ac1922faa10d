"""Files of label maps, read back by Pillow and rasterio."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rio_cogeo.cogeo import cog_validate

from segray.palette import palette
from segray.predict.blend import Pieces, labels_of, within
from segray.predict.maps import Maps, growing, plain_tiff, png
from segray.predict.windows import PackedWindow, packed_window
from segray.scenes.scene import Scene
from segray.tile_overlap import Grid, Window

NAMES = ("background", "road", "house")


def test_a_png_holds_classes_and_shows_colours() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (20, 30), np.uint8)
    labels[0, 0] = 255
    image = Image.open(io.BytesIO(png(labels, 3)))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), labels)
    assert np.array_equal(np.asarray(image.convert("RGB")), palette(3)[labels])


def test_probabilities_of_a_picture() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    with rasterio.MemoryFile(plain_tiff(values, NAMES)) as memory, memory.open() as file:
        assert np.array_equal(file.read(), values)
        assert file.descriptions == NAMES
        assert file.scales == (1 / 255,) * 3


@pytest.fixture
def scene() -> Scene:
    with rasterio.open(Path(__file__).parents[1] / "data/scenes/kampala.tif") as file:
        crs, transform = file.crs.to_wkt(), tuple(file.transform)[:6]
    return Scene(1300, 1100, 512, 128, (1, 2, 3), None, crs, transform)


@pytest.fixture
def values() -> NDArray[np.uint16]:
    """Some pixels have two classes that differ in less than a byte tells."""
    coarse = np.random.default_rng(0).integers(1, 65_000, (3, 13, 11), np.uint16)
    coarse[1, 3] = coarse[0, 3] + 1
    values = np.kron(coarse, np.ones((1, 100, 100), np.uint16))
    values[:, 200:300, 500:700] = 0
    return values


def written(maps: Maps, values: NDArray[np.uint16], side: int = 600) -> None:
    _, height, width = values.shape
    maps.write(
        (Window(row, min(row + side, height), col, min(col + side, width)),
         values[:, row : row + side, col : col + side])
        for row in range(0, height, side)
        for col in range(0, width, side)
    )  # fmt: skip


def test_scenes_become_cloud_optimised(scene: Scene, values: NDArray[np.uint16]) -> None:
    found = {}
    with growing(scene, NAMES, probabilities=True) as maps:
        written(maps, values)
        for kind, path in maps.cogs():
            valid, errors, warnings = cog_validate(path, strict=True)
            assert valid, (errors, warnings)
            with rasterio.open(path) as file:
                assert file.crs.to_wkt() == scene.crs
                assert tuple(file.transform)[:6] == scene.transform
                assert file.overviews(1) == [2, 4]
                found[kind] = file.read()
                if kind == "labels":
                    assert file.nodata == 255
                    colours = file.colormap(1)
                    assert [colours[k][:3] for k in range(3)] == [tuple(each) for each in palette(3)[:3]]
                    assert file.tags()["classes"] == "background, road, house"
                else:
                    assert file.descriptions == NAMES
        folder = maps.plain("labels").parent
    assert not folder.exists()
    labels = values.argmax(0)
    labels[200:300, 500:700] = 255
    assert np.array_equal(found["labels"][0], labels)
    assert np.array_equal(found["probabilities"], np.rint(values / 257))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_windows_come_back(holes: bool, labels: bool, older: bool, values: NDArray[np.uint16]) -> None:
    """older: written by a version that compressed a window as a whole, and found by this one."""
    grid = Grid(values.shape[1], values.shape[2], 256, 40)
    number = 5
    window, pieces = grid.window(number), Pieces(grid, 200).of_window(number)
    part = values[:, window.row_start : window.row_stop, window.col_start : window.col_stop]
    nodata = (part == 0).all(0) if holes else None
    data = packed_window(part, nodata, window, pieces, labels=labels)
    if older:
        raw = io.BytesIO()
        np.save(raw, part)
        if nodata is not None:
            np.save(raw, np.packbits(nodata))
        with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as stream:
            stream.write(raw.getbuffer())
        data = sink.getvalue().to_pybytes()
    assert len(data) < part.size / 4
    packed = PackedWindow(data, window, pieces)
    for piece in pieces:
        place = within(piece.area, window)
        back, missing = packed.part(piece.area)
        if back.ndim == 2:
            assert labels
            assert not older
            assert len(piece.windows) == 1
            assert np.array_equal(back, labels_of(part[:, *place]))
        else:
            assert older or not labels or len(piece.windows) > 1
            assert np.array_equal(back, part[:, *place])
            if nodata is None or missing is None:
                assert missing is nodata
            else:
                assert np.array_equal(missing, nodata[place])
