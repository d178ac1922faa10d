"""What comes back is what was corrected: identity, edits, what cannot be used, kills, and into training."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco_mask

from segray.cli import main
from segray.data.coco_listing import AnnotatedPair, instances_of, list_coco
from segray.data.label_listing import list_labels
from segray.importer.labelstudio import unpacked
from segray.palette import palette
from segray.storage import StorageSettings
from tests.export.made import CLASSES, HEIGHT, WIDTH, Run, made, write
from tests.importer.made import SUFFIX, bring, counts, encoded, export, pixels, rows, scenes, submitted
from tests.readme_data import NUCLEI, ROOT
from tests.servers import Server

UNCHANGED = ("changed", "reclassified", "added", "removed", "rejected")
"""Counts that are 0 where nothing was edited."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four images in two parts, one in an archive, one empty; and one that was rejected."""
    return made(tmp_path_factory.mktemp("made"), splits=("train", "val", None, "train"), drawn=True)


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three scenes, the last one empty."""
    return scenes(tmp_path_factory.mktemp("scenes"))


def same_files(one: Path, other: Path) -> None:
    names = [
        sorted(str(file.relative_to(each)) for file in each.rglob("*.*") if "_segray" not in file.parts)
        for each in (one, other)
    ]
    assert names[0] == names[1]
    for name in set(names[0]) - {"export.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# Identity


@pytest.mark.parametrize("kind", ["coco", "polygons", "yolo", "masks", "labelstudio"])
def test_export_import_export_is_the_identity(kind: str, run: Run, tmp_path: Path) -> None:
    """From the first import on, byte for byte: the run's scores are gone, as a person has looked at it."""
    more = ["--segmentation", "polygons"] if kind == "polygons" else []
    kind = "coco" if kind == "polygons" else kind
    last, exported = run.folder, list[Path]()
    for turn in range(3):
        file = export(last, kind, tmp_path / f"file-{turn}{SUFFIX.get(kind, '')}", *more)
        if kind == "labelstudio":
            submitted(file)
        exported.append(file)
        if turn == 2:
            break
        assert bring(file, kind, tmp_path / f"labels-{turn}", last) == 0
        last = tmp_path / f"labels-{turn}"
        found = counts(last)
        assert (found["items"], found["unchanged"]) == (4, len(run.instances))
        assert [found[name] for name in UNCHANGED] == [0] * len(UNCHANGED)
        assert rows(last, "images") == rows(tmp_path / "labels-0", "images")
    true = {row["instance_id"]: row for row in run.instances}
    assert [row["score"] for row in rows(last, "instances")] == [None] * len(true)
    for row in rows(last, "instances"):
        other = true.pop(row["instance_id"])
        for name in ("image_id", "category_id", "category", "bbox", "area", "segmentation", "iscrowd"):
            assert row[name] == other[name]
    assert true == {}
    if kind == "coco":
        assert exported[1].read_bytes() == exported[2].read_bytes()
    elif kind == "labelstudio":
        assert exported[1].read_bytes() == exported[2].read_bytes() == exported[0].read_bytes()
    else:
        same_files(exported[1], exported[2])


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
@pytest.mark.parametrize("crs", ["EPSG:32636", "OGC:CRS84", "EPSG:3857"])
def test_outlines_on_the_map_come_back_as_the_same_masks(kind: str, crs: str, tmp_path: Path) -> None:
    run = scenes(tmp_path / "run", crs)
    file = export(run.folder, kind, tmp_path / f"one{SUFFIX[kind]}")
    frame = geopandas.read_file(file)
    moved = tmp_path / f"moved{SUFFIX[kind]}"  # as QGIS may save it
    frame.to_crs("EPSG:4326" if crs != "OGC:CRS84" else "EPSG:32636").to_file(moved)
    for place, each in enumerate((file, moved)):
        output = tmp_path / f"labels-{place}"
        assert bring(each, kind, output, run.folder) == 0
        assert counts(output)["unchanged"] == len(run.instances)
        assert [counts(output)[name] for name in UNCHANGED] == [0] * len(UNCHANGED)
        again = export(output, kind, tmp_path / f"two-{place}{SUFFIX[kind]}")
        other = geopandas.read_file(again)
        assert other.drop(columns=["geometry", "score"]).equals(frame.drop(columns=["geometry", "score"]))
        assert other.crs == frame.crs
        assert shapely.equals_exact(other.geometry.values, frame.geometry.values, 1e-9).all()


