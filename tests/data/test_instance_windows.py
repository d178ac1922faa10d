"""Footprints as instances of windows: their pixels, what is too small to count, and the windows."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import ValidationError
from rasterio.features import rasterize
from rasterio.transform import Affine
from shapely.affinity import translate
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from segray.data.dataset import assign_splits
from segray.data.footprint_pieces import VISIBLE, drawn_spans, pieces_on
from segray.data.footprints import Footprints, areas_of, footprint_table
from segray.data.pair_reader import CocoExample
from segray.data.pairs import Pair
from segray.data.scan import FIGURES, figures
from segray.data.scene_windows import Windows, list_windows
from segray.data.split_areas import SplitAreas
from segray.data.window_reader import InstanceWindowReading, InstanceWindows, window_of
from segray.errors import SettingsError
from segray.scenes.scene import Scene
from segray.tile_overlap import Window
from segray.train.settings import TrainSettings
from segray.train.tasks.scenes import categories_of, window_settings
from segray.train.transforms.instance import CropSettings
from tests.train import grounds
from tests.train.squares import lines
from tests.train.test_instances_job import train

SIDE, SIZE = 64, (grounds.HEIGHT, grounds.WIDTH)
SCENE = Scene(*SIZE, SIDE, 0, (1, 2, 3), crs=grounds.CRS, transform=tuple(grounds.TO_MAP[:6]))
Bools = NDArray[np.bool_]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scene.tif, footprints.geojson and areas.geojson; not to be changed."""
    folder = tmp_path_factory.mktemp("place")
    shapes = grounds.rectangles()
    kinds = ["barn" if number % 3 else "shed" for number in range(len(shapes))]
    grounds.write_scene(folder / "scene.tif", shapes)
    grounds.write_geojson(folder / "footprints.geojson", shapes, kinds)
    write_areas(folder / "areas.geojson", ("train", box(0, 0, 220, 300)), ("val", box(220, 0, 420, 300)))
    return folder


def write_areas(path: Path, *areas: tuple[object, Polygon]) -> Path:
    """Areas given in pixels of the scene, in longitude and latitude."""
    grounds.write_geojson(path, [shape for _, shape in areas])
    content = json.loads(path.read_text())
    for feature, (split, _) in zip(content["features"], areas, strict=True):
        feature["properties"]["split"] = split
    path.write_text(json.dumps(content))
    return path


def settings(place: Path, **more: Any) -> TrainSettings:
    usual = {"arch": "compact-maskrcnn", "min_size": SIDE, "max_size": 2 * SIDE, "output": "nowhere"}
    files = {"data": str(place / "scene.tif"), "footprints": str(place / "footprints.geojson")}
    return TrainSettings(**{**usual, **files, "block": 2, "val_share": 0.3, **more})


def listed(place: Path, **more: Any) -> Windows:
    found = settings(place, **more)
    return list_windows(window_settings(found), categories_of(found))


def read(windows: Windows) -> list[CocoExample]:
    reader = InstanceWindows(windows.scenes, Footprints(windows.footprints), settings(Path()).storage)
    found = reader.read(windows.pairs)
    assert all(isinstance(each, CocoExample) for each in found)
    return found  # type: ignore[return-value]


def table(shapes: list[Any]) -> Footprints:
    """Footprints of shapes in pixels of the scene, class i + 1 for the i-th."""
    placed = np.array([*grounds.on_earth(shapes), None], object)[:-1]
    return Footprints(footprint_table(placed, [1 + n for n in range(len(shapes))], "OGC:CRS84"))


def masks(shapes: list[Any], window: Window, nodata: Bools | None = None) -> dict[int, tuple[Bools, bool]]:
    size = [window.height, window.width]
    return {
        each.category: (coco_mask.decode({"size": size, "counts": each.counts}) > 0, each.ignored)
        for each in pieces_on(table(shapes), SCENE, window, None if nodata is None else drawn_spans(nodata))
        if each.counts
    }


def test_discs_lie_where_they_were_drawn() -> None:
    """To a fiftieth of a pixel, on average over places within one; the first is centred on (0.5, 0.5)."""
    window = Window(37, 37 + 80, 51, 51 + 80)
    centres = [(90 + col / 5, 80 + row / 5) for row in range(5) for col in range(5)]
    found = masks([Point(*each).buffer(30, quad_segs=64) for each in centres], window)
    errors = []
    for number, (mask, ignored) in found.items():
        rows, cols = np.nonzero(mask)
        x, y = centres[number - 1]
        errors.append((cols.mean() + 0.5 + 51 - x, rows.mean() + 0.5 + 37 - y))
        assert not ignored
    assert len(errors) == 25
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02
    assert np.abs(errors).max() < 0.1


