"""What other programs read is what the run holds; nothing vanishes, and nothing is overwritten unasked."""

import csv
import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segray.cli import main
from segray.export import target
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.storage import StorageSettings
from tests.export.made import CLASSES, HEIGHT, UTM, WIDTH, Run, made, pixels, write
from tests.readme_data import ROOT
from tests.servers import Server

Kind = str
SUFFIX = {
    "coco": ".json",
    "geojson": ".geojson",
    "gpkg": ".gpkg",
    "flatgeobuf": ".fgb",
    "pmtiles": ".pmtiles",
}
ON_EARTH = ("geojson", "gpkg", "flatgeobuf")
FOLDERS = ("yolo", "masks", "labelstudio")


def export(run: Run, kind: Kind, output: Path | str, *more: str) -> int:
    return main(["export", str(run.folder), "--as", kind, "--output", str(output), *more])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def file_of(folder: Path, image: dict[str, Any]) -> str:
    """The file name of an image, by images.csv."""
    (name,) = [row["name"] for row in rows(folder / "images.csv") if row["image_id"] == image["image_id"]]
    return name


def filled(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask without its holes."""
    mask = np.ascontiguousarray(mask)
    outer, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole: NDArray[np.uint8] = np.zeros_like(mask)
    cv2.drawContours(whole, outer, -1, [1], cv2.FILLED)
    return whole


# COCO


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_pycocotools_decodes_every_mask(segmentation: str, tmp_path: Path) -> None:
    run = made(tmp_path / "run", drawn=True)
    assert export(run, "coco", tmp_path / "labels.json", "--segmentation", segmentation) == 0
    coco = COCO(str(tmp_path / "labels.json"))
    assert {each["id"]: each["name"] for each in coco.loadCats(coco.getCatIds())} == CLASSES
    assert [image["segray_image_id"] for image in coco.dataset["images"]] == [
        image["image_id"] for image in sorted(run.annotated, key=lambda image: str(image["uri"]))
    ]
    assert sorted(coco.imgs) == [1, 2, 3, 4]
    assert sorted(coco.anns) == list(range(1, len(run.instances) + 1))
    true = {each["instance_id"]: each for each in run.instances}
    polygons = 0
    for each in coco.loadAnns(coco.getAnnIds()):
        row = true.pop(each["segray_instance_id"])
        assert coco.imgs[each["image_id"]]["segray_image_id"] == row["image_id"]
        assert each["category_id"] == row["category_id"]
        assert each.get("score") == (None if row["score"] is None else pytest.approx(row["score"]))
        assert (each["area"], each["bbox"], each["iscrowd"]) == (row["area"], row["bbox"], 0)
        assert np.array_equal(coco.annToMask(each), pixels(row))
        polygons += isinstance(each["segmentation"], list)
    assert true == {}
    assert polygons == (0 if segmentation == "rle" else 3 * 4)  # two parts, a hole, a diagonal, noise: RLE


def test_addresses_are_those_of_the_run(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert export(run, "coco", tmp_path / "labels.json") == 0
    images = json.loads((tmp_path / "labels.json").read_text())["images"]
    names = {image["segray_image_id"]: image["file_name"] for image in images}
    first, member, *_ = run.images
    assert names[first["image_id"]] == "/photos/a.jpg"
    assert names[member["image_id"]] == "s3://bucket/more.zip/inner/b.jpg"


def test_an_image_outside_the_folder_of_names_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    assert export(run, "coco", tmp_path / "labels.json", "--relative-to", "/photos") == 2
    assert (
        "relative_to: s3://bucket/more.zip/inner/b.jpg is not in file:///photos/" in capsys.readouterr().err
    )
    assert export(run, "yolo", tmp_path / "yolo", "--relative-to", "/photos", "--prefix", "x") == 2
    assert "relative_to: yolo does not have it" in capsys.readouterr().err
    assert not (tmp_path / "labels.json").exists()


def test_the_order_of_the_parts_changes_nothing(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert export(run, "coco", tmp_path / "one.json") == 0
    run.images.reverse()
    shutil.rmtree(run.folder)
    write(run)
    assert export(run, "coco", tmp_path / "two.json") == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


# YOLO


def test_a_yolo_reader_gets_the_masks(tmp_path: Path) -> None:
    run, folder = made(tmp_path / "run"), tmp_path / "yolo"
    assert export(run, "yolo", folder) == 0
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert list(data["names"].values()) == list(CLASSES.values())
    assert (folder / "classes.txt").read_text().splitlines() == [
        "car",
        "traffic light",
        "odd name, with: all",
    ]
    index = list(CLASSES)
    assert len(list((folder / "labels").iterdir())) == len(run.annotated)
    for image in run.annotated:
        lines = (folder / "labels" / f"{file_of(folder, image)}.txt").read_text().splitlines()
        true = run.of(image["image_id"])
        assert len(lines) == len(true)
        for line, row in zip(lines, true, strict=True):
            number, *numbers = line.split()
            assert int(number) == index.index(row["category_id"])
            assert len(numbers) >= 6  # four would be a box
            ring = np.array(numbers, float).reshape(-1, 2)
            assert ring.min() > 0
            assert ring.max() < 1
            found = np.zeros((HEIGHT, WIDTH), np.uint8)
            cv2.fillPoly(found, [(ring * (WIDTH, HEIGHT)).astype(np.int32)], [1])
            mask = filled(pixels(row))
            assert (found >= mask).all()
            if cv2.connectedComponents(mask, connectivity=8)[0] == 2:
                assert np.array_equal(found, mask)


def test_images_with_one_stem_have_files_of_their_own(tmp_path: Path) -> None:
    run = made(tmp_path / "run", names=("x/a.jpg", "b.png", "A.jpg", "con?\n.jpg"))
    for kind in ("yolo", "masks"):
        folder = tmp_path / kind
        assert export(run, kind, folder) == 0
        names = [file_of(folder, image) for image in run.annotated]
        assert len({name.casefold() for name in names}) == 4
        assert names[3] == "con__"
        assert names[:2] == [f"a_{run.images[0]['image_id']}", "b"]


# On Earth


@pytest.mark.parametrize("kind", ON_EARTH)
def test_geopandas_reads_the_rows_of_the_run(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = made(tmp_path / "run", on_earth=True), tmp_path / f"labels{SUFFIX[kind]}"
    assert export(run, kind, file) == 0
    assert "3 instances without a place on Earth are left out" in capsys.readouterr().out
    frame = geopandas.read_file(file)
    assert frame.crs == UTM
    true = {each["instance_id"]: each for each in run.instances if each.get("geometry")}
    assert len(frame) == len(true)
    for row in frame.itertuples():
        other = true.pop(row.instance_id)
        assert (row.image_id, row.category_id, row.category) == (
            other["image_id"],
            other["category_id"],
            other["category"],
        )
        assert row.score == pytest.approx(other["score"])
        assert row.area_m2 == other["area_m2"]
        shape = shapely.from_wkb(other["geometry"])
        assert row.geometry.normalize().equals_exact(
            shape.normalize() if shape.geom_type == "MultiPolygon" or kind == "geojson"
            else shapely.MultiPolygon([shape]).normalize(), 1e-6,
        )  # fmt: skip


def test_pmtiles_hold_every_outline_at_their_last_zoom(tmp_path: Path) -> None:
    run, file = made(tmp_path / "run", on_earth=True), tmp_path / "labels.pmtiles"
    assert export(run, "pmtiles", file) == 0
    assert file.read_bytes()[:7] == b"PMTiles"
    frame = geopandas.read_file(file).dissolve("instance_id").to_crs(UTM)
    true = {each["instance_id"]: each for each in run.instances if each.get("geometry")}
    large = {name: row for name, row in true.items() if row["area"] >= 90}
    assert large.keys() <= {*frame.index} <= true.keys()
    for name, row in large.items():
        found = frame.loc[name]
        assert (found.image_id, found.category_id) == (row["image_id"], row["category_id"])
        assert found.score == pytest.approx(row["score"], abs=1e-6)
        shape = shapely.from_wkb(row["geometry"])
        assert found.geometry.symmetric_difference(shape).area < 0.2 * shape.length  # steps of 15 cm


def test_a_geopackage_has_one_layer_of_one_type(tmp_path: Path) -> None:
    run = made(tmp_path / "run", on_earth=True)
    assert export(run, "gpkg", tmp_path / "labels.gpkg") == 0
    (layer,) = geopandas.list_layers(tmp_path / "labels.gpkg").itertuples()
    assert (layer.name, layer.geometry_type) == ("instances", "MultiPolygon")


@pytest.mark.parametrize("kind", ON_EARTH)
def test_longitude_comes_first(kind: Kind, tmp_path: Path) -> None:
    run, file = made(tmp_path / "run", on_earth=True, crs="OGC:CRS84"), tmp_path / f"labels{SUFFIX[kind]}"
    assert export(run, kind, file) == 0
    frame = geopandas.read_file(file)
    assert frame.crs == ("EPSG:4326" if kind == "gpkg" else "OGC:CRS84")
    assert frame.geometry.bounds.minx.min() >= 450_000  # nowhere on Earth, but on the axis that comes first


@pytest.mark.parametrize("kind", ON_EARTH)
def test_a_run_without_a_place_on_earth_is_refused(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    assert export(run, kind, tmp_path / f"labels{SUFFIX[kind]}") == 2
    assert "no image with a place on Earth" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


# Masks


def test_masks_have_the_best_score_on_top(tmp_path: Path) -> None:
    run = made(tmp_path / "run", drawn=True)
    folders = {values: tmp_path / values for values in ("instances", "classes")}
    for values, folder in folders.items():
        assert export(run, "masks", folder, "--pixels", values) == 0
    legend = {row["instance_id"]: row for row in rows(folders["instances"] / "instances.csv")}
    assert len(legend) == len(run.instances)
    for image in run.annotated:
        expected = {values: np.zeros((HEIGHT, WIDTH), np.uint16) for values in folders}
        for row in sorted(run.of(image["image_id"]), key=lambda row: row["score"] or 2):
            expected["instances"][pixels(row) == 1] = int(legend[row["instance_id"]]["value"])
            expected["classes"][pixels(row) == 1] = row["category_id"]
        for values, folder in folders.items():
            with Image.open(folder / "masks" / f"{file_of(folder, image)}.png") as picture:
                assert picture.mode == "I;16"
                assert np.array_equal(np.asarray(picture), expected[values])
    classes = {int(row["value"]): row["category"] for row in rows(folders["classes"] / "classes.csv")}
    assert classes == CLASSES


def test_label_maps_of_predict_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", verb="predict")
    shutil.rmtree(run.folder / "instances")
    (run.folder / "_segray").mkdir()
    (run.folder / "_segray/plan.json").write_text(json.dumps({"classes": ["sky", "road"]}))
    (run.folder / "labels").mkdir()
    for number, image in enumerate(run.annotated):
        (run.folder / f"labels/{image['image_id']}.{'tif' if number else 'png'}").write_bytes(b"%d" % number)
    folder = tmp_path / "masks"
    assert export(run, "masks", folder) == 0
    for number, image in enumerate(run.annotated):
        name = f"{file_of(folder, image)}.{'tif' if number else 'png'}"
        assert (folder / "masks" / name).read_bytes() == b"%d" % number
    assert [row["category"] for row in rows(folder / "classes.csv")] == ["sky", "road"]
    assert export(run, "coco", tmp_path / "labels.json") == 2
    assert export(run, "masks", tmp_path / "more", "--classes", "sky") == 2
    assert "label maps of predict" in capsys.readouterr().err


# Label Studio


def brushed(values: list[int]) -> NDArray[np.uint8]:
    """The pixels of a brush, by the description of the bit stream."""
    bits, at = "".join(f"{each:08b}" for each in values), 0

    def read(number: int) -> int:
        nonlocal at
        at += number
        return int(bits[at - number : at], 2)

    size, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < size:
        repeats, length = read(1), read(widths[read(2)]) + 1
        found += [read(word)] * length if repeats else [read(word) for _ in range(length)]
    return np.array(found, np.uint8).reshape(HEIGHT, WIDTH, 4)


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_label_studio_gets_every_mask(segmentation: str, tmp_path: Path) -> None:
    run, folder = made(tmp_path / "run", drawn=True), tmp_path / "out"
    assert export(run, "labelstudio", folder, "--segmentation", segmentation) == 0
    tasks = json.loads((folder / "tasks.json").read_text())
    assert len(tasks) == len(run.annotated)
    true = {each["instance_id"]: each for each in run.instances}
    interface = ElementTree.parse(folder / "label_config.xml").getroot()
    named = {each.get("name"): {label.get("value") for label in each} for each in interface}
    kinds = set()
    for task in tasks:
        drawn = [each for one in task.get("annotations", []) for each in one["result"]]
        predicted = [each for one in task.get("predictions", []) for each in one["result"]]
        for each in (*drawn, *predicted):
            row = true.pop(each["id"])
            assert task["data"]["segray_image_id"] == row["image_id"]
            assert (row["score"] is None) == (each in drawn)
            assert (each["original_width"], each["original_height"]) == (WIDTH, HEIGHT)
            kinds.add(each["type"])
            assert each["value"][each["type"]] == [row["category"]]
            assert row["category"] in named[each["from_name"]]
            if each["type"] == "brushlabels":
                expected = np.repeat(255 * pixels(row)[..., None], 4, axis=2)
                assert np.array_equal(brushed(each["value"]["rle"]), expected)
            else:
                area = shapely.Polygon(each["value"]["points"]).area / 1e4 * HEIGHT * WIDTH
                assert area == pytest.approx(row["area"])
    assert true == {}
    assert kinds == {"brushlabels"} | ({"polygonlabels"} if segmentation == "polygons" else set())


# Filters and splits


@pytest.mark.parametrize("kind", [*SUFFIX, *FOLDERS])
def test_a_filter_that_matches_nothing(kind: Kind, tmp_path: Path) -> None:
    run, output = made(tmp_path / "run", on_earth=True), tmp_path / f"out{SUFFIX.get(kind, '')}"
    for filters in (["--classes", "zebra"], ["--min-score", "1"], ["--min-area", "5000"]):
        assert export(run, kind, output, *filters) == 4
    assert not output.exists()


def test_filters_take_what_they_say(tmp_path: Path) -> None:
    run = made(tmp_path / "run", drawn=True)
    filters: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
        "--classes": ("car,traffic light", lambda row: row["category"] in ("car", "traffic light")),
        "--min-score": ("0.75", lambda row: row["score"] is None or row["score"] >= 0.75),
        "--min-area": ("90", lambda row: row["area"] >= 90),
    }
    for flag, (value, wanted) in filters.items():
        file = tmp_path / f"{flag}.json"
        assert export(run, "coco", file, flag, value) == 0
        found = {each["segray_instance_id"] for each in json.loads(file.read_text())["annotations"]}
        assert found == {row["instance_id"] for row in run.instances if wanted(row)}
        assert len(json.loads(file.read_text())["images"]) == 4
        assert len(found) < len(run.instances)


def test_a_file_for_each_split(tmp_path: Path) -> None:
    run = made(tmp_path / "run", splits=("train", "val", None, "train"))
    assert export(run, "coco", tmp_path / "coco", "--by-split") == 0
    files = {path.stem: COCO(str(path)) for path in (tmp_path / "coco").glob("[!e]*.json")}
    assert {name: len(coco.imgs) for name, coco in files.items()} == {"train": 2, "val": 1, "unsplit": 1}
    assert sum(len(coco.anns) for coco in files.values()) == len(run.instances)
    assert export(run, "yolo", tmp_path / "yolo", "--by-split") == 0
    assert len(list((tmp_path / "yolo/labels/train").iterdir())) == 2
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["val"] == "images/val"
    assert export(run, "coco", tmp_path / "val.json", "--split", "val") == 0
    (image,) = json.loads((tmp_path / "val.json").read_text())["images"]
    assert image["split"] == "val"
    assert export(run, "coco", tmp_path / "no.json", "--split", "test") == 4


def test_a_file_for_each_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any column that the run has kept."""
    run = made(
        tmp_path / "run", splits=("north", "south", None, "north")
    )  # the name of the column is renamed
    for file in (run.folder / "images").glob("*.parquet"):
        table = pq.read_table(file)
        names = ["region" if name == "split" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), file)
    assert export(run, "coco", tmp_path / "coco", "--group-by", "region") == 0
    files = {path.stem: COCO(str(path)) for path in (tmp_path / "coco").glob("[!e]*.json")}
    assert {name: len(coco.imgs) for name, coco in files.items()} == {"north": 2, "south": 1, "ungrouped": 1}
    assert sum(len(coco.anns) for coco in files.values()) == len(run.instances)
    assert export(run, "yolo", tmp_path / "yolo", "--group-by", "region") == 0
    assert len(list((tmp_path / "yolo/labels/north").iterdir())) == 2
    assert export(run, "coco", tmp_path / "more", "--group-by", "camera") == 2
    assert "has no column camera; --keep-columns camera" in capsys.readouterr().err


