"""A scene with outlines becomes windows: known masks and places, nothing shared with what is held out."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from PIL import Image
from pycocotools import mask as coco_mask
from rasterio.transform import Affine
from shapely.geometry import LineString, MultiPolygon, Point, box

from jobs.footprints_to_coco import (
    FootprintSettings,
    Scene,
    Shares,
    Window,
    block_means,
    draw,
    main,
    read_outlines,
    read_scene,
    starts,
    windows_of,
    write_folder,
)
from segray.data.footprints import areas_of
from segray.data.pair_reader import CocoExample
from segray.errors import SettingsError
from tests.train.coco import read_coco

TO_MAP = Affine(0.5, 0, 452_000, 0, -0.5, 40_000)  # EPSG:32636, half a metre a pixel
SETTINGS = FootprintSettings(
    reduce=1,
    window=40,
    overlap=20,
    visible=0.25,
    smallest_area=10,
    test=Shares(0.6, 0, 1, 0.5),
    val=Shares(0.6, 0.5, 1, 1),
)
SQUARE = box(5, 5, 15, 15)
CUT = box(50, 60, 70, 70)  # 10 of its 20 columns lie beyond column 60, where the held-out blocks begin
SLIVER = box(58, 10, 78, 20)  # two of its columns lie in the training windows, a tenth


def write_scene(path: Path, pixels: np.ndarray[Any, Any], *, crs: str | None = "EPSG:32636") -> Path:
    """Write (height, width, 3) pixels as a GeoTIFF with `TO_MAP`."""
    height, width, bands = pixels.shape
    shape = {"width": width, "height": height, "count": bands, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=TO_MAP, **shape) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


def write_outlines(path: Path, rings: list[list[tuple[float, float]]], *, crs: str | None = None) -> Path:
    """Write polygons, given in pixels of the scene, as GeoJSON in `crs`, or in degrees that name none."""
    project = pyproj.Transformer.from_crs("EPSG:32636", crs or "EPSG:4326", always_xy=True)
    placed = [[project.transform(*(TO_MAP @ corner)) for corner in ring] for ring in rings]
    geometries = [{"type": "Polygon", "coordinates": [ring]} for ring in placed]
    features = [{"type": "Feature", "properties": {}, "geometry": each} for each in geometries]
    content: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is not None:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(content))
    return path


def ring(area: Any) -> list[tuple[float, float]]:
    corners: list[tuple[float, float]] = list(area.exterior.coords)
    return corners


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    """100 x 100 pixels, each of which is unlike all others."""
    rows, columns = np.mgrid[:100, :100].astype(np.uint8)
    return np.dstack([rows, columns, rows ^ columns])


@pytest.fixture
def scene(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    return write_scene(tmp_path / "scene.tif", pixels)


@pytest.fixture
def outlines(tmp_path: Path) -> Path:
    return write_outlines(tmp_path / "outlines.json", [ring(each) for each in (SQUARE, CUT, SLIVER)])


def masks_of(content: Any, name: str) -> list[np.ndarray[Any, Any]]:
    image = next(image for image in content["images"] if image["file_name"] == name)
    rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
    return [coco_mask.decode(row["segmentation"]).astype(bool) for row in rows]


def rectangle(window: tuple[int, int], area: Any) -> np.ndarray[Any, Any]:
    """The mask of a rectangle of the scene in a window of 40 x 40 pixels at (left, top)."""
    mask = np.zeros((40, 40), bool)
    left, top, right, bottom = (int(edge) for edge in area.bounds)
    rows = slice(max(0, top - window[1]), max(0, bottom - window[1]))
    columns = slice(max(0, left - window[0]), max(0, right - window[0]))
    mask[rows, columns] = True
    return mask


def test_outlines_in_degrees_become_the_masks_they_were_drawn_as(
    scene: Path, outlines: Path, tmp_path: Path
) -> None:
    content = write_folder(scene, outlines, tmp_path / "out", SETTINGS)
    assert content == json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [image["id"] for image in content["images"]] == list(range(12))
    (square,) = masks_of(content, "train-x0-y0.png")
    assert np.array_equal(square, rectangle((0, 0), SQUARE))
    (cut,) = masks_of(content, "train-x20-y40.png")
    assert np.array_equal(cut, rectangle((20, 40), CUT))


def test_a_file_that_names_its_coordinates_is_read_by_them(scene: Path, tmp_path: Path) -> None:
    """The same outline in web mercator and in degrees: the same pixels to a thousandth."""
    read = read_scene(scene, reduce=1)
    for crs in ("EPSG:3857", "urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326"):
        (found,) = read_outlines(write_outlines(tmp_path / "one.json", [ring(SQUARE)], crs=crs), read)
        assert found.symmetric_difference(SQUARE).area < 1e-3


def test_windows_hold_the_pixels_of_their_place(
    scene: Path, outlines: Path, tmp_path: Path, pixels: np.ndarray[Any, Any]
) -> None:
    content = write_folder(scene, outlines, tmp_path / "out", SETTINGS)
    for image in content["images"]:
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as picture:
            found = np.array(picture)
        x, y = image["x"], image["y"]
        assert np.array_equal(found, pixels[y : y + image["height"], x : x + image["width"]])


def by_split(folder: Path) -> dict[str, list[CocoExample]]:
    """The images of each split that the file names."""
    found: dict[str, list[CocoExample]] = {split: [] for split in ("train", "val", "test")}
    for pair, example in read_coco(folder):
        found[str(pair.split)].append(example)
    return found


def test_no_pixel_is_in_two_splits(scene: Path, outlines: Path, tmp_path: Path) -> None:
    """Counted from the written pictures: every pixel of the scene is unlike all others."""
    write_folder(scene, outlines, tmp_path / "out", SETTINGS)
    splits = by_split(tmp_path / "out")
    values = {
        split: {
            (int(row), int(column)) for image in found for row, column in image.pixels[..., :2].reshape(-1, 2)
        }
        for split, found in splits.items()
    }
    for one, other in combinations(("train", "val", "test"), 2):
        assert not values[one] & values[other]
    assert values["test"] == {(row, column) for row in range(50) for column in range(60, 100)}
    assert values["val"] == {(row, column) for row in range(50, 100) for column in range(60, 100)}
    assert values["train"] == {(row, column) for row in range(100) for column in range(60)}
    assert sum(image.pixels[..., 0].size for image in splits["test"]) == len(values["test"])  # none twice


def test_training_windows_overlap_and_touch_nothing_held_out() -> None:
    found = windows_of(100, 100, SETTINGS)
    places = [(window.left, window.top) for window in found if window.split == "train"]
    assert places == [(left, top) for top in (0, 20, 40, 60) for left in (0, 20)]
    held_out = [window for window in found if window.split != "train"]
    assert held_out == [
        Window("val", 60, 50, 100, 75),
        Window("val", 60, 75, 100, 100),
        Window("test", 60, 0, 100, 25),
        Window("test", 60, 25, 100, 50),
    ]


@pytest.mark.parametrize(("across", "down", "touching"), [(9, 9, True), (9, -9, True), (10, 0, False)])
def test_rectangles_touch_when_they_share_a_pixel(across: int, down: int, touching: bool) -> None:
    one = Window("train", 0, 0, 10, 10)
    for x, y in ((across, down), (-across, down), (down, across), (down, -across)):
        other = Window("test", x, y, x + 10, y + 10)
        assert one.touches(other) == other.touches(one) == touching


@pytest.mark.parametrize(
    ("length", "window", "step", "expected"),
    [(100, 40, 20, [0, 20, 40, 60]), (90, 40, 20, [0, 20, 40, 50]), (40, 40, 20, [0]), (30, 40, 20, [0])],
)
def test_the_last_window_ends_with_the_axis(length: int, window: int, step: int, expected: list[int]) -> None:
    assert starts(length, window, step) == expected


def test_a_cut_building_stays_while_enough_of_it_is_seen() -> None:
    window = Window("train", 0, 0, 60, 100)
    outlines = [MultiPolygon([each]) for each in (CUT, SLIVER)]
    assert np.unique(draw(outlines, window, SETTINGS)).tolist() == [0, 1]
    assert draw(outlines, window, SETTINGS).sum() == 100  # half of CUT
    both = draw(outlines, window, replace(SETTINGS, visible=0.1))
    assert [(both == number).sum() for number in (1, 2)] == [100, 20]
    assert draw(outlines, window, replace(SETTINGS, smallest_area=101)).sum() == 0


def test_a_small_building_on_a_large_one_keeps_its_pixels(scene: Path, tmp_path: Path) -> None:
    small, large = box(10, 10, 14, 14), box(0, 0, 30, 30)
    path = write_outlines(tmp_path / "two.json", [ring(small), ring(large)])
    content = write_folder(scene, path, tmp_path / "out", SETTINGS)
    areas = sorted(int(mask.sum()) for mask in masks_of(content, "train-x0-y0.png"))
    assert areas == [16, 900 - 16]
    ids = [row["id"] for row in content["annotations"]]
    assert len(set(ids)) == len(ids)


def test_an_outline_that_crosses_itself_is_repaired(scene: Path, tmp_path: Path) -> None:
    """A bow tie: its two triangles are one building, and their areas add up instead of cancelling out."""
    bow_tie = [(10.0, 10.0), (30.0, 30.0), (30.0, 10.0), (10.0, 30.0), (10.0, 10.0)]
    path = write_outlines(tmp_path / "bow.json", [bow_tie])
    (found,) = read_outlines(path, read_scene(scene, reduce=1))
    assert found.is_valid
    assert found.area == pytest.approx(200, abs=0.01)
    (mask,) = masks_of(write_folder(scene, path, tmp_path / "out", SETTINGS), "train-x0-y0.png")
    assert mask[20, 12]
    assert mask[20, 27]
    assert not mask[12, 20]
    assert not mask[27, 20]


def test_only_areas_are_buildings(scene: Path, outlines: Path) -> None:
    content = json.loads(outlines.read_text())
    point = {"type": "Point", "coordinates": content["features"][0]["geometry"]["coordinates"][0][0]}
    content["features"] += [{"type": "Feature", "geometry": each, "properties": {}} for each in (point, None)]
    outlines.write_text(json.dumps(content))
    assert len(read_outlines(outlines, read_scene(scene, reduce=1))) == 3
    assert areas_of(Point(1, 1)).is_empty
    assert areas_of(LineString([(0, 0), (1, 1)])).is_empty
    assert areas_of(SQUARE).equals(SQUARE)
    spiked = box(0, 0, 10, 10).union(LineString([(10, 10), (20, 20)]))  # an area and a line
    assert areas_of(spiked).area == 100


def test_reduced_pixels_are_means_and_outlines_follow(scene: Path, outlines: Path) -> None:
    read = read_scene(scene, reduce=4)
    assert read.pixels.shape == (25, 25, 3)
    assert read.pixels[2, 5, :2].tolist() == [10, 22]  # rows 8 to 11: 9.5, columns 20 to 23: 21.5, to even
    bounds = sorted(outline.bounds for outline in read_outlines(outlines, read))
    assert bounds[0] == pytest.approx([edge / 4 for edge in SQUARE.bounds], abs=1e-3)
    odd = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert block_means(odd, 2).shape == (2, 3, 3)
    assert np.array_equal(block_means(odd, 1), odd)


def test_a_scene_that_cannot_serve_is_refused(
    scene: Path, outlines: Path, tmp_path: Path, pixels: np.ndarray[Any, Any]
) -> None:
    nowhere = write_scene(tmp_path / "nowhere.tif", pixels, crs=None)
    with pytest.raises(SettingsError, match="no coordinate system"):
        read_scene(nowhere, reduce=1)
    deep = write_scene(tmp_path / "deep.tif", pixels.astype(np.uint16))
    with pytest.raises(SettingsError, match="uint8"):
        read_scene(deep, reduce=1)
    (tmp_path / "broken.json").write_text('{"type": "Feature"}')
    with pytest.raises(SettingsError, match="feature collection"):
        read_outlines(tmp_path / "broken.json", read_scene(scene, reduce=1))
    outlines.write_text(outlines.read_text().replace("{", '{"crs": {"properties": {"name": "EPSG:1"}}, ', 1))
    with pytest.raises(SettingsError, match="EPSG:1"):
        read_outlines(outlines, read_scene(scene, reduce=1))


def test_settings_that_cannot_hold_are_refused() -> None:
    with pytest.raises(SettingsError, match="overlap"):
        windows_of(100, 100, replace(SETTINGS, val=Shares(0.5, 0.4, 1, 1)))
    with pytest.raises(SettingsError, match="every training window"):
        windows_of(100, 100, replace(SETTINGS, window=80))
    with pytest.raises(SettingsError, match="no pixel"):
        windows_of(100, 100, replace(SETTINGS, val=Shares(0.1, 0.1, 0.101, 0.2)))
    with pytest.raises(SettingsError, match="rectangle"):
        Shares(0.5, 0, 0.5, 1)
    with pytest.raises(SettingsError, match="below window"):
        replace(SETTINGS, overlap=40)


def test_the_command_writes_the_folder_and_says_what_is_in_it(
    scene: Path,
    outlines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rectangles = ["--test", "0.6,0,1,0.5", "--val", "0.6,0.5,1,1"]
    sizes = [
        "--reduce",
        "1",
        "--window",
        "40",
        "--overlap",
        "20",
        "--smallest-area",
        "10",
        "--visible",
        "0.25",
    ]
    command = ["footprints", str(scene), str(outlines), str(tmp_path / "out"), *rectangles, *sizes]
    monkeypatch.setattr("sys.argv", command)
    main()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    splits = by_split(tmp_path / "out")
    assert said == [
        {"split": split, "images": len(found), "buildings": sum(len(image.instances) for image in found)}
        for split, found in splits.items()
    ]
    assert said[0]["images"] == 8
    for wrong, status in ((["--test", "0.5,0,1"], 2), (["--test", "0,0,1,2"], 2), (["--window", "80"], 2)):
        monkeypatch.setattr("sys.argv", command + wrong)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status


def test_a_scene_keeps_its_place_when_reduced(scene: Path) -> None:
    read: Scene = read_scene(scene, reduce=4)
    assert read.to_map @ (25, 25) == TO_MAP @ (100, 100)
    assert read.crs == pyproj.CRS("EPSG:32636")