def test_pieces_are_the_window_of_each_footprint_drawn_on_the_whole_scene() -> None:
    """And count from a share of the footprint's own area on, on pixels with data."""
    shapes = [translate(each, 0.11, 0.17) for each in grounds.rectangles()]
    drawn = [rasterize([each], SIZE, transform=Affine.identity()) > 0 for each in shapes]
    nodata = np.zeros((SIDE, SIDE), bool)
    nodata[20:40] = True
    counted = Counter[bool]()
    for window in SCENE.grid:
        rows, cols = slice(window.row_start, window.row_stop), slice(window.col_start, window.col_stop)
        found = masks(shapes, window, nodata)
        expected = {n: each[rows, cols] & ~nodata for n, each in enumerate(drawn, 1)}
        expected = {n: each for n, each in expected.items() if each.any()}
        assert found.keys() == expected.keys()
        for number, (mask, ignored) in found.items():
            np.testing.assert_array_equal(mask, expected[number])
            assert ignored == (mask.sum() < VISIBLE * shapes[number - 1].area)
            counted[ignored] += 1
    assert min(counted[True], counted[False]) > 10


def test_a_footprint_of_several_parts_is_one_instance() -> None:
    parts = MultiPolygon([box(10, 10, 14, 14), box(20, 10, 25, 14)])
    ((mask, ignored),) = masks([parts], Window(0, SIDE, 0, SIDE)).values()
    assert (mask.sum(), ignored) == (36, False)
    ((_, ignored),) = masks([parts], Window(0, SIDE, 24, 24 + SIDE)).values()
    assert ignored, "4 of its 36 pixels"


def test_a_footprint_larger_than_the_window_counts_by_the_share_of_the_window_it_fills() -> None:
    """A window inside a warehouse, lake or field is not ground."""
    ((mask, ignored),) = masks([box(0, 0, 300, 300)], Window(100, 164, 100, 164)).values()
    assert (mask.sum(), ignored) == (SIDE * SIDE, False)
    strip = {wide: masks([box(0, 0, 100 + wide, 300)], Window(100, 164, 100, 164)) for wide in (9, 10)}
    assert [each[1][1] for each in strip.values()] == [True, False], "15 % of 64 columns are 9.6"


def test_ignored_pieces_are_counted(place: Path) -> None:
    windows = listed(place, window_overlap=0)
    reading = InstanceWindowReading({1: "footprint"}, 10**6, settings(place).storage, None)
    examples = read(windows)
    table = pa.Table.from_pylist([figures(each, reading.counts) for each in examples], FIGURES)
    data = assign_splits(windows, table, None)
    assert data.ignored == sum(each.crowd for example in examples for each in example.instances) > 3


def test_only_areas_are_footprints() -> None:
    assert areas_of(Point(1, 1)).is_empty
    assert areas_of(LineString([(0, 0), (1, 1)])).is_empty
    spiked = box(0, 0, 10, 10).union(LineString([(10, 10), (20, 20)]))
    assert areas_of(spiked).area == 100
    bow_tie = areas_of(Polygon([(10, 10), (30, 30), (30, 10), (10, 30)]))
    assert (bow_tie.is_valid, bow_tie.area) == (True, 200)


def parted(windows: Windows) -> dict[str | None, NDArray[np.int64]]:
    """How many windows of each split hold each pixel."""
    found = {split: np.zeros(SIZE, np.int64) for split in ("train", "val", "test")}
    for pair in windows.pairs:
        place = window_of(pair.image.uri)
        found[str(pair.split)][place.row_start : place.row_stop, place.col_start : place.col_stop] += 1
    return found  # type: ignore[return-value]


def test_what_is_scored_is_in_one_window_and_nothing_in_two_splits(place: Path) -> None:
    several = 0
    for seed in range(2):
        windows = listed(place, split_seed=seed, window_overlap=40)
        held = parted(windows)
        assert ((held["train"] > 0).astype(int) + held["val"] + held["test"] == 1).all()
        several += held["train"].max() > 1
        for pair in windows.pairs:
            part = window_of(pair.image.uri)
            assert max(part.height, part.width) <= (SIDE if pair.split == "train" else 2 * SIDE)
    assert several > 0


def test_an_object_at_an_edge_is_whole_in_another_window(place: Path) -> None:
    """With an overlap as wide as objects are, of those inside of the training area."""
    windows = listed(place, split_areas=str(place / "areas.geojson"), window_overlap=31)
    area = box(0, 0, 220, 300)
    inside = [each for each in grounds.rectangles() if area.covers(each)]
    training = [window_of(pair.image.uri) for pair in windows.pairs if pair.split == "train"]
    boxes = [box(each.col_start, each.row_start, each.col_stop, each.row_stop) for each in training]
    assert len(inside) > 10
    assert all(any(window.covers(each) for window in boxes) for each in inside)


