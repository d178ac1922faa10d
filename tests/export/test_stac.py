"""STAC Items of scenes: valid for pystac, their labels and extents where the run has them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pystac
import pytest
import shapely
from pyproj import CRS
from pystac.validation import validate_dict

from segray.cli import main
from segray.export.stac import bbox_of
from segray.scenes.scene import Scene
from segray.sources.listing import Listing
from segray.sources.name_filter import Choice
from segray.storage import StorageSettings
from tests.export.made import CLASSES, HEIGHT, UTM, WIDTH, Run, made, write

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
TRANSFORM = (0.5, 0.0, 450_000.0, 0.0, -0.5, 10_000.0)


def scenes(folder: Path, verb: str = "annotate", crs: str = UTM) -> Run:
    """The run of the other formats, whose first and last images are scenes; the first says when."""
    run = made(folder, on_earth=True, verb=verb, crs=crs)
    scene = Scene(HEIGHT, WIDTH, 1024, 128, (1, 2, 3), None, CRS.from_user_input(UTM).to_wkt(), TRANSFORM)
    for image in run.images:
        image["crs"] = None
    for image in (run.images[0], run.images[3]):
        image |= {"scene": scene.to_json(), "crs": UTM}
    run.images[0]["taken_at"] = WHEN
    write(run, on_earth=True, verb=verb, crs=crs)
    record = {"verb": verb, "identity": {"model": "made"}, "finished_at": "2025-01-01T00:00:00Z"}
    (folder / "run.json").write_text(json.dumps(record))
    return run


def export(run: Run, output: Path, *more: str) -> int:
    return main(["export", str(run.folder), "--as", "stac", "--output", str(output), *more])


def valid(path: Path) -> pystac.Item:
    """The Item, valid by the schemas that pystac carries; those of extensions are on the network."""
    document = json.loads(path.read_text())
    validate_dict(document | {"stac_extensions": []})
    item = pystac.Item.from_file(str(path))
    assert (
        item.to_dict(include_self_link=False, transform_hrefs=False)["properties"] == document["properties"]
    )
    return item


def expected_extent() -> Any:
    box = shapely.box(450_000, 10_000 - HEIGHT / 2, 450_000 + WIDTH / 2, 10_000)
    return geopandas.GeoSeries([box], crs=UTM).to_crs("OGC:CRS84")[0]


def test_items_of_annotate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = scenes(tmp_path / "run")
    assert export(run, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "STAC Items: 2; 2 images are no scene with a place on Earth" in told
    assert "1 scenes do not say when they were taken" in told
    assert sorted(path.name for path in (tmp_path / "out/items").iterdir()) == ["a.json", "empty.json"]
    item = valid(tmp_path / "out/items/a.json")
    assert (item.id, item.datetime) == (run.images[0]["image_id"], WHEN)
    assert valid(tmp_path / "out/items/empty.json").datetime == datetime(2025, 1, 1, tzinfo=UTC)
    assert shapely.geometry.shape(item.geometry).symmetric_difference(expected_extent()).area < 1e-12
    assert item.bbox == pytest.approx(expected_extent().bounds)
    label = {name: value for name, value in item.properties.items() if name.startswith("label:")}
    assert (label["label:type"], label["label:properties"]) == ("vector", ["category"])
    assert label["label:classes"] == [{"name": "category", "classes": list(CLASSES.values())}]
    assert label["label:description"] == "Instances by segray with the model made"
    own = [each for each in run.of(item.id) if "geometry" in each]
    (counts,) = label["label:overviews"]
    assert {each["name"]: each["count"] for each in counts["counts"]} == {
        name: sum(row["category"] == name for row in own) for name in CLASSES.values()
    }
    assert item.properties["proj:code"] == UTM
    assert (item.properties["proj:shape"], tuple(item.properties["proj:transform"])) == (
        [HEIGHT, WIDTH],
        TRANSFORM,
    )
    frame = geopandas.read_file(item.assets["labels"].get_absolute_href())
    assert sorted(frame.instance_id) == sorted(row["instance_id"] for row in own)
    true = geopandas.GeoSeries([shapely.from_wkb(row["geometry"]) for row in own], crs=UTM).to_crs(
        "OGC:CRS84"
    )
    for row, shape in zip(own, true, strict=True):
        found = frame[frame.instance_id == row["instance_id"]].iloc[0]
        assert found.geometry.symmetric_difference(shape).area < 1e-12
        assert (found.category, found.score) == (row["category"], pytest.approx(row["score"]))


def test_the_item_is_a_source_again(tmp_path: Path) -> None:
    assert export(scenes(tmp_path / "run"), tmp_path / "out") == 0
    (found,) = Listing([str(tmp_path / "out/items/a.json")], StorageSettings(), Choice(stac=True))
    assert (found.uri, found.taken_at) == ("file:///photos/a.jpg", int(WHEN.timestamp() * 1e6))


def test_items_of_predict(tmp_path: Path) -> None:
    run = scenes(tmp_path / "run", verb="predict")
    (run.folder / "_segray").mkdir()
    plan = {"model": "net", "classes": ["ground", "road"]}
    (run.folder / "_segray/plan.json").write_text(json.dumps(plan))
    assert export(run, tmp_path / "out") == 0
    item = valid(tmp_path / "out/items/a.json")
    assert (item.properties["label:type"], item.properties["label:properties"]) == ("raster", None)
    assert item.properties["label:classes"] == [{"name": None, "classes": ["ground", "road"]}]
    assert item.assets["label_map"].href == f"{run.folder}/labels/{item.id}.tif"
    frame = geopandas.read_file(item.assets["labels"].get_absolute_href())
    assert frame.geometry[0].symmetric_difference(expected_extent()).area < 1e-12


def test_splits_have_folders_of_their_own(tmp_path: Path) -> None:
    run = scenes(tmp_path / "run")
    for number, image in enumerate(run.images):
        image["split"] = "train" if number else "val"
    write(run, on_earth=True)
    assert export(run, tmp_path / "out", "--by-split") == 0
    for name in ("val/a", "train/empty"):
        item = valid(tmp_path / f"out/items/{name}.json")
        assert Path(item.assets["labels"].get_absolute_href() or "").resolve().is_file()


def test_a_run_without_scenes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", on_earth=True)
    assert export(run, tmp_path / "out") == 2
    assert "has no scene with a place on Earth" in capsys.readouterr().err


def test_a_box_that_crosses_180_degrees() -> None:
    cut = shapely.MultiPolygon([shapely.box(178, -5, 180, 5), shapely.box(-180, -5, -177, 5)])
    assert bbox_of(cut) == [178, -5, -177, 5]
    assert bbox_of(shapely.box(178, -5, 180, 5)) == [178, -5, 180, 5]
    assert np.allclose(bbox_of(shapely.box(-180, -90, 180, 90)), [-180, -90, 180, 90])
