"""`segray evaluate` of instances: groups, intervals, worst images, corrected labels, footprints on scenes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.transform import Affine

from segray.masks.polygonize import outlines
from segray.masks.spans import counts_of, spans_of
from segray.scenes.scene import Scene
from tests.evaluate.made import ledger_row, nested, uri_of, write_annotated
from tests.evaluate.test_compare_instances import (
    SIZE,
    STATS,
    ellipse,
    evaluate,
    metrics,
    options,
    oracle,
    write,
)
from tests.evaluate.test_compare_instances import Scene as Photos

CRS = "EPSG:32636"
PLACE = (0.3, 0.0, 452_000.0, 0.0, -0.3, 36_000.0)
"""30 cm a pixel, in Uganda."""


@pytest.fixture
def photos() -> Photos:
    return Photos(12)


def only(photos: Photos, rest: int) -> Photos:
    """Every second image."""
    part = Photos(0)
    ids = {each["id"] for number, each in enumerate(photos.truth["images"]) if number % 2 == rest}
    part.truth["images"] = [each for each in photos.truth["images"] if each["id"] in ids]
    part.truth["annotations"] = [each for each in photos.truth["annotations"] if each["image_id"] in ids]
    part.found = [each for each in photos.found if each["image_id"] in ids]
    return part


@pytest.mark.parametrize("where", ["labels", "run"])
def test_groups_are_scored_as_if_they_were_alone(
    tmp_path: Path, photos: Photos, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(photos.ledger(uri_of(tmp_path / "photos")).values())
    cameras = ["left", "right"] * 6
    found = tmp_path / "found"
    if where == "labels":
        for image, camera in zip(photos.truth["images"], cameras, strict=True):
            image["camera"] = camera
    write_annotated(str(found), [rows])
    if where == "run":
        (file,) = (found / "images").glob("*.parquet")
        table = pq.read_table(file)
        of = {row["image_id"]: camera for row, camera in zip(rows, cameras, strict=True)}
        names = [of[name] for name in table["image_id"].to_pylist()]
        pq.write_table(table.append_column("camera", pa.array(names)), file)
    truth = write(tmp_path / "truth.json", photos.truth)
    assert evaluate(*options(tmp_path, truth), found, "--group-by", "camera", "--draws", 20) == 0
    record = metrics(tmp_path / "out")
    assert [row["group"] for row in record["groups"]] == ["left", "right"]
    for rest, row in enumerate(record["groups"]):
        part = only(photos, rest)
        alone = write(tmp_path / f"{rest}.json", part.truth)
        expected = oracle(alone, part.results(), "segm")
        assert [row["segm"][name] for name in STATS] == pytest.approx(expected, abs=1e-12)
        low, high = row["intervals"]["segm"]["ap"]
        assert low < row["segm"]["ap"] < high
        assert row["images"] == 6
    assert "left" in capsys.readouterr().out
    assert evaluate(*options(tmp_path, truth), found, "--group-by", "place") == 2
    assert "group_by: neither the images of the labels nor those" in capsys.readouterr().err


def test_what_metrics_say_of_classes_and_images(tmp_path: Path, photos: Photos) -> None:
    """The image with the most errors is the one in which nothing was found; intervals follow the seed."""
    lost = photos.truth["images"][0]["id"]
    photos.found = [each for each in photos.found if each["image_id"] != lost]
    truth = write(tmp_path / "truth.json", photos.truth)
    given = (*options(tmp_path, truth), write(tmp_path / "results.json", photos.results()))
    assert evaluate(*given, "--worst", 3) == 0
    record = metrics(tmp_path / "out")
    first, *others = record["worst"]
    assert len(others) == 2
    assert first["name"] == photos.truth["images"][0]["file_name"]
    objects = [each for each in photos.truth["annotations"] if each["image_id"] == lost]
    assert first["false_negatives"] == sum(not each["iscrowd"] for each in objects)
    assert first["false_positives"] == 0
    assert {row["class"] for row in record["curves"]["segm"]} == {"Tree", "roof"}
    for row, figures in zip(record["curves"]["segm"], record["classes"], strict=True):
        assert np.mean(row["iou50"]["precision"]) == pytest.approx(figures["segm_ap50"], abs=1e-4)
        assert len(row["iou75"]["scores"]) == 101
    threshold = record["thresholds"][0]["segm"]
    assert 0 < threshold["score"] < 1
    share = 2 * threshold["precision"] * threshold["recall"] / (threshold["precision"] + threshold["recall"])
    assert threshold["f1"] == pytest.approx(share)
    intervals = record["intervals"]
    assert intervals["segm"]["ap"][0] < record["metrics"]["segm"]["ap"] < intervals["segm"]["ap"][1]
    assert evaluate(*given) == 0
    assert metrics(tmp_path / "out")["intervals"] == intervals
    assert evaluate(*given, "--seed", 1) == 0
    assert metrics(tmp_path / "out")["intervals"]["segm"] != intervals["segm"]
    assert (intervals["unit"], intervals["units"]) == ("images", 12)
    assert evaluate(*given, "--draws", 0) == 0
    assert "intervals" not in metrics(tmp_path / "out")


def test_corrected_labels_are_the_truth(
    tmp_path: Path, photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows without a score; an image of which no row was confirmed has not been looked at."""
    folder = uri_of(tmp_path / "photos")
    rows = list(photos.ledger(folder).values())
    labels = [dict(row) for row in photos.ledger(folder).values()]
    for row in labels:
        row["found"] = [each | {"score": None} for each in row["found"]]
    labels[1]["found"] = [each | {"score": 0.9} for each in labels[1]["found"]]
    labels[2]["found"].append(nested(ellipse(50, 50, 9, 9), (2, "roof"), 0.8, 99))
    write_annotated(str(tmp_path / "found"), [rows])
    write_annotated(str(tmp_path / "corrected"), [labels[:5], labels[5:]])
    given = (*options(tmp_path, tmp_path / "corrected"), tmp_path / "found")
    assert evaluate(*given) == 0
    record = metrics(tmp_path / "out")
    assert record["counts"] == {"labels": 11, "compared": 11, "failed": 0, "extra": 1}
    assert record["metrics"]["segm"]["ap"] == pytest.approx(1)
    assert "1 images are left out: no instance of theirs was confirmed" in capsys.readouterr().out
    labels[4]["found"][0]["segmentation"]["counts"] = "11"
    write_annotated(str(tmp_path / "broken"), [labels])
    assert evaluate(*options(tmp_path, tmp_path / "broken"), tmp_path / "found") == 3
    (problem,) = metrics(tmp_path / "out")["failed"]
    assert problem["reason"].endswith("run lengths do not sum to 200 x 240 pixels")