def test_windows_hold_their_pixels_and_those_without_data_are_skipped(place: Path) -> None:
    windows = listed(place, split_areas=str(place / "areas.geojson"), window_overlap=0)
    assert windows.names == ("footprint",)
    reading = InstanceWindowReading({1: "footprint"}, 10**6, settings(place).storage, None)
    bright = grounds.truth(grounds.rectangles())
    bright[grounds.EMPTY] = bright[grounds.HALF_EMPTY] = 0
    skipped = []
    for pair, example in zip(windows.pairs, read(windows), strict=True):
        part = window_of(pair.image.uri)
        rows, cols = slice(part.row_start, part.row_stop), slice(part.col_start, part.col_stop)
        np.testing.assert_array_equal(example.pixels.min(axis=2) > 90, bright[rows, cols] > 0)
        union = [coco_mask.decode(each.mask) for each in example.instances]
        covered = np.any(union, axis=0) if union else np.zeros((part.height, part.width), bool)
        np.testing.assert_array_equal(covered, bright[rows, cols] > 0)
        counts = reading.counts(example)
        if not windows.has_label(counts):
            skipped.append(pair.image.uri.rpartition("=")[2])
        else:
            assert counts == [sum(not each.crowd for each in example.instances)]
    assert skipped == ["0,0,64,64"]
    assert windows.has_label([0]), "ground without any footprint is learned, too"