def test_splits_that_are_no_names_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", splits=("../up", "val", "val", "val"))
    assert export(run, "coco", tmp_path / "coco", "--by-split") == 2
    assert "cannot be names of files" in capsys.readouterr().err
    without = made(tmp_path / "without")
    assert export(without, "coco", tmp_path / "coco", "--by-split") == 2
    assert "no column split" in capsys.readouterr().err


def test_an_empty_run_lists_its_images(tmp_path: Path) -> None:
    run = made(tmp_path / "run", names=("only.jpg",))
    assert export(run, "coco", tmp_path / "labels.json") == 0
    content = json.loads((tmp_path / "labels.json").read_text())
    assert (len(content["images"]), content["annotations"], content["categories"]) == (1, [], [])
    for kind in FOLDERS:
        assert export(run, kind, tmp_path / kind) == 0
    assert (tmp_path / "yolo/labels/only.txt").read_bytes() == b""


# What is refused


def test_bad_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    wrong = {
        ("shapefile", "a.shp"): "as: Input should be",
        ("coco", "parts", "--by-split", "--group-by", "region"): "group_by: not with by_split",
        ("coco", "folder"): "whose name ends in .json",
        ("yolo", "labels.txt"): "must be a folder",
        ("yolo", "out", "--segmentation", "rle"): "yolo does not have it",
        ("coco", "a.json", "--pixels", "classes"): "coco does not have it",
    }
    for (kind, name, *more), message in wrong.items():
        assert export(run, kind, tmp_path / name, *more) == 2
        assert message in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_only_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "no"), "--as", "coco", "--output", str(tmp_path / "a.json")]) == 2
    assert "no output of annotate" in capsys.readouterr().err
    run = made(tmp_path / "run", verb=None)
    assert export(run, "coco", tmp_path / "labels.json") == 0  # labels of another program have no record
    (run.folder / "_segray").mkdir()
    (run.folder / "_segray/plan.json").write_text("{}")
    assert export(run, "coco", tmp_path / "more.json") == 2
    assert "not finished" in capsys.readouterr().err


