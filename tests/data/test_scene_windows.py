"""Scenes with footprints: what is drawn in their windows, how blocks are dealt, and a training on them."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from numpy.typing import NDArray

from segray.data.footprints import Footprints
from segray.data.pairs import Pair
from segray.data.scene_windows import Windows, list_windows
from segray.data.window_reader import ClassWindows
from segray.errors import ItemError, SettingsError
from segray.train.settings import TrainSettings
from segray.train.tasks.scenes import window_settings
from tests.train import grounds
from tests.train.squares import lines, train

NAMES = ("background", "foreground")
SIDE = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scene.tif and footprints.geojson; not to be changed."""
    folder = tmp_path_factory.mktemp("place")
    shapes = grounds.rectangles()
    grounds.write_scene(folder / "scene.tif", shapes)
    grounds.write_geojson(folder / "footprints.geojson", shapes)
    return folder


def settings(data: Path, footprints: Path, **more: Any) -> TrainSettings:
    usual: dict[str, Any] = {"size": SIDE // 2, "block": 2, "val_share": 0.3, "output": "nowhere"}
    return TrainSettings(data=str(data), footprints=str(footprints), **{**usual, **more})


def listed(data: Path, footprints: Path, **more: Any) -> Windows:
    found = settings(data, footprints, **more)
    return list_windows(window_settings(found), found.classes or NAMES)


def reader(windows: Windows) -> ClassWindows:
    return ClassWindows(windows.scenes, Footprints(windows.footprints), settings(Path(), Path()).storage)


def corner(pair: Pair) -> tuple[int, int]:
    col, row, _, _ = map(int, pair.image.uri.rpartition("#xywh=")[2].split(","))
    return row, col


def joined(windows: Windows) -> NDArray[np.uint8]:
    found = []
    for pair, example in zip(windows.pairs, reader(windows).read(windows.pairs), strict=True):
        assert not isinstance(example, ItemError), example
        assert example.pixels.shape == (SIDE, SIDE, 3)
        found.append((corner(pair), example.classes))
    return grounds.whole(found)


def expected(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    found = classes.copy()
    for part in (grounds.EMPTY, grounds.HALF_EMPTY):
        found[part] = 255
    return found


def test_windows_joined_are_the_whole_scene_drawn_at_once(place: Path) -> None:
    windows = listed(place / "scene.tif", place / "footprints.geojson")
    assert len(windows.pairs) == 5 * 7
    assert len({pair.item for pair in windows.pairs}) == 35
    truth = expected(grounds.truth(grounds.rectangles()))
    assert {*np.unique(truth)} == {0, 1, 255}
    np.testing.assert_array_equal(joined(windows), truth)


@pytest.mark.parametrize(("name", "crs"), [("f.parquet", "EPSG:4326"), ("f.gpkg", "EPSG:3857")])
def test_geoparquet_and_geopackage_say_the_same_as_geojson(
    place: Path, tmp_path: Path, name: str, crs: str
) -> None:
    frame = geopandas.read_file(place / "footprints.geojson").to_crs(crs)
    frame.to_parquet(tmp_path / name) if name.endswith("parquet") else frame.to_file(tmp_path / name)
    windows = listed(place / "scene.tif", tmp_path / name)
    np.testing.assert_array_equal(joined(windows), expected(grounds.truth(grounds.rectangles())))


def test_an_attribute_names_the_class(place: Path, tmp_path: Path) -> None:
    shapes, names = grounds.rectangles(), ["ground", "house", "road"]
    classes = [1 + number % 2 for number in range(len(shapes))]
    path = grounds.write_geojson(tmp_path / "f.geojson", shapes, [names[each] for each in classes])
    windows = listed(place / "scene.tif", path, class_column="kind", classes=names)
    np.testing.assert_array_equal(joined(windows), expected(grounds.truth(shapes, classes)))
    with pytest.raises(SettingsError, match=r"not among ground, house: road \(\d+\)"):
        listed(place / "scene.tif", path, class_column="kind", classes=names[:2])
    with pytest.raises(SettingsError, match="no column sort; there are kind"):
        listed(place / "scene.tif", path, class_column="sort", classes=names)


def test_no_pixel_is_in_windows_of_two_splits(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.tif").write_bytes((place / "scene.tif").read_bytes())
    seeds = [listed(place / "scene.tif", place / "footprints.geojson", split_seed=seed) for seed in range(8)]
    several = 0
    for windows in seeds:
        owner: NDArray[np.object_] = np.full((grounds.HEIGHT, grounds.WIDTH), None)
        for pair in windows.pairs:
            row, col = corner(pair)
            part = owner[row : row + SIDE, col : col + SIDE]
            assert all(each in (None, pair.split) for each in part.ravel())
            part[:] = pair.split
        several += len({pair.split for pair in windows.pairs}) > 1
    assert several > 4
    assert len({tuple(pair.split for pair in windows.pairs) for windows in seeds}) > 4
    moved = listed(
        tmp_path, place / "footprints.geojson", split_seed=3
    )  # another name and time, same content
    assert [pair.split for pair in moved.pairs] == [pair.split for pair in seeds[3].pairs]


def test_scenes_below_folders_of_splits_stay_there(place: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "scene.tif").write_bytes((place / "scene.tif").read_bytes())
    (tmp_path / "notes.txt").write_text("")
    windows = listed(tmp_path, place / "footprints.geojson")
    assert {(pair.name.partition("/")[0], pair.split) for pair in windows.pairs} == {
        ("train", "train"),
        ("val", "val"),
    }
    assert windows.ignored == 1


def test_a_footprint_that_cannot_be_read_costs_itself(place: Path, tmp_path: Path) -> None:
    """And is named; one without a geometry and an empty one are no fault."""
    content = json.loads((place / "footprints.geojson").read_text())
    ring = [[33.0, 0.3], [33.1, 0.3], [33.1, 0.4], [33.0, 0.4]]
    for number, coordinates in {
        2: [], 3: None, 4: [ring], 7: [ring[:2]], 9: [[[float("nan"), 0.3], *ring[1:], ring[0]]]
    }.items():  # fmt: skip
        geometry = {"type": "Polygon", "coordinates": coordinates} if coordinates is not None else None
        feature = {"type": "Feature", "properties": {}, "geometry": geometry}
        content["features"].insert(number - 1, feature)
    (tmp_path / "some.geojson").write_text(json.dumps(content))
    whole = listed(place / "scene.tif", place / "footprints.geojson")
    found = listed(place / "scene.tif", tmp_path / "some.geojson")
    assert "(3 that cannot be read left out, the first is number 4)" in found.summary
    assert found.footprints.equals(whole.footprints)


def test_a_geometry_of_geoparquet_that_is_cut_off_costs_itself(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    geopandas.read_file(place / "footprints.geojson").to_parquet(path)
    table = pq.read_table(path)
    shapes = table["geometry"].to_pylist()
    shapes[3] = shapes[3][:20]
    cut = table.set_column(table.column_names.index("geometry"), "geometry", pa.array(shapes))
    pq.write_table(cut.replace_schema_metadata(table.schema.metadata), path)
    told = listed(place / "scene.tif", path).summary
    assert "(1 that cannot be read left out, the first is number 4)" in told


def test_what_fits_nowhere_is_said(place: Path, tmp_path: Path) -> None:
    frame = geopandas.read_file(place / "footprints.geojson")
    frame.geometry = frame.geometry.translate(xoff=5)
    frame.to_file(tmp_path / "far.geojson")
    with pytest.raises(SettingsError, match="no footprint lies on any of 1 scenes"):
        listed(place / "scene.tif", tmp_path / "far.geojson")
    frame = geopandas.read_file(place / "footprints.geojson")
    frame.geometry = frame.geometry.boundary
    frame.to_file(tmp_path / "lines.geojson")
    with pytest.raises(SettingsError, match="lines and points alone lie on the scenes"):
        listed(place / "scene.tif", tmp_path / "lines.geojson")
    (tmp_path / "torn.gpkg").write_bytes(b"SQLite format 3\0" + b"?" * 200)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1" + b"?" * 200)
    (tmp_path / "torn.geojson").write_bytes(b"{}")
    for name in ("torn.gpkg", "torn.parquet", "torn.geojson", "none.geojson"):
        with pytest.raises(SettingsError, match=name):
            listed(place / "scene.tif", tmp_path / name)


@pytest.mark.usefixtures("ray_session")
def test_from_a_scene_to_a_model(place: Path, tmp_path: Path) -> None:
    """One window of 35 holds no data, the block of another one is damaged."""
    data = bytearray((place / "scene.tif").read_bytes())
    hurt = damaged_block(place / "scene.tif", col=3, row=1)
    data[hurt] = b"\xff" * (hurt.stop - hurt.start)
    (tmp_path / "scene.tif").write_bytes(data)
    options = ["--footprints", place / "footprints.geojson", "--block", 1, "--val-share", 0.3]
    options += ["--oversample", 0.9]
    output = tmp_path / "out"
    assert train(tmp_path / "scene.tif", output, "--epochs", 2, *options) == 0
    told = json.loads((output / "run.json").read_text())["data"]
    assert (told["listed"], told["rejected"], told["empty"]) == (35, 1, 1)
    assert told["train"] + told["val"] + told["test"] == 33
    rows = [row.split('"')[1] for row in (output / "splits.csv").read_text().splitlines()[1:]]
    windows = listed(tmp_path / "scene.tif", place / "footprints.geojson", block=1)
    learned = {pair.image.uri for pair in windows.pairs if pair.split == "train"} & {*rows}
    assert len(learned) == told["train"]
    truth = expected(grounds.truth(grounds.rectangles()))
    read = zip(windows.pairs, reader(windows).read(windows.pairs), strict=True)
    usable = [(pair, found) for pair, found in read if not isinstance(found, ItemError)]
    parts = [found.classes for pair, found in usable if pair.image.uri in learned]
    counted = [int(sum((part == number).sum() for part in parts)) for number in (0, 1)]
    assert told["class_pixels"] == counted
    assert counted[1] < (truth == 1).sum()
    assert len(lines(output)) == 2
    assert (output / "model.pt").exists()


def damaged_block(scene: Path, *, col: int, row: int) -> slice:
    """The bytes of one compressed block, that of one window."""
    with rasterio.open(scene) as file:
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
    return slice(offset, offset + size)