def test_an_attribute_names_the_category(place: Path) -> None:
    windows = listed(place, class_column="kind")
    assert windows.names == ("barn", "shed")
    assert Counter(windows.footprints["class"].to_pylist()) == {1: 40, 2: 20}
    with pytest.raises(SettingsError, match=r"not among barn: shed \(20\)"):
        listed(place, class_column="kind", classes=["barn"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"classes": ["a", "b"]}, "classes: footprints without a class_column are instances of one"),
        ({"window_overlap": SIDE}, "window_overlap: must be below window"),
        ({"balance_kinds": True, "min_score": 0.5}, "min_score, balance_kinds: not for footprints"),
        ({"footprints": None, "split_areas": "a"}, "split_areas: for scenes, set their footprints too"),
        ({"arch": "unet", "window_overlap": 3}, "window_overlap: is for instance models, unet is a semantic"),
    ],
)
def test_settings_that_do_not_fit(place: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(place, **more)


def test_a_start_model_decides_the_kind(place: Path) -> None:
    """Whose architecture the settings take over: before, they do not know what they are for."""
    more: dict[str, Any] = {
        "data": "d",
        "footprints": "f",
        "output": "o",
        "start_from": "nuclei-small",
        "window_overlap": 3,
    }
    given = TrainSettings(**more)
    with pytest.raises(SettingsError, match="window_overlap: is for instance models, unet is a semantic"):
        window_settings(given)
    found = window_settings(given.model_copy(update={"arch": "compact-maskrcnn"}))
    assert found.instances is not None
    assert found.instances.overlap == 3


def test_windows_have_one_scale_whatever_their_size() -> None:
    assert CropSettings(32, 48, whole=SIDE).scale(40, 64) == 0.75
    assert CropSettings(32, 48).scale(32, 64) == 1.5


def test_areas_are_cut_to_their_edges(place: Path) -> None:
    for arch, most in (("compact-maskrcnn", 2 * SIDE), ("unet", SIDE)):
        more = {"window": SIDE} if arch == "unet" else {}
        windows = listed(place, split_areas=str(place / "areas.geojson"), arch=arch, **more)
        held = parted(windows)
        np.testing.assert_array_equal(held["train"] > 0, np.arange(420)[None] < 220 + np.zeros((300, 1)))
        np.testing.assert_array_equal(held["val"] > 0, held["train"] == 0)
        assert held["val"].max() == (1 if arch != "unet" else 4)
        parts = [window_of(pair.image.uri) for pair in windows.pairs if pair.split == "val"]
        assert max(part.height for part in parts) == most
        assert windows.summary.endswith("; 0 windows across the edge of an area left out")


def test_each_pixel_of_an_area_has_one_label(place: Path) -> None:
    """Semantic windows that were moved back share pixels; the label of each is of its own part."""
    windows = listed(place, split_areas=str(place / "areas.geojson"), arch="unet", window=SIDE)
    owned = np.zeros(SIZE, int)
    for pair in windows.pairs:
        own = window_of(pair.label.uri if "#xywh=" in pair.label.uri else pair.image.uri)
        owned[own.row_start : own.row_stop, own.col_start : own.col_stop] += 1
    assert (owned == 1).all()


def test_windows_across_an_edge_are_left_out_and_counted(place: Path, tmp_path: Path) -> None:
    slanted = Polygon([(220, 0), (420, 0), (420, 300), (300, 300)])
    path = write_areas(tmp_path / "a.geojson", ("Training", box(0, 0, 128, 300)), ("validation", slanted))
    windows = listed(place, split_areas=str(path))
    val = [window_of(pair.image.uri) for pair in windows.pairs if pair.split == "val"]
    boxes = [box(each.col_start, each.row_start, each.col_stop, each.row_stop) for each in val]
    assert len(val) > 4
    assert all(slanted.buffer(0.02).covers(each) for each in boxes)
    left_out = 20 - len(val)  # 5 rows, 4 columns of the 200 x 300 pixels around it
    assert f"; {left_out} windows across the edge of an area left out" in windows.summary


def test_a_slightly_turned_rectangle_is_one(place: Path, tmp_path: Path) -> None:
    """As one that was drawn along meridians is on a scene in UTM."""
    turned = shapely.affinity.rotate(box(200, 20, 400, 280), 1.0)
    path = write_areas(tmp_path / "a.geojson", ("train", box(0, 0, 128, 300)), ("val", turned))
    windows = listed(place, split_areas=str(path))
    held = parted(windows)["val"]
    assert "; 0 windows across" in windows.summary
    assert held.sum() > 0.9 * turned.area
    outside = rasterize([(turned.buffer(0.8), 1)], SIZE) == 0
    assert not held[outside].any()


def test_areas_that_cannot_be_used_are_named(place: Path, tmp_path: Path) -> None:
    def told(*areas: tuple[object, Polygon]) -> str:
        path = write_areas(tmp_path / "a.geojson", *areas)
        with pytest.raises(SettingsError) as caught:
            SplitAreas(str(path), settings(place).storage).on(SCENE)
        assert "a.geojson: " in str(caught.value)
        return str(caught.value)

    left, right, both = box(0, 0, 220, 300), box(220, 0, 420, 300), box(200, 0, 420, 300)
    assert "features 1 (train) and 3 (val) overlap" in told(("train", left), ("test", right), ("val", left))
    assert "features 1 (train) and 2 (val) overlap" in told(("train", left), ("val", both))
    assert "feature 2: its split is 'dev', not one of train, val, test" in told(("val", left), ("dev", right))
    none = told((None, left))
    assert "feature 1: its split is 'None'" in none
    assert none.count("a.geojson") == 1
    path = write_areas(tmp_path / "a.geojson", ("train", left), ("test", right))
    with pytest.raises(SettingsError, match=r"a\.geojson: no area with split val lies on the scenes"):
        listed(place, split_areas=str(path))
    path.write_text(path.read_text().replace('"split"', '"part"'))
    with pytest.raises(SettingsError, match="split_areas: it has no column split; there are part"):
        SplitAreas(str(path), settings(place).storage)
    path.write_text(path.read_text().replace('"part"', '"split"').replace("Polygon", "LineString"))
    with pytest.raises(SettingsError, match="feature 1: it is no polygon"):
        SplitAreas(str(path), settings(place).storage)


def uris(pairs: list[Pair]) -> list[str]:
    return [pair.image.uri for pair in pairs]


@pytest.mark.usefixtures("ray_session")
def test_from_a_scene_to_a_detector(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other areas are other data."""
    areas = tmp_path / "areas.geojson"
    areas.write_bytes((place / "areas.geojson").read_bytes())
    given = ["--footprints", place / "footprints.geojson", "--split-areas", areas, "--classes", '["roof"]']
    options = (*given, "--window-overlap", 0, "--size", 64, "--epochs", 1)
    assert train(place / "scene.tif", tmp_path / "out", *options) == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    windows = listed(place, split_areas=str(areas), min_size=96, max_size=96, window_overlap=0)
    splits = Counter(pair.split for pair in windows.pairs)
    assert {name: record["data"][name] for name in ("train", "val")} == splits
    found = [each for pair, each in zip(windows.pairs, read(windows), strict=True) if pair.split == "train"]
    objects = sum(not each.crowd for example in found for each in example.instances)
    assert record["data"]["instances"] == [objects]
    rows = (tmp_path / "out/splits.csv").read_text().splitlines()[1:]
    assert sorted(row.split('"')[1] for row in rows) == sorted(uris(windows.pairs))
    (line,) = lines(tmp_path / "out")
    assert line["ap"] is not None
    write_areas(areas, ("train", box(0, 0, 210, 300)), ("val", box(220, 0, 420, 300)))
    assert train(place / "scene.tif", tmp_path / "out", *options) == 2
    assert "was begun with other data" in capsys.readouterr().err