def test_columns_of_any_type_stay(tmp_path: Path) -> None:
    """Those of a manifest, and what a later version may add: bytes, a time."""
    run = made(tmp_path / "run", splits=("train", "val", None, "train"))
    for each in (run.folder / "images").glob("*.parquet"):
        table = pq.read_table(each)
        table = table.append_column("camera", pa.array([f"c{row}" for row in range(len(table))]))
        table = table.append_column("place", pa.array([b"\0\1"] * len(table)))
        pq.write_table(table, each)
    file = export(run.folder, "coco", tmp_path / "one.json")
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    assert {row["camera"] for row in rows(tmp_path / "labels", "images")} == {"c0", "c1"}


def test_columns_of_the_run_stay(run: Run, tmp_path: Path) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    content["images"][0] |= {"split": "test", "group": "north"}
    file.write_text(json.dumps(content))
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    found = {row["image_id"]: row for row in rows(tmp_path / "labels", "images")}
    for image in run.annotated:
        row = found[image["image_id"]]
        edited = content["images"][0]["segray_image_id"] == image["image_id"]
        assert (row["split"], row["group"]) == (("test", "north") if edited else (image["split"], None))
        assert (row["uri"], row["member"]) == (image["uri"], image.get("member"))


# Edits


def edited(content: dict[str, Any], run: Run) -> dict[str, list[str]]:
    """Change, reclassify, add and remove one annotation each; return their ids."""
    one, two, three, *_ = [each for each in content["annotations"] if each["image_id"] == 1]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 40:50] = True
    one["segmentation"] = encoded(np.roll(coco_mask.decode(one["segmentation"]), 1, axis=1))
    two["category_id"] = next(each for each in CLASSES if each != two["category_id"])
    content["annotations"].remove(three)
    new = {"id": 999, "image_id": 1, "category_id": 1, "segmentation": encoded(mask)}
    content["annotations"].append(new)
    return {"changed": [one["instance_id"]], "class": [two["instance_id"]], "removed": [three["instance_id"]]}


@pytest.mark.parametrize("with_ids", [True, False])
def test_what_was_edited_is_counted(with_ids: bool, run: Run, tmp_path: Path) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    ids = edited(content, run)
    if not with_ids:  # as programs write it that keep COCO's own fields alone
        for image in content["images"]:
            del image["segray_image_id"]
        for each in content["annotations"]:
            each.pop("instance_id", None)
    file.write_text(json.dumps(content))
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    found = counts(tmp_path / "labels")
    assert {name: found[name] for name in ("changed", "reclassified", "added", "removed")} == {
        "changed": 2, "reclassified": 1, "added": 1, "removed": 1,
    }  # fmt: skip
    assert found["unchanged"] == len(run.instances) - 3
    after = {row["instance_id"]: row for row in rows(tmp_path / "labels", "instances")}
    before = {row["instance_id"]: row for row in run.instances}
    assert before.keys() - after.keys() == {*ids["removed"]}
    (new,) = after.keys() - before.keys()
    first = (
        [image["segray_image_id"] for image in json.loads(file.read_text())["images"][:1]] if with_ids else []
    )
    assert new.rpartition("-")[2] == "0000008"  # the next number of its image
    assert not first or new.startswith(first[0])
    assert pixels(after[new]).sum() == 60
    changed = ids["changed"][0]
    assert np.array_equal(pixels(after[changed]), np.roll(pixels(before[changed]), 1, axis=1))
    assert after[ids["class"][0]]["category"] != before[ids["class"][0]]["category"]


def test_images_that_are_not_in_the_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    gone = content["images"].pop()
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != gone["id"]]
    content["images"].append({"id": 77, "file_name": "elsewhere/zebra.jpg", "height": 40, "width": 60})
    content["images"].append({**content["images"][0], "id": 78})
    content["images"].append({"id": 79, "file_name": "b.png", "height": 40, "width": 61})
    file.write_text(json.dumps(content))
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 3
    told = capsys.readouterr().out
    assert "1 images of the run are not in the file" in told
    assert "elsewhere/zebra.jpg: no image of the run has this id, address or name" in told
    assert "twice; the first counts" in told
    assert "b.png: 61 x 40 pixels in the file, 60 x 40 in the run" in told
    assert counts(tmp_path / "labels")["images_not_placed"] == 3
    with (tmp_path / "labels/rejects.csv").open(newline="") as table:
        assert next(csv.DictReader(table))["image"] == "elsewhere/zebra.jpg"
    assert len(rows(tmp_path / "labels", "images")) == 3
    assert bring(file, "coco", tmp_path / "labels", run.folder, "--max-rejects", "0.5") == 0