def test_broken_masks_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    good = dict(run.instances[0])
    size = {"size": [HEIGHT + 1, WIDTH], "counts": good["segmentation"]["counts"]}
    small = {"size": [1, 4], "counts": "04"}
    for change, message in (
        ({"segmentation": size}, "is broken"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "\x01"}}, "is broken"),
        ({"segmentation": small}, "4 x 1, not 60 x 40"),
        ({"category": "bus"}, "has two names"),
    ):
        run.instances[0] = good | change
        write(run)
        assert export(run, "coco", tmp_path / "labels.json") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "labels.json").exists()


def test_an_image_that_is_listed_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    run.images.append(run.images[0])
    write(run)
    assert export(run, "coco", tmp_path / "labels.json") == 2
    assert "lists an image twice" in capsys.readouterr().err


def test_instances_without_an_image_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    gone = run.images.pop(0)
    for part in ("images", "instances"):  # the instances stay where they are
        shutil.copytree(run.folder / part, tmp_path / "kept" / part)
    write(run)
    shutil.copytree(tmp_path / "kept/instances", run.folder / "instances", dirs_exist_ok=True)
    assert export(run, "coco", tmp_path / "labels.json") == 0
    assert f"{len(run.of(gone['image_id']))} instances of images that are not in" in capsys.readouterr().out


