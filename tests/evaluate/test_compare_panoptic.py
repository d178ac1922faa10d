"""`segray evaluate` of panoptic outputs: equal to panopticapi's loop over the files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segray.cli import main
from segray.output.panoptic import png_of
from tests.panoptic import panopticapi
from tests.panoptic.made import Made, ids_of_png, made, random_map, write

SKY = 1002


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two outputs of the same images: masks and maps of the second are partly others."""
    folder, random = tmp_path_factory.mktemp("both"), np.random.default_rng(5)
    run = made(folder / "true", count=8)
    outputs = folder / "true/out", folder / "found/out"
    assert main(fuse(run, outputs[0])) == 0
    other = Made(folder / "found/labels", folder / "found/maps", run.images, run.rows, run.masks, run.labels)
    other.rows = [row for row in run.rows if random.random() < 0.8]
    for row in other.rows[::5]:
        row["category_id"], row["category"] = 1, "person"
    for image_id in list(run.labels)[::2]:
        other.labels[image_id] = random_map(random, (50, 70))
    write(other)
    assert main(fuse(other, outputs[1])) == 0
    return outputs


def fuse(run: Made, output: Path) -> list[str]:
    return ["panoptic", "--instances", str(run.instances), "--maps", str(run.maps), "--output", str(output)]


def scores(predictions: Path, labels: Path, output: Path, *more: str, code: int = 0) -> dict[str, Any]:
    both = ("--predictions", str(predictions), "--labels", str(labels))
    assert main(["evaluate", *both, "--output", str(output), *more]) == code
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def by_loop(predictions: Path, labels: Path) -> dict[str, dict[str, float]]:
    """PQ of panopticapi over two outputs, by their panoptic.json."""
    contents = [json.loads((folder / "panoptic.json").read_text()) for folder in (labels, predictions)]
    stat = panopticapi.new_stat()
    for true, found in zip(*(each["annotations"] for each in contents), strict=True):
        assert true["file_name"] == found["file_name"]
        maps = [ids_of_png(folder / "panoptic" / true["file_name"]) for folder in (labels, predictions)]
        panopticapi.count(stat, maps[0], true["segments_info"], maps[1], found["segments_info"])
    isthing = {each["id"]: bool(each["isthing"]) for each in contents[0]["categories"]}
    kinds = (("all", None), ("things", True), ("stuff", False))
    return {name: panopticapi.pq_average(stat, isthing, only) for name, only in kinds}


