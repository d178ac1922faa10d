"""What comes back is what was corrected: identity, edits, what cannot be used, kills, and into training."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from pycocotools import mask as coco_mask

from segray.cli import main
from segray.data.coco_listing import AnnotatedPair, instances_of, list_coco
from segray.data.label_listing import list_labels
from segray.storage import StorageSettings
from tests.export.made import CLASSES, HEIGHT, WIDTH, Run, made, write
from tests.importer.made import SUFFIX, bring, counts, encoded, export, pixels, rows, scenes, submitted
from tests.readme_data import NUCLEI, ROOT
from tests.servers import Server

UNCHANGED = ("changed", "reclassified", "added", "removed", "rejected")
"""Counts that are 0 where nothing was edited."""


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
    return {
        "changed": [one["segray_instance_id"]],
        "class": [two["segray_instance_id"]],
        "removed": [three["segray_instance_id"]],
    }


@pytest.mark.parametrize("with_ids", [True, False])
def test_what_was_edited_is_counted(with_ids: bool, run: Run, tmp_path: Path) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    ids = edited(content, run)
    if not with_ids:  # as programs write it that keep COCO's own fields alone
        for image in content["images"]:
            del image["segray_image_id"]
        for each in content["annotations"]:
            each.pop("segray_instance_id", None)
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


def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    file = export(run.folder, "coco", tmp_path / "one.json")
    run.images[0]["image_id"] = "../../victim"
    write(run)
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 2
    assert f"run: {run.folder} has the image_id '../../victim'" in capsys.readouterr().err


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


@pytest.mark.parametrize("writes", [0, 2, 5, 11])
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
    """MiB of the process: a file of 2,000 outlines of 200 points, 8 MB, and one of 8,000."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = (np.stack([np.cos(angle), np.sin(angle)], 1) * 15 + 20).round(6).ravel().tolist()
    peak = []
    for number in (200, 800):
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