def test_names_of_several_images(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = made(tmp_path / "run", names=("x/a.jpg", "b.jpg", "y/a.jpg", "c.jpg"))
    images = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate(("a.jpg", "x/a.jpg", "D:\\task\\c.jpg"))
    ]
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert bring(file, "coco", tmp_path / "labels", two.folder) == 3
    assert "a.jpg: 2 images of the run have this name" in capsys.readouterr().out
    assert [row["uri"][-7:] for row in rows(tmp_path / "labels", "images")] == ["x/a.jpg", "s/c.jpg"]


@pytest.mark.parametrize("where", ["addresses", "images"])
def test_without_a_run_the_file_says_which_images(where: str, tmp_path: Path) -> None:
    """What training lists of the output is what it lists of the COCO file itself."""
    shutil.copytree(NUCLEI, tmp_path / "nuclei")
    file = tmp_path / "nuclei/instances.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = content["images"][0]["file_name"].rpartition("/")[2]
    if where == "addresses":  # relative to the file, or absolute
        for place, image in enumerate(content["images"]):
            name = image["file_name"].rpartition("/")[2]
            image["file_name"] = f"images/{name}" if place % 2 else str(tmp_path / "nuclei/images" / name)
    twice = [*content["images"], {**content["images"][1], "id": 9999}]
    file.write_text(json.dumps({**content, "images": twice}))
    more = ["--images", str(tmp_path / "nuclei/images")] if where == "images" else []
    output = tmp_path / "labels"
    assert bring(file, "coco", output, None, *more) == 3  # one is listed twice
    assert "twice" in (output / "rejects.csv").read_text()
    found = list_labels(str(output), StorageSettings())
    for image in content["images"]:
        image["file_name"] = image["file_name"].rpartition("/")[2]
    file.write_text(json.dumps(content))
    true = list_coco(str(file), StorageSettings(), str(tmp_path / "nuclei/images"))
    assert [pair.image.uri for pair in found.pairs] == [pair.image.uri for pair in true.pairs]
    assert found.categories == true.categories
    for one, other in zip(found.pairs, true.pairs, strict=True):
        assert isinstance(one, AnnotatedPair)
        assert isinstance(other, AnnotatedPair)
        areas = [
            sorted(
                int(coco_mask.area(each.mask)) for each in instances_of(pair.annotations, true.categories)[1]
            )
            for pair in (one, other)
        ]
        assert areas[0] == areas[1] != []
    missing = tmp_path / "gone.json"
    missing.write_text(json.dumps({**content, "images": [{**content["images"][0], "file_name": "gone.png"}]}))
    assert bring(missing, "coco", tmp_path / "none", None, *more) == 2


# Formats


def test_yolo_of_a_trainer(run: Run, tmp_path: Path) -> None:
    """Boxes, scores at the end of a line, another order of classes, one that is new; IoU of a contour."""
    folder = tmp_path / "yolo"
    (folder / "val/labels").mkdir(parents=True)
    (folder / "data.yaml").write_text('names: ["bus", "car", "traffic light"]\n')
    lines = [
        "1 0.5 0.5 0.5 0.5",
        "2 0.1 0.1 0.3 0.1 0.3 0.4 0.9",
        "0 0.5 0.5 0.2 0.2",
        "7 0.5 0.5 0.1 0.1",
        "1 x",
    ]
    (folder / "notes.txt").write_text("no labels\n")
    (folder / "val/labels/empty.txt").write_text("\n".join(lines) + "\n")
    assert bring(folder, "yolo", tmp_path / "labels", run.folder) == 3
    found = rows(tmp_path / "labels", "instances")
    assert [(row["category_id"], row["category"]) for row in found] == [
        (7, "traffic light"), (1, "car"), (10, "bus"),
    ]  # fmt: skip
    assert found[1]["bbox"] == [15, 10, 30, 20]
    assert found[1]["area"] == 600
    (image,) = rows(tmp_path / "labels", "images")
    assert image["split"] == "val"
    told = (tmp_path / "labels/rejects.csv").read_text()
    assert "line 4,class 7 has no name" in told
    assert "line 5,not `class x y …`" in told


