"""Files as each program writes them: what is read of them, and what costs one annotation."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco_mask

from segray.importer.labelstudio import unpacked
from segray.palette import palette
from tests.export.made import CLASSES, HEIGHT, WIDTH, Run, made
from tests.importer.made import bring, counts, export, pixels, rows

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
