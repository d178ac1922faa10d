"""Files that are odd, contradictory or hostile: each costs what it names, and nothing else."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from PIL import ExifTags, Image

from segray.errors import ItemError
from segray.export.table import Instance
from segray.importer.categories import Categories
from segray.importer.compare import Found, compared
from segray.importer.image_sizes import sizes_of
from segray.sources.local import local_source
from segray.storage import StorageSettings
from tests.export.made import HEIGHT, UTM, WIDTH, Run, made, write
from tests.importer.made import bring, counts, encoded, export, rows

SIZE = {"height": HEIGHT, "width": WIDTH}


def coco(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    """A COCO file of one class; annotations are boxes."""
    file = folder / "labels.json"
    whole = [{"id": place, "category_id": 1, **each} for place, each in enumerate(annotations)]
    content = {"images": images, "annotations": whole, "categories": [{"id": 1, "name": "car"}]}
    file.write_text(json.dumps(content))
    return file


# The run


def test_a_run_with_a_mask_of_another_size_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its IoU with a drawn box would not end."""
    bad = made(tmp_path / "run")
    mask = np.zeros((HEIGHT + 8, WIDTH), bool)
    mask[2:9, 3:20] = True
    bad.instances[0]["segmentation"] = encoded(mask)
    write(bad)
    file = coco(tmp_path, [{"id": 1, "file_name": "a.jpg", **SIZE}], [{"image_id": 1, "bbox": [3, 2, 17, 6]}])
    assert bring(file, "coco", tmp_path / "labels", bad.folder) == 2
    told = capsys.readouterr().err
    assert f"a mask of image {bad.instances[0]['image_id']} has 60 x 48, not 60 x 40" in told


def test_a_crowd_stays_one_where_the_format_cannot_say(tmp_path: Path) -> None:
    row = Instance("a", "a-1", 1, "car", 0.9, 9, 2, 2, 3, 3, 10, 10, "", 1, None, None)
    mask = np.zeros((10, 10), bool)
    mask[2:5, 2:5] = True
    text = encoded(mask)["counts"]
    rows_of = [Instance(**{**{name: getattr(row, name) for name in row.__slots__}, "counts": text})]
    for said, crowd in ((None, True), (True, True), (False, False)):
        ((found,), tally) = compared([Found(text, 1, "car", None, said)], rows_of, (10, 10))
        assert (found.crowd, tally["unchanged"]) == (crowd, 1)
    run = made(tmp_path / "run")
    run.instances[0]["iscrowd"] = 1
    write(run)
    folder = export(run.folder, "masks", tmp_path / "masks")
    assert bring(folder, "masks", tmp_path / "labels", run.folder) == 0
    assert sum(each["iscrowd"] for each in rows(tmp_path / "labels", "instances")) == 1


def test_a_new_instance_never_has_the_number_of_a_removed_one(run: Run, tmp_path: Path) -> None:
    file = export(run.folder, "coco", tmp_path / "one.json")
    content = json.loads(file.read_text())
    own = [each for each in content["annotations"] if each["image_id"] == 1]
    last = max(own, key=lambda each: str(each["segray_instance_id"]))
    content["annotations"].remove(last)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[0, 0] = True
    content["annotations"].append({"id": 999, "image_id": 1, "category_id": 1, "segmentation": encoded(mask)})
    file.write_text(json.dumps(content))
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    found = counts(tmp_path / "labels")
    assert (found["added"], found["removed"]) == (1, 1)
    ids = {each["instance_id"] for each in rows(tmp_path / "labels", "instances")}
    assert last["segray_instance_id"] not in ids
    assert last["segray_instance_id"].replace("-0000007", "-0000008") in ids


# Which image