def test_yolo_loses_holes_of_what_was_not_the_run_s(run: Run, tmp_path: Path) -> None:
    """Without the run, masks are what their contours hold; the least IoU is that of bridges and holes."""
    folder = export(run.folder, "yolo", tmp_path / "yolo")
    images = tmp_path / "images"
    images.mkdir()
    names = {row["image_id"]: row["name"] for row in csv.DictReader((folder / "images.csv").open(newline=""))}
    for image in run.annotated:
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{names[image['image_id']]}.png")
    assert bring(folder, "yolo", tmp_path / "labels", None, "--images", str(images)) == 0
    found = rows(tmp_path / "labels", "instances")
    assert len(found) == len(run.instances)
    assert {row["category"].replace("\n", " ") for row in found} == {
        name.replace("\n", " ") for name in CLASSES.values()
    }
    by_name = {Path(row["uri"]).stem: row["image_id"] for row in rows(tmp_path / "labels", "images")}
    for image in run.annotated:
        true = [row["segmentation"] for row in run.of(image["image_id"])]
        own = [row["segmentation"] for row in found if row["image_id"] == by_name[names[image["image_id"]]]]
        iou = coco_mask.iou(true, own, [0] * len(own))
        if len(true):
            best = sorted(iou.max(axis=1).tolist())
            assert best[0] > 0.5  # noise of single pixels
            assert best[2] == 1 or best[1:] > [0.85] * (len(best) - 1)


def test_masks_of_a_paint_program(run: Run, tmp_path: Path) -> None:
    """One stroke more, one object gone, one new number with a row, one in colours."""
    folder = export(run.folder, "masks", tmp_path / "masks")
    legend = list(csv.DictReader((folder / "instances.csv").open(newline="")))
    with (folder / "images.csv").open(newline="") as table:
        files = {row["image_id"]: folder / "masks" / f"{row['name']}.png" for row in csv.DictReader(table)}
    first, second, *_ = (image["image_id"] for image in run.annotated)
    values = np.array(Image.open(files[first]))
    visible = np.unique(values)[1:]
    values[values == visible[0]] = 0
    values[0:4, 50:60] = 40
    Image.fromarray(values).save(files[first])
    row = {"image_id": first, "value": "40", "category_id": "1", "category": "car"}
    with (folder / "instances.csv").open("w", newline="") as table:
        out = csv.DictWriter(table, legend[0].keys())
        out.writeheader()
        out.writerows([*legend, row])
    Image.fromarray(palette(255)[np.array(Image.open(files[second]))]).save(files[second])
    assert bring(folder, "masks", tmp_path / "labels", run.folder) == 0
    found = counts(tmp_path / "labels")
    assert (found["added"], found["removed"], found["changed"]) == (1, 1, found["changed"])
    after = {each["instance_id"]: each for each in rows(tmp_path / "labels", "instances")}
    (new,) = (
        each
        for each in after.values()
        if each["instance_id"] not in {r["instance_id"] for r in run.instances}
    )
    assert (pixels(new) == (values == 40)).all()
    for each in run.of(second):  # also those that others hide
        assert after[each["instance_id"]]["segmentation"] == each["segmentation"]
    anti = np.array(Image.open(files[second]).convert("RGB"))
    anti[0, 0] = (1, 2, 3)
    Image.fromarray(anti).save(files[second])
    assert bring(folder, "masks", tmp_path / "more", run.folder) == 3
    assert "1 pixels in colours of no class, #010203" in (tmp_path / "more/rejects.csv").read_text()


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>car</name></label><label><name>tree</name></label></labels></task></meta>
<image id="0" name="a.jpg" width="60" height="40" subset="default">
  <polygon label="car" points="10.00,5.00;20.00,5.00;20.00,15.00;10.00,15.00" z_order="0"></polygon>
  <box label="tree" xtl="30.0" ytl="10.0" xbr="40.0" ybr="30.0" rotation="90.0"></box>
  <mask label="car" rle="1, 2, 2, 1" left="50" top="20" width="3" height="2"></mask>
  <polyline label="car" points="1.0,1.0;2.0,2.0"></polyline>
  <mask label="car" rle="1, 2" left="50" top="20" width="3" height="2"></mask>
  <tag label="sunny"></tag>