def test_two_outputs(both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores(both[1], both[0], tmp_path)
    true = by_loop(both[1], both[0])
    assert {name: pytest.approx(figures) for name, figures in found["metrics"].items()} == true
    assert 0.1 < found["metrics"]["all"]["pq"] < 0.9
    assert (found["task"], found["counts"]) == (
        "panoptic", {"labels": 8, "compared": 8, "failed": 0, "extra": 0},
    )  # fmt: skip
    rows = {row["class"]: row for row in found["classes"]}
    assert rows.keys() == {"person", "car", "road", "sky", "tree"}
    assert (rows["car"]["kind"], rows["sky"]["kind"]) == ("thing", "stuff")
    told = capsys.readouterr().out
    assert "images are matched by image_id" in told
    assert "stuff: pq " in told
    again = scores(both[1], both[0], tmp_path / "again")
    assert again["digests"] == found["digests"]


def test_coco_panoptic_of_another_program(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Names in place of ids, ids of three bytes, categories numbered otherwise, one that we do not have."""
    content = json.loads((both[0] / "panoptic.json").read_text())
    (tmp_path / "truth").mkdir()
    numbers = {each["id"]: place + 500 for place, each in enumerate(content["categories"])}
    for each in content["categories"]:
        each["id"], each["name"] = numbers[each["id"]], each["name"].upper()
    names = {}
    for each in content["images"]:
        names[each["id"]] = each["file_name"] = Path(each.pop("file_name")).name
        del each["segray_image_id"]
    for each in content["annotations"]:
        ids = ids_of_png(both[0] / "panoptic" / each["file_name"])
        each["file_name"] = names[each["image_id"]].replace(".jpg", ".png")
        for info in each["segments_info"]:
            info["category_id"] = numbers[info["category_id"]]
            ids[ids == info["id"]] = info["id"] * 100_003
            info["id"] *= 100_003
        (tmp_path / "truth" / each["file_name"]).write_bytes(png_of(ids.astype(np.uint32)))
    (tmp_path / "truth.json").write_text(json.dumps(content))
    found = scores(both[1], tmp_path / "truth.json", tmp_path / "scores")
    assert {name: pytest.approx(each) for name, each in found["metrics"].items()} == by_loop(both[1], both[0])
    shutil.move(tmp_path / "truth", tmp_path / "elsewhere")
    moved = scores(both[1], tmp_path / "truth.json", tmp_path / "s", "--root", str(tmp_path / "elsewhere"))
    assert moved["metrics"] == found["metrics"]
    assert moved["digests"] == found["digests"]


def test_a_category_that_labels_lack_is_void(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, stat = json.loads((both[0] / "panoptic.json").read_text()), panopticapi.new_stat()
    other = json.loads((both[1] / "panoptic.json").read_text())
    content["categories"] = [each for each in content["categories"] if each["name"] != "sky"]
    (tmp_path / "truth").mkdir()
    for true, found in zip(content["annotations"], other["annotations"], strict=True):
        maps = [ids_of_png(folder / "panoptic" / true["file_name"]) for folder in both]
        for each, ids in zip((true, found), maps, strict=True):
            kept = [info for info in each["segments_info"] if info["category_id"] != SKY]
            ids[~np.isin(ids, [info["id"] for info in kept])] = 0
            each["segments_info"] = kept
        (tmp_path / "truth" / true["file_name"]).write_bytes(png_of(maps[0].astype(np.uint32)))
        panopticapi.count(stat, maps[0], true["segments_info"], maps[1], found["segments_info"])
    (tmp_path / "truth.json").write_text(json.dumps(content))
    found = scores(both[1], tmp_path / "truth.json", tmp_path / "scores")
    isthing = {each["id"]: bool(each["isthing"]) for each in content["categories"]}
    assert found["metrics"]["all"] == pytest.approx(panopticapi.pq_average(stat, isthing, None))
    assert "predicted segments of categories that labels lack, void here: sky" in capsys.readouterr().out


def test_the_truth_against_itself(both: tuple[Path, Path], tmp_path: Path) -> None:
    found = scores(both[0], both[0] / "panoptic.json", tmp_path)
    assert found["metrics"]["all"] == {"pq": 1, "sq": 1, "rq": 1, "classes": 5}


def test_problems_are_named(both: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(both[1], broken)
    files = sorted((broken / "panoptic").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(files[2])
    Image.fromarray(np.full((50, 70, 3), 77, np.uint8)).save(files[3])
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(files[4])
    found = scores(broken, both[0], tmp_path, code=3)
    reasons = "\n".join(each["reason"] for each in found["failed"])
    assert found["counts"] == {"labels": 8, "compared": 3, "failed": 5, "extra": 0}
    for text in (
        "prediction: No such file", "prediction: PNG: ", "prediction: 4 x 3 pixels, its truth 70 x 50",
        "prediction: pixels of segment 5066061, which is not in its list", "prediction: mode L; ",
    ):  # fmt: skip
        assert text in reasons


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it is not JSON"),
        ('{"categories": [], "images": [], "annotations": [{"image_id": 3}]}', "not COCO-panoptic"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": [], "annotations": []}', "not COCO-panoptic"),
        ("[]", "not COCO-panoptic"),
    ],
)
def test_labels_that_are_not_panoptic(
    content: str, message: str, both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(content)
    arguments = ["evaluate", "--predictions", str(both[0]), "--labels", str(tmp_path / "a.json")]
    assert main([*arguments, "--output", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err


def test_labels_of_another_kind(both: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["evaluate", "--predictions", str(both[0]), "--labels", str(both[0].parent / "maps/labels")]
    assert main([*arguments, "--output", str(tmp_path)]) == 2


def test_options_that_panoptic_has_not(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--predictions", str(both[0]), "--labels", str(both[0]))
    assert main(["evaluate", *runs, "--output", str(tmp_path), "--group-by", "camera", "--split", "val"]) == 2
    assert "group_by, split: leave it out" in capsys.readouterr().err