@pytest.mark.parametrize("without_run", [False, True])
def test_folders_come_before_file_names(
    without_run: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two images of one name, one is another's; where the folders do not say, those left over count."""
    site = tmp_path / "site1"
    site.mkdir()
    names = ("1.png", "2.png", "3.png")
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(site / name)
    run = made(tmp_path / "run", names=(*names, "4.png"))
    for image, name in zip(run.images, names, strict=False):
        image |= {"uri": f"file://{site / name}", "member": None}
    write(run)
    meant = ["site2/1.png", str(site / "1.png"), "D:\\task\\2.png", f"{tmp_path}/site2/3.png"]
    images = [{"id": place, "file_name": name, **SIZE} for place, name in enumerate(meant)]
    boxes = [{"image_id": place, "bbox": [place, 0, 3, 3]} for place in range(len(meant))]
    file = coco(tmp_path, images, boxes)
    where = ["--images", str(site)] if without_run else []
    assert bring(file, "coco", tmp_path / "labels", None if without_run else run.folder, *where) == 3
    assert "1 images were found by their file name alone" in capsys.readouterr().out
    found = {row["image_id"]: row["uri"][-5:] for row in rows(tmp_path / "labels", "images")}
    left = {found[row["image_id"]]: row["bbox"][0] for row in rows(tmp_path / "labels", "instances")}
    assert left == {"1.png": 1, "2.png": 2}
    rejected = (tmp_path / "labels/rejects.csv").read_text().splitlines()[1:]
    assert len(rejected) == 2
    assert ("no image has" if without_run else "its folder differs") in rejected[0]
    assert rejected[1].startswith("site2/1.png,,the file has image")
    assert (counts(tmp_path / "labels")["by_name_alone"], counts(tmp_path / "labels")["rejected"]) == (1, 2)


def test_sizes_are_those_of_the_images(tmp_path: Path) -> None:
    """Upright; by the first bytes where they tell: noise makes files of more, and WebP is read as a whole."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 500, 3), np.uint8))
    noise.save(tmp_path / "big.png")
    noise.save(tmp_path / "big.webp", lossless=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "broken.jpg").write_bytes(b"none")
    names = ("big.png", "big.webp", "turned.jpg", "broken.jpg", "big.png")
    sources = [local_source(str(tmp_path / name)) for name in names]
    *good, broken, last = sizes_of(sources, StorageSettings(), 10**6)
    assert [*good, last] == [(400, 500), (400, 500), (WIDTH, HEIGHT), (400, 500)]
    assert isinstance(broken, ItemError)
    sides = {"big.png": (400, 500), "big.webp": (400, 501), "turned.jpg": (HEIGHT, WIDTH)}
    images = [
        {"id": place, "file_name": name, "height": size[0], "width": size[1]}
        for place, (name, size) in enumerate(sides.items())
    ]
    file = coco(tmp_path, images, [{"image_id": 0, "bbox": [1, 1, 3, 3]}])
    assert bring(file, "coco", tmp_path / "labels", None) == 3
    assert [row["uri"][-7:] for row in rows(tmp_path / "labels", "images")] == ["big.png"]
    told = (tmp_path / "labels/rejects.csv").read_text()
    assert "501 x 400 pixels in the file, 500 x 400 in the image" in told
    assert f"{WIDTH} x {HEIGHT} pixels in the file, {HEIGHT} x {WIDTH} in the image" in told


# The file


def test_an_image_id_twice_is_refused_and_the_corrected_file_takes_the_output(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": 1, "file_name": name, **SIZE} for name in ("a.jpg", "b.png")]
    box = {"bbox": [3, 2, 17, 6]}
    file = coco(tmp_path, images, [{"image_id": 1, **box}, {"image_id": 7, **box}])
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 2
    assert "images need ids of their own, two have 1" in capsys.readouterr().err
    assert not [*(tmp_path / "labels").rglob("*.parquet")]
    coco(tmp_path, [{"id": 1, "file_name": "nowhere.jpg", **SIZE}], [])
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 2
    assert "none of its 1 images is imported" in capsys.readouterr().err
    images[1]["id"] = 2
    coco(tmp_path, images, [{"image_id": 1, **box}, {"image_id": 7, **box}])
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 3
    found = counts(tmp_path / "labels")
    assert (found["items"], found["instances"], found["rejected"]) == (2, 1, 1)


def test_only_masks_and_outlines_may_lack_a_class() -> None:
    """And never by what the file happened to name before."""
    classes = Categories({})
    classes.of("cat", None)
    for lacking in (classes, Categories({1: "car"})):
        with pytest.raises(ItemError, match="it has no class"):
            lacking.of(None, None)
    classes = Categories({1: "car"}, may_lack=True)
    classes.of("dog", None)
    assert classes.of(None, None) == (1, "car")
    classes.declare([(None, "dog")])
    with pytest.raises(ItemError, match="it has no class"):
        classes.of(None, None)


def test_regions_of_label_studio_without_id(run: Run, tmp_path: Path) -> None:
    """Each is one of its own; values that are no shape cost their region."""

    def region(**value: Any) -> dict[str, Any]:
        kind = "brushlabels" if "rle" in value else "rectanglelabels"
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        return {"id": None, "type": kind, "value": {kind: ["car"], **value}, **size}

    box = {"x": 10, "y": 10, "width": 20, "height": 20}
    result = [region(**box), region(**{**box, "x": 60}), region(rle=10**9), region(x=1)]
    data = {"image": "a.jpg", "segray_image_id": {"x": 1}}
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"data": data, "annotations": [{"result": result}]}]))
    assert bring(file, "labelstudio", tmp_path / "labels", run.folder) == 3
    assert sorted(each["bbox"][0] for each in rows(tmp_path / "labels", "instances")) == [6, 36]
    told = (tmp_path / "labels/rejects.csv").read_text()
    assert "region #3,its value is broken" in told
    assert "region #4,its value is broken" in told


def test_sizes_that_a_cvat_file_makes_up(run: Run, tmp_path: Path) -> None:
    huge = '<mask label="car" left="0" top="0" width="100000" height="100000" rle="10000000000"/>'
    long = f'<mask label="car" left="0" top="0" width="1" height="1" rle="{10**30}"/>'
    box = '<box label="car" xtl="1" ytl="1" xbr="5" ybr="5"/>'
    file = tmp_path / "annotations.xml"
    file.write_text(
        f'<annotations><image name="a.jpg" width="²" height="40">{huge}{long}{box}</image></annotations>'
    )
    assert bring(file, "cvat", tmp_path / "labels", run.folder) == 3
    assert counts(tmp_path / "labels")["instances"] == 1
    told = (tmp_path / "labels/rejects.csv").read_text()
    assert "shape 1,a mask of 100000 x 100000 in an image of 60 x 40" in told
    assert "shape 2,run lengths do not sum to 1 x 1" in told


def test_numbers_that_are_none(located: Run, run: Run, tmp_path: Path) -> None:
    """Classes of outlines as text, NaN and numbers; an index of YOLO that is infinite."""
    (place,) = (each["geometry"] for each in located.instances[:1])
    frame = geopandas.GeoDataFrame(
        {
            "image_id": [located.images[0]["image_id"]] * 3,
            "category_id": ["abc", None, "1.0"],
            "category": [3, 3, None],
        },
        geometry=[shapely.from_wkb(place)] * 3,
        crs=UTM,
    )
    frame.to_file(tmp_path / "one.gpkg")
    assert bring(tmp_path / "one.gpkg", "gpkg", tmp_path / "labels", located.folder) == 3
    assert "category_id abc is no number" in (tmp_path / "labels/rejects.csv").read_text()
    assert {each["category"] for each in rows(tmp_path / "labels", "instances")} == {"3", "car"}
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/classes.txt").write_text("car\n")
    (tmp_path / "yolo/labels/a.txt").write_text("inf .1 .1 .2 .2\n0 .5 .5 .2 .2\n")
    (tmp_path / "yolo/labels/empty.txt").write_text("0 .5 .5 .2 .2\n")
    assert bring(tmp_path / "yolo", "yolo", tmp_path / "boxes", run.folder) == 3
    assert "line 1,not `class x y" in (tmp_path / "boxes/rejects.csv").read_text()


def test_tables_of_masks_with_values_that_are_none(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "masks"
    (folder / "masks").mkdir(parents=True)
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(folder / "masks/a.png")
    for name in ("classes.csv", "instances.csv"):
        (folder / name).write_text("value,category\nzero,sky\n1,car\n")
        assert bring(folder, "masks", tmp_path / "labels", run.folder) == 2
        assert f"{name}, row 1: value 'zero' is no whole number" in capsys.readouterr().err
        (folder / name).unlink()
    big = made(tmp_path / "run")
    for each in big.instances:
        each["category_id"] += 70_000
    write(big)
    (folder / "classes.csv").write_text("value,category\n0,sky\n1,car\n")
    assert bring(folder, "masks", tmp_path / "labels", big.folder) == 2
    assert "is no pixel of 16 bits" in capsys.readouterr().err


def test_a_mark_of_utf_8_is_passed_over_and_panoptic_is_no_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    image = {"id": 1, "file_name": run.annotated[0]["uri"], **SIZE}
    file = coco(tmp_path, [image], [{"image_id": 1, "bbox": [3, 2, 17, 6]}])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert bring(file, "coco", tmp_path / "labels", run.folder) == 0
    assert counts(tmp_path / "labels")["instances"] == 1
    file = coco(tmp_path, [image], [{"image_id": 1, "segments_info": [], "file_name": "a.png"}])
    assert bring(file, "coco", tmp_path / "more", run.folder) == 2
    assert "COCO-panoptic, not COCO" in capsys.readouterr().err