def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target, "put_file_atomically", full)
    assert export(run, "coco", tmp_path / "labels.json") == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(target, "put_atomically", full)
    assert export(run, "yolo", tmp_path / "yolo") == 1


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = made(tmp_path / "run"), tmp_path / "labels.json"
    file.write_text("mine")
    assert export(run, "coco", file) == 2
    assert file.read_text() == "mine"
    assert export(run, "coco", file, "--overwrite") == 0
    assert len(COCO(str(file)).anns) == len(run.instances)
    folder = tmp_path / "yolo"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert export(run, "yolo", folder, "--overwrite") == 2
    assert "holds something else" in capsys.readouterr().err
    (folder / "mine.txt").unlink()
    (folder / ".export.json.0a1b2c3d.tmp").write_text("what a kill leaves")
    assert export(run, "yolo", folder) == 0
    before = (folder / "export.json").stat().st_mtime_ns
    assert export(run, "yolo", folder) == 0
    assert (folder / "export.json").stat().st_mtime_ns == before
    assert export(run, "yolo", folder, "--min-score", "0.8") == 2
    (folder / "images").mkdir()
    (folder / "images/a.jpg").write_bytes(b"mine")
    (folder / "labels/old.txt").write_text("of an earlier export")
    assert export(run, "yolo", folder, "--min-score", "0.8", "--overwrite") == 0
    assert not (folder / "labels/old.txt").exists()
    assert (folder / "images/a.jpg").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    assert export(run, "coco", tmp_path / "labels.json", "--dry-run") == 0
    assert "would export 4 images, 24 instances" in capsys.readouterr().out
    assert not (tmp_path / "labels.json").exists()