def on_earth(masks: list[Any], classes: list[str], path: Path) -> Path:
    """Outlines of masks, in longitude and latitude, as GeoJSON."""
    shapes = outlines([spans_of(counts_of([each["counts"]])[0], SIZE[0]) for each in masks])
    to_earth = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)

    def moved(points: Any) -> Any:
        a, b, c, d, e, f = PLACE
        x, y = a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f
        return np.stack(to_earth.transform(x, y), axis=1)

    features = [
        {"type": "Feature", "properties": {"kind": kind}, "geometry": json.loads(shapely.to_geojson(shape))}
        for shape, kind in zip(shapely.transform(shapes, moved), classes, strict=True)
    ]
    return write(path, {"type": "FeatureCollection", "features": features})


def write_scene(path: Path, *, nodata: slice | None = None) -> None:
    """A grey scene on the place; without data in some of its columns."""
    pixels = np.full((3, *SIZE), 90, np.uint8)
    pixels[:, :, nodata or slice(0)] = 0
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "nodata": 0, "crs": CRS}
    height, width = SIZE
    with rasterio.open(path, "w", height=height, width=width, transform=Affine(*PLACE), **profile) as file:
        file.write(pixels)


def test_footprints_on_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outlines along the edges of the predicted pixels come back as the same pixels."""
    scene = Scene(*SIZE, 1024, 128, (1, 2, 3), crs=CRS, transform=PLACE)
    write_scene(tmp_path / "scene.tif")
    masks = [ellipse(60 + 40 * n, 40 + 35 * n, 9 + n, 14) for n in range(4)]
    row = ledger_row(f"{uri_of(tmp_path)}/scene.tif", SIZE) | {"scene": scene.to_json(), "crs": CRS}
    kinds = ["roof", "roof", "tank", "roof"]
    row["found"] = [
        nested(each, (1 + (kind == "tank"), kind), 0.9 - 0.1 * number, number)
        for number, (each, kind) in enumerate(zip(masks, kinds, strict=True))
    ]
    picture = ledger_row(f"{uri_of(tmp_path)}/photo.jpg", SIZE)
    write_annotated(str(tmp_path / "found"), [[row, picture]])
    shapes = [each["segmentation"] for each in row["found"]]
    extra = nested(ellipse(200, 30, 10, 10), (1, "roof"), 1.0, 5)["segmentation"]
    file = on_earth([*shapes, extra], [*kinds, "roof"], tmp_path / "footprints.geojson")
    given = ("--predictions", tmp_path / "found", "--footprints", file, "--output", tmp_path / "out")
    assert evaluate(*given, "--class-column", "kind") == 3
    record = metrics(tmp_path / "out")
    (lost,) = record["failed"]
    assert lost["name"].endswith("photo.jpg")
    assert lost["reason"] == "truth: it is not georeferenced, so footprints have no place on it"
    assert record["counts"]["compared"] == 1
    by_class = {row["class"]: row for row in record["classes"]}
    assert by_class["tank"]["segm_ap"] == pytest.approx(1)
    assert by_class["roof"]["segm_ap"] == pytest.approx(76 / 101)  # three of four, at every IoU
    assert by_class["roof"]["labels"] == 4
    assert (record["intervals"]["unit"], record["intervals"]["units"]) == ("objects", 5)
    assert "200 draws of 5 objects" in capsys.readouterr().out
    assert evaluate(*given, "--class-column", "kind", "--interval-block", 120) == 3
    intervals = metrics(tmp_path / "out")["intervals"]
    assert (intervals["unit"], intervals["units"]) == ("blocks", 3)  # of 2 x 2
    assert intervals["warning"] == "with 3 blocks an interval means little"
    assert intervals["warning"] in capsys.readouterr().out
    assert metrics(tmp_path / "out")["metrics"] == record["metrics"]
    assert evaluate(*given) == 2
    assert (
        "classes: one name, the class of all footprints, or set class_column; predictions have roof, tank"
        in (capsys.readouterr().err)
    )
    assert evaluate(*given, "--classes", "roof", "--max-rejects", 1) == 0
    record = metrics(tmp_path / "out")
    assert record["instances"]["unknown_categories"] == {"tank": 1}
    assert record["instances"]["labels"] == 5


@pytest.mark.parametrize("by_header", [False, True])
def test_pixels_without_data_belong_to_no_footprint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by_header: bool
) -> None:
    """One on them is no truth, one cut to less than 15 % is ignored, of another its pixels with data count.

    Windows are smaller than what is cut. by_header: the ledger has no grid, as of a scene read whole.
    """
    scene = Scene(*SIZE, 64, 0, (1, 2, 3), crs=CRS, transform=PLACE)
    write_scene(tmp_path / "scene.tif", nodata=slice(100, None))
    row = ledger_row(f"{uri_of(tmp_path)}/scene.tif", SIZE) | {"crs": CRS}
    row |= {} if by_header else {"scene": scene.to_json()}
    masks = np.zeros((4, *SIZE), np.uint8)
    masks[0, 120:160, 20:60] = masks[1, 50:110, 60:130] = masks[2, 5:30, 98:130] = 1
    masks[3, 120:160, 140:200] = 1
    file = on_earth([nested(each, (1, "roof"), 1.0, 0)["segmentation"] for each in masks], ["roof"] * 4,
                    tmp_path / "footprints.geojson")  # fmt: skip
    masks[:, :, 100:] = 0
    row["found"] = [nested(each, (1, "roof"), 0.9, number) for number, each in enumerate(masks[:3])]
    write_annotated(str(tmp_path / "found"), [[row]])
    given = ("--predictions", tmp_path / "found", "--footprints", file, "--output", tmp_path / "out")
    assert evaluate(*given) == 0
    found = metrics(tmp_path / "out")
    assert found["instances"]["labels"] == 2
    assert found["metrics"]["segm"]["ap"] == pytest.approx(1)
    told = capsys.readouterr().out
    assert "1 footprints cover no centre of a pixel with data" in told
    assert "1 footprints are ignored: a scene holds less than 15% of them" in told
    (tmp_path / "scene.tif").unlink()
    assert evaluate(*given) == 4
    assert "truth: the scene" in capsys.readouterr().err


def test_scenes_that_are_gone_and_scenes_with_holes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scene that changed since, its new version, one that was deleted, and one with a tile rejected."""
    scene = Scene(*SIZE, 1024, 128, (1, 2, 3), crs=CRS, transform=PLACE)
    write_scene(tmp_path / "kept.tif")
    names = ("kept", "old", "deleted", "holes")
    rows = [ledger_row(f"{uri_of(tmp_path)}/{name}.tif", SIZE) for name in names]
    for number, row in enumerate(rows):
        row |= {"scene": scene.to_json(), "crs": CRS, "vanished": number in (1, 2), "tiles": 4}
        row["tiles_rejected"] = int(number == 3)
        row["found"] = [nested(ellipse(100, 90, 9, 14), (1, "roof"), 0.9, 0)]
    rows[1]["uri"] = rows[0]["uri"]
    write_annotated(str(tmp_path / "found"), [rows])
    file = on_earth([rows[0]["found"][0]["segmentation"]], ["roof"], tmp_path / "footprints.geojson")
    given = ("--predictions", tmp_path / "found", "--output", tmp_path / "out")
    assert evaluate(*given, "--footprints", file) == 3
    record = metrics(tmp_path / "out")
    assert record["counts"] == {"labels": 2, "compared": 1, "failed": 1, "extra": 0}
    (lost,) = record["failed"]
    assert lost["name"].endswith("holes.tif")
    assert lost["reason"] == "prediction: annotate rejected 1 of its tiles: use --retry-rejected"
    assert record["instances"]["labels"] == 1
    assert record["metrics"]["segm"]["ap"] == pytest.approx(1)
    assert "2 that are no longer in the sources are left out" in capsys.readouterr().out

    images = [
        {"id": n, "file_name": f"{name}.tif", "height": SIZE[0], "width": SIZE[1]}
        for n, name in ((1, "kept"), (2, "deleted"))
    ]
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "roof"}]}
    labels = write(tmp_path / "truth.json", truth)
    assert evaluate(*given, "--labels", labels) == 0, "a picture that is gone is still what the labels are of"
    assert metrics(tmp_path / "out")["counts"] == {"labels": 2, "compared": 2, "failed": 0, "extra": 1}