</image>
<image id="1" name="empty.jpg" width="60" height="40"></image>
</annotations>"""


@pytest.mark.parametrize("zipped", [False, True])
def test_cvat_for_images(zipped: bool, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "annotations.xml"
    file.write_text(CVAT)
    if zipped:
        with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
            archive.write(file, "annotations.xml")
        file = tmp_path / "task.zip"
    assert bring(file, "cvat", tmp_path / "labels", run.folder) == 3
    assert sorted(row["instances"] for row in rows(tmp_path / "labels", "images")) == [0, 3]
    found = {tuple(row["bbox"]): row for row in rows(tmp_path / "labels", "instances")}
    assert found[10, 5, 10, 10]["area"] == 100
    tree = found[25, 15, 20, 10]  # turned around its middle
    assert (tree["category_id"], tree["category"], tree["area"]) == (10, "tree", 200)
    assert pixels(found[51, 20, 2, 2])[20:22, 50:53].tolist() == [[0, 1, 1], [0, 0, 1]]
    told = (tmp_path / "labels/rejects.csv").read_text()
    assert "shape 4,a <polyline> has no area here" in told
    assert "shape 5,run lengths do not sum to 3 x 2" in told


def test_cvat_s_coco_archive(run: Run, tmp_path: Path) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json", "--split", "val")
    other = export(run.folder, "coco", tmp_path / "two.json", "--split", "train")
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.write(file, "annotations/instances_val.json")
        archive.write(other, "annotations/instances_train.json")
        archive.writestr("images/a.jpg", b"")
    assert bring(tmp_path / "task.zip", "coco", tmp_path / "labels", run.folder) == 0
    assert sorted(row["split"] for row in rows(tmp_path / "labels", "images")) == ["train", "train", "val"]


def test_label_studio_s_regions(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def region(number: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        return {"id": number, "type": kind, "from_name": "label", "value": value, **size}

    box = {"x": 50, "y": 25, "width": 25, "height": 50, "rotation": 0}
    old = {"result": [], "updated_at": "2026-01-01"}
    new = [
        region("r1", "rectanglelabels", {**box, "rectanglelabels": ["car"]}),
        region("r2", "polygon", {"points": [[0, 0], [50, 0], [50, 50]]}),
        region("r2", "labels", {"points": [[0, 0], [50, 0], [50, 50]], "labels": ["traffic light"]}),
        region("r3", "ellipselabels", {"x": 5, "ellipselabels": ["car"]}),
        region("r4", "brushlabels", {"rle": [0, 0, 1], "brushlabels": ["car"]}),
        {"id": "c", "type": "choices", "value": {"choices": ["sunny"]}},
    ]
    done = {"annotations": [{"result": new, "updated_at": "2026-02-01"}, old], "id": 1}
    tasks = [
        {**done, "data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"}},
        {"id": 2, "data": {"image": "/data/local-files/?d=/photos/empty.jpg"}, "annotations": [old]},
        {"id": 3, "data": {"image": "b.png"}, "annotations": [], "predictions": [{"result": new}]},
    ]
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(tasks))
    assert bring(file, "labelstudio", tmp_path / "labels", run.folder) == 3
    assert "1 tasks have no annotation" in capsys.readouterr().out
    assert sorted(row["instances"] for row in rows(tmp_path / "labels", "images")) == [0, 2]
    found = {row["category"]: row for row in rows(tmp_path / "labels", "instances")}
    assert found["car"]["bbox"] == [30, 10, 15, 20]
    assert found["traffic light"]["area"] == pytest.approx(300, abs=15)
    assert (tmp_path / "labels/rejects.csv").read_text().count("\n") == 3


def test_brushes_are_unpacked_as_their_own_program_does() -> None:
    """Literals as well as runs; the stream of the converter's README, and a random one by a plain encoder."""
    values = np.random.default_rng(1).integers(0, 2, 400, np.uint8) * 255
    bits = f"{400:032b}{7:05b}" + "".join(f"{each - 1:04b}" for each in (3, 4, 8, 16))
    done = 0
    for length, is_run in ((5, False), (120, False), (1, True), (200, False), (74, False)):
        width = 0 if length <= 8 else 2
        bits += f"{int(is_run)}{width:02b}{length - 1:0{(3, 4, 8)[width]}b}"
        if is_run:
            values[done : done + length] = values[done]
        bits += "".join(f"{each:08b}" for each in values[done : done + (1 if is_run else length)])
        done += length
    bits += "0" * (-len(bits) % 8)
    assert np.array_equal(unpacked(int(bits, 2).to_bytes(len(bits) // 8, "big"), 400), values)


# On the map


def test_outlines_drawn_in_qgis(located: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Moved, deleted, copied and new: without ids, in the scene in which it lies; one outside of all."""
    file = export(located.folder, "gpkg", tmp_path / "one.gpkg")
    frame = geopandas.read_file(file)
    copy = frame.iloc[[1]].copy()
    copy.geometry = copy.geometry.translate(5, 0)
    new = shapely.Point(*frame.geometry.iloc[9].centroid.coords[0]).buffer(3)
    more = geopandas.GeoDataFrame(
        {"category": ["car", None, "car"]},
        geometry=[new, shapely.box(0, 0, 1, 1), shapely.box(450_405, 9_995, 450_408, 9_998)], crs=frame.crs,
    )  # fmt: skip
    whole = pd.concat([frame.drop(index=[0]), copy, more])
    moved = tmp_path / "moved.gpkg"
    whole.to_file(moved, layer="instances")
    assert bring(moved, "gpkg", tmp_path / "labels", located.folder) == 3
    assert "no scene of the run holds it" in (tmp_path / "labels/rejects.csv").read_text()
    found = counts(tmp_path / "labels")
    assert (found["removed"], found["added"], found["changed"]) == (1, 3, 0)
    assert found["items"] == 3  # the third scene has an outline now
    frame.loc[2, "category_id"] = next(each for each in CLASSES if each != frame.loc[2, "category_id"])
    frame.to_file(tmp_path / "half.gpkg", layer="instances")
    assert bring(tmp_path / "half.gpkg", "gpkg", tmp_path / "half", located.folder) == 3
    assert "change both" in (tmp_path / "half/rejects.csv").read_text()
    frame = geopandas.read_file(file)
    pyogrio.write_dataframe(frame, tmp_path / "two.gpkg", layer="other")
    assert bring(tmp_path / "two.gpkg", "gpkg", tmp_path / "same", located.folder) == 0
    assert counts(tmp_path / "same")["items"] == 2
    assert "1 images of the run are not in the file" in capsys.readouterr().out
    assert bring(tmp_path / "two.gpkg", "gpkg", tmp_path / "all", located.folder, "--empty-images") == 0
    assert counts(tmp_path / "all")["items"] == 3


def test_a_mask_is_the_pixels_whose_centres_are_inside(located: Run, tmp_path: Path) -> None:
    """Against a plain loop over all pixels of a scene."""
    image = located.annotated[0]
    a, b, c, d, e, f = json.loads(image["scene"])["transform"]
    shape = shapely.Polygon([(450_003, 9_995), (450_015, 10_004), (450_020, 9_990)])
    frame = geopandas.GeoDataFrame(
        {"image_id": [image["image_id"]], "category": ["car"]}, geometry=[shape], crs="EPSG:32636"
    )
    frame.to_file(tmp_path / "one.geojson")
    assert bring(tmp_path / "one.geojson", "geojson", tmp_path / "labels", located.folder) == 0
    (row,) = rows(tmp_path / "labels", "instances")
    true = np.zeros((HEIGHT, WIDTH), bool)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            col, line = x + 0.5, y + 0.5
            true[y, x] = shape.contains(shapely.Point(a * col + b * line + c, d * col + e * line + f))
    assert true.sum() > 200
    assert (pixels(row) != true).sum() <= 1  # GeoJSON has seven digits
    assert row["area_m2"] == pytest.approx(true.sum() / 4, rel=1e-2)


# Label maps


def test_label_maps_that_were_painted(tmp_path: Path) -> None:
    """A run of predict: exported, one map painted over, one in colours; into a manifest that train takes."""
    run = made(tmp_path / "run", verb="predict")
    (run.folder / "labels").mkdir()
    (run.folder / "_segray").mkdir()
    (run.folder / "_segray/plan.json").write_text(json.dumps({"classes": ["sky", "road"]}))
    for image in run.annotated:
        pixels_of = np.zeros((HEIGHT, WIDTH), np.uint8)
        pixels_of[5:9] = 1
        Image.fromarray(pixels_of).save(run.folder / f"labels/{image['image_id']}.png")
    member = next(image for image in run.annotated if image.get("member"))
    folder = export(run.folder, "masks", tmp_path / "maps")
    with (folder / "images.csv").open(newline="") as table:
        names = {row["image_id"]: row["name"] for row in csv.DictReader(table)}
    first, second = (image for image in run.annotated[::2])
    painted = pixels_of.copy()
    painted[20:22, :10] = 1
    Image.fromarray(painted).save(folder / f"masks/{names[first['image_id']]}.png")
    Image.fromarray(palette(2)[pixels_of]).save(folder / f"masks/{names[second['image_id']]}.png")
    output = tmp_path / "labels"
    assert bring(folder, "masks", output, run.folder) == 3
    assert "in an archive" in (output / "rejects.csv").read_text()
    assert member["image_id"] not in (output / "pairs.csv").read_text()
    found = counts(output)
    assert (found["items"], found["changed"], found["unchanged"], found["pixels"]) == (3, 1, 2, 20)
    pairs = {row["masks"]: row for row in csv.DictReader((output / "pairs.csv").open(newline=""))}
    assert len(pairs) == 3
    for name, row in pairs.items():
        values = np.array(Image.open(output / name))
        assert np.array_equal(values, painted if first["image_id"] in name else pixels_of)
        assert row["images"].startswith("file:///photos/")
    painted[0, 0] = 9
    Image.fromarray(painted).save(folder / f"masks/{names[first['image_id']]}.png")
    assert bring(folder, "masks", tmp_path / "bad", run.folder) == 3
    assert "values 9 are not in classes.csv" in (tmp_path / "bad/rejects.csv").read_text()


# What is refused


def test_files_that_are_too_broken(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"height": HEIGHT, "width": WIDTH}
    whole = {"images": [{"id": 1, "file_name": "a.jpg", **size}], "annotations": [], "categories": []}
    wrong = {
        ("coco", "a.json", "{"): "it is not JSON",
        ("coco", "b.json", '{"images": []}'): "it has no list annotations, categories",
        ("coco", "c.json", json.dumps({**whole, "images": [{"id": 1}]})): "has no file_name",
        ("coco", "d.json", json.dumps({**whole, "images": []})): "none of its 0 images is imported",
        ("cvat", "a.xml", "<annotations><image"): "it is not XML",
        ("cvat", "b.xml", "<html></html>"): "not CVAT",
        ("cvat", "c.xml", "<annotations><track></track></annotations>"): "CVAT for video",
        ("labelstudio", "a.json", '{"a": 1}'): "a list of tasks",
        ("labelstudio", "b.json", '[{"image": "a.jpg"}]'): "export as JSON, not JSON-MIN",
        ("labelstudio", "c.json", '[{"data": {"image": "a.jpg"}, "annotations": []}]'): "submit them first",
        ("geojson", "a.geojson", "{}"): "has no image with a place|none of its images has a place",
        ("yolo", "no-such-folder", None): "no such folder",
        ("gpkg", "no.gpkg", None): "the file is not there",
    }
    for (kind, name, text), message in wrong.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        assert bring(tmp_path / name, kind, tmp_path / "labels", run.folder) == 2, name
        told = capsys.readouterr().err
        assert any(each in told for each in message.split("|")), told
        assert not (tmp_path / "labels/run.json").exists()
        shutil.rmtree(tmp_path / "labels", ignore_errors=True)


def test_one_bad_annotation_costs_itself(run: Run, tmp_path: Path) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    good = dict(content["annotations"][0])
    bad: list[dict[str, Any]] = [
        {"segmentation": {"size": [1, 4], "counts": "04"}},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": [[-50, -50, -40, -50, -40, -40]]},
        {"category_id": 99},
        {"segmentation": None, "bbox": [1, 2]},
        {"image_id": 55},
    ]
    more = [{**good, "id": 1000 + place, "instance_id": None, **each} for place, each in enumerate(bad)]
    box = {**good, "id": 2000, "instance_id": None, "segmentation": [], "bbox": [2, 3, 4, 5]}
    content["annotations"] += [*more, box]
    for each in content["annotations"][:2]:  # as pandas writes them
        each |= {"category_id": float(each["category_id"]), "image_id": str(each["image_id"])}
    file.write_text(json.dumps(content))
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 3
    found = counts(tmp_path / "labels")
    assert (found["rejected_annotations"], found["added"], found["unchanged"]) == (6, 1, len(run.instances))
    told = (tmp_path / "labels/rejects.csv").read_text()
    for number, reason in enumerate(
        ("RLE of size", "a polygon must", "it covers no", "category 99", "a bbox is")
    ):
        assert f"annotation {1000 + number},{reason}" in told.replace('"', ""), told


def test_settings_are_checked_at_once(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    assert bring(file, "gpkg", tmp_path / "labels", None, "--empty-images") == 2
    assert "run: gpkg needs it" in capsys.readouterr().err
    assert bring(tmp_path / "no.json", "coco", tmp_path / "labels", tmp_path / "no-run") == 2
    told = capsys.readouterr().err
    assert "no.json" in told
    assert "no-run" in told


def test_another_import_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    before = (tmp_path / "labels/run.json").read_bytes()
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    assert "holds this import already" in capsys.readouterr().out
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 2
    assert "file_version" in capsys.readouterr().err
    assert (tmp_path / "labels/run.json").read_bytes() == before
    assert bring(file, "coco", tmp_path / "more", run.folder, "--dry-run") == 0
    assert "24 unchanged" in capsys.readouterr().out
    assert not (tmp_path / "more").exists()


# Kills, storage, size


KILLED = """
import os, signal, sys
from segray.importer import write_labels
from segray.output import store
from segray.cli import main
from segray.output.folder import Output

write_labels._BUFFER_BYTES = 1
store.MERGE_BYTES = write_labels.MERGE_BYTES = 1
left = int(sys.argv[1])
move = Output._move

def dying(self, *arguments, **more):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return move(self, *arguments, **more)

Output._move = dying
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("writes", [0, 1, 2, 4, 7, 11])
def test_killed_and_run_again(writes: int, run: Run, tmp_path: Path) -> None:
    """By SIGKILL, at a write; each image is a commit and a part of its own."""
    file = export(run.folder, "coco", tmp_path / "one.json")
    output = tmp_path / "labels"
    arguments = ["import", str(file), "--as", "coco", "--run", str(run.folder), "--output", str(output)]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(writes), *arguments], cwd=ROOT, capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (output / "run.json").exists()
    assert main(arguments) == 0
    assert bring(file, "coco", tmp_path / "whole", run.folder) == 0
    for table in ("images", "instances"):
        assert rows(output, table) == rows(tmp_path / "whole", table)


def test_from_a_bucket_into_a_bucket(
    s3_server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    for file in run.folder.rglob("*.*"):
        s3_server.put(f"import/run/{file.relative_to(run.folder)}", file.read_bytes())
    there = s3_server.url("import/run")
    for kind, name in (("coco", "one.json"), ("yolo", "yolo")):
        whole = ["export", there, "--as", kind, "--output", s3_server.url(f"import/{name}")]
        assert main(whole) == 0
        output = s3_server.url(f"import/{kind}-labels")
        command = [
            "import",
            s3_server.url(f"import/{name}"),
            "--as",
            kind,
            "--run",
            there,
            "--output",
            output,
        ]
        assert main(command) == 0
        record = json.loads(s3_server.get(f"import/{kind}-labels/run.json"))
        assert record["counts"]["unchanged"] == len(run.instances)


PEAK = r"""
import pathlib, re, sys
from segray.cli import main
assert main(sys.argv[1:]) == 0
print(int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """MiB of the process: a file of 3,000 outlines of 200 points, 12 MB, and one of 15,000."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = (np.stack([np.cos(angle), np.sin(angle)], 1) * 15 + 20).round(6).ravel().tolist()
    peak = []
    for number in (300, 1_500):
        images = [
            {"id": each, "file_name": f"{each}.jpg", "height": HEIGHT, "width": WIDTH}
            for each in range(number)
        ]
        annotations = [
            {"id": each, "image_id": each // 10, "category_id": 1, "segmentation": [ring]}
            for each in range(10 * number)
        ]
        run = made(tmp_path / f"run-{number}", names=("a.jpg",))
        address = {name: run.images[0][name] for name in ("height", "width", "status")}
        run.images = [
            {**address, "image_id": f"{each:032x}", "uri": f"file:///{each}.jpg"} for each in range(number)
        ]
        write(run)
        file = tmp_path / f"{number}.json"
        content = {"annotations": annotations, "images": images, "categories": [{"id": 1, "name": "car"}]}
        file.write_text(json.dumps(content))
        arguments = ["--as", "coco", "--run", str(run.folder), "--output", str(tmp_path / f"labels-{number}")]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "import", str(file), *arguments],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert f"{10 * number:,} instances" in done.stdout
        peak.append(float(done.stdout.splitlines()[-1]))
    assert peak[1] < peak[0] + 60, peak