# Kills and storage


class Killed(BaseException):
    """As SIGKILL would end it: nothing is caught."""


@pytest.mark.parametrize("kind", ["coco", "yolo", "masks", "labelstudio", "gpkg"])
@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_killed_and_run_again(
    kind: Kind, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, output = made(tmp_path / "run", on_earth=True), tmp_path / f"out{SUFFIX.get(kind, '')}"
    left = writes

    def dying(function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments)

        return called

    with monkeypatch.context() as patch:
        for name in ("put_atomically", "put_file_atomically"):
            patch.setattr(target, name, dying(getattr(target, name)))
        try:
            export(run, kind, output, "--min-score", "0.6")
        except Killed:
            if kind in SUFFIX:
                assert not output.exists()
            elif (output / "export.json").exists():
                assert not json.loads((output / "export.json").read_text())["finished"]
    finished = output.is_file() or (left >= 0 and writes > 0)
    assert export(run, kind, output, *["--overwrite"] * finished) == 0
    whole = tmp_path / f"whole{SUFFIX.get(kind, '')}"
    assert export(run, kind, whole) == 0
    if kind == "gpkg":
        assert len(geopandas.read_file(output)) == len(geopandas.read_file(whole))
        return
    assert contents(output) == contents(whole)


def contents(path: Path) -> dict[str, bytes]:
    """Without the lease, which names its holder."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: data for name, data in files.items() if not name.startswith("_segray")}


KILLED = """
import os, signal, sys
from segray.cli import main
from segray.export import target
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.storage import StorageSettings
left, put = int(sys.argv[1]), target.put_atomically

def dying(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    put(*arguments)

target.put_atomically = dying
main(sys.argv[2:])
"""


def test_sigkill_in_the_middle_and_a_second_live_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The killed one's lease is taken over at once; that of a live one is not."""
    run, output = made(tmp_path / "run"), tmp_path / "masks"
    command = ["export", str(run.folder), "--as", "masks", "--output", str(output)]
    died = subprocess.run([sys.executable, "-c", KILLED, "3", *command], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not json.loads((output / "export.json").read_text())["finished"]
    with Lease(Output(str(output), StorageSettings())):
        assert main(command) == 2
    assert "is being written by another run" in capsys.readouterr().err
    (output / ".instances.csv.c91e9487.tmp").write_text("what a kill may leave")
    assert main(command) == 0
    assert export(run, "masks", tmp_path / "whole") == 0
    assert contents(output) == contents(tmp_path / "whole")


def test_into_a_bucket(s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    run = made(tmp_path / "run", on_earth=True)
    for kind in (*SUFFIX, *FOLDERS):
        name = f"export/out{SUFFIX[kind]}" if kind in SUFFIX else f"export/{kind}"
        assert export(run, kind, s3_server.url(name)) == 0
        assert export(run, kind, s3_server.url(name)) == (2 if kind in SUFFIX else 0)
        local = tmp_path / name
        local.parent.mkdir(exist_ok=True)
        assert export(run, kind, local) == 0
        if kind not in ("gpkg", "pmtiles"):  # which hold the time
            files = {
                each.removeprefix(name).lstrip("/"): s3_server.get(each)
                for each in s3_server.names(name)
                if "/_segray/" not in each
            }
            assert files == contents(local)
    for file in (run.folder).rglob("*.*"):
        s3_server.put(f"run/{file.relative_to(run.folder)}", file.read_bytes())
    assert (
        main(["export", s3_server.url("run"), "--as", "coco", "--output", str(tmp_path / "from.json")]) == 0
    )
    assert (tmp_path / "from.json").read_bytes() == (tmp_path / "export/out.json").read_bytes()


# Size


PEAK = r"""
import pathlib, re, sys
from segray.cli import main
assert main(sys.argv[1:]) == 0
print(int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.parametrize("kind", ["coco", "gpkg"])
def test_memory_does_not_grow_with_the_run(kind: Kind, tmp_path: Path) -> None:
    """MiB of the whole process, of one image with 20,000 instances and with 100,000, 150 MB."""
    peak = []
    for number in (20_000, 100_000):
        run = made(tmp_path / f"run-{number}", names=("a.jpg", "b.jpg"), on_earth=True)
        many(run, number)
        output = tmp_path / f"{number}{SUFFIX[kind]}"
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "export", str(run.folder), "--as", kind, "--output", str(output)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert f"{number:,} instances" in done.stdout
        peak.append(float(done.stdout.splitlines()[-1]))
    assert peak[1] < peak[0] + 60, peak


def many(run: Run, number: int) -> None:
    """Repeat one instance of the first part: 400 bytes of run lengths and 1,000 of geometry each."""
    file = run.folder / "instances/part-000000.parquet"
    table = pq.read_table(file)
    row = table.slice(0, 1).to_pylist()[0]
    comb = np.zeros((HEIGHT, WIDTH), bool)
    comb[::8] = comb[:, 0] = True
    rle = coco_mask.encode(np.asfortranarray(comb, dtype=np.uint8))
    row |= {
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
        "geometry": shapely.to_wkb(shapely.Point(450_000, 10_000).buffer(9, quad_segs=16)),
    }
    whole = pa.Table.from_pylist([row], table.schema).take([0] * number)
    ids = pa.array([f"{row['image_id']}-{place:07d}" for place in range(number)])
    whole = whole.set_column(table.schema.get_field_index("instance_id"), "instance_id", ids)
    pq.write_table(whole, file, row_group_size=20_000, use_dictionary=False)


def test_a_class_that_the_run_does_not_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    assert export(run, "coco", tmp_path / "labels.json", "--classes", "car,caar") == 2
    assert "classes: the run has no caar; it has " in capsys.readouterr().err
