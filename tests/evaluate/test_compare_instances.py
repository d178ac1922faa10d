"""`segray evaluate` of instances: outputs of annotate and COCO results, against pycocotools on the files."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray.cli import main
from tests import servers
from tests.evaluate.made import Bytes, ledger_row, nested, uri_of, write_annotated

SIZE = (200, 240)
CATEGORIES = {7: "Tree", 20: "roof", 33: "car"}
STATS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip


def ellipse(x: float, y: float, width: float, height: float) -> Bytes:
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    inside = ((cols - x) / width) ** 2 + ((rows - y) / height) ** 2 <= 1
    mask: Bytes = inside.astype(np.uint8, order="F")
    return mask


def polygon(x: float, y: float, width: float, height: float) -> list[float]:
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return np.stack([x + width * np.cos(turns), y + height * np.sin(turns)], axis=1).ravel().tolist()


class Scene:
    """Images with truth in all three forms that COCO has, and detections near them."""

    def __init__(self, images: int = 6) -> None:
        self.truth: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        }
        self.found: list[dict[str, Any]] = []
        """image_id, category_id, score, mask."""
        for number in range(images):
            image_id = 1000 - 7 * number
            name = f"{number % 2}/{number}.jpg"
            self.truth["images"].append(
                {"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            )
            self._fill(image_id, np.random.default_rng(number), empty=number == 3)

    def _fill(self, image_id: int, random: np.random.Generator, *, empty: bool) -> None:
        for rank in range(0 if empty else 9):
            place = random.uniform((20, 20, 4, 4), (220, 180, 90, 80))
            category = int(random.choice([7, 20]))
            self._annotate(image_id, category, place, form=rank % 3, crowd=rank == 8)
            if random.random() < 0.8:
                moved = ellipse(*(place + random.uniform(-4, 4, 4) * (1, 1, 0, 0)))
                self._detect(image_id, category, float(random.random()), moved)
        self._detect(image_id, 20, float(random.random()), ellipse(20, 20, 9, 9))

    def _annotate(self, image_id: int, category: int, place: Any, *, form: int, crowd: bool) -> None:
        rle = coco_mask.encode(ellipse(*place))
        forms = (
            [polygon(*place)],
            {"size": list(SIZE), "counts": rle["counts"].decode()},
            {"size": list(SIZE), "counts": _lengths(rle)},
        )
        segmentation = forms[2 if crowd else form]
        self.truth["annotations"].append(
            {
                "id": 1 + len(self.truth["annotations"]),
                "image_id": image_id,
                "category_id": category,
                "segmentation": segmentation,
                "area": 0.9 * float(coco_mask.area(rle)),  # not that of the pixels: it decides what is small
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": int(crowd),
            }
        )

    def _detect(self, image_id: int, category: int, score: float, mask: Bytes) -> None:
        row = {"image_id": image_id, "category_id": category, "score": float(np.float32(score)), "mask": mask}
        self.found.append(row)

    def results(self, *, masks: bool = True, boxes: bool = False) -> list[dict[str, Any]]:
        """As COCO results."""
        rows = []
        for each in self.found:
            row = {name: each[name] for name in ("image_id", "category_id", "score")}
            rle = coco_mask.encode(each["mask"])
            if masks:
                row["segmentation"] = {"size": list(SIZE), "counts": rle["counts"].decode()}
            if boxes:
                row["bbox"] = _wider(coco_mask.toBbox(rle).tolist())
            rows.append(row)
        return rows

    def ledger(self, folder: str) -> dict[int, dict[str, Any]]:
        """Rows of an output of `annotate`, by image id, with other numbers for the categories."""
        rows = {
            image["id"]: ledger_row(f"{folder}/{image['file_name']}", SIZE) for image in self.truth["images"]
        }
        for each in self.found:
            names = {7: (1, "tree"), 20: (2, "roof"), 33: (3, "car")}
            found = rows[each["image_id"]]["found"]
            found.append(nested(each["mask"], names[each["category_id"]], each["score"], len(found)))
        return rows


def _lengths(rle: Any) -> list[int]:
    flat = coco_mask.decode(rle).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, len(flat)]).tolist()
    return [0, *lengths] if flat[0] else lengths


def _wider(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] + 1, box[3]]


def oracle(truth: Path, results: list[dict[str, Any]], kind: str, most: int = 100) -> list[float]:
    """COCOeval as its own demo calls it."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes([dict(row) for row in results]), kind)
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats.tolist()
    if most != 100:  # `summarize` looks for 100 in the first figure
        precision = evaluation.eval["precision"][..., 0, evaluation.params.maxDets.index(most)]
        return [float(precision[precision > -1].mean())]
    assert -1 not in stats
    return [float(value) for value in stats]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def evaluate(*options: object) -> int:
    return main(["evaluate", *map(str, options)])


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def stats(record: dict[str, Any], kind: str) -> list[float]:
    return [record["metrics"][kind][name] for name in STATS]


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def truth(tmp_path: Path, scene: Scene) -> Path:
    return write(tmp_path / "truth.json", scene.truth)


def options(tmp_path: Path, truth: Path) -> tuple[object, ...]:
    return "--labels", truth, "--output", tmp_path / "out", "--predictions"


def test_results_with_masks(
    tmp_path: Path, scene: Scene, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = scene.results()
    given = (*options(tmp_path, truth), write(tmp_path / "results.json", results))
    assert evaluate(*given) == 0
    record = metrics(tmp_path / "out")
    for kind in ("segm", "bbox"):
        assert stats(record, kind) == pytest.approx(oracle(truth, results, kind), abs=1e-12)
    assert 0.1 < record["metrics"]["segm"]["ap"] < record["metrics"]["bbox"]["ap"] < 0.9
    assert record["counts"] == {"labels": 6, "compared": 6, "failed": 0, "extra": 0}
    crowds = sum(each["iscrowd"] for each in scene.truth["annotations"])
    assert record["instances"]["crowds"] == crowds == 5
    assert record["instances"]["labels"] == len(scene.truth["annotations"]) - crowds
    assert record["instances"]["predictions"] == len(results)
    assert [row["class"] for row in record["classes"]] == ["Tree", "roof"]
    mean = np.mean([row["segm_ap"] for row in record["classes"]])
    assert record["metrics"]["segm"]["ap"] == pytest.approx(mean)
    said = capsys.readouterr().out
    assert f"ap {record['metrics']['segm']['ap']:.4f}" in said
    assert evaluate(*given, "--detections", 3) == 0
    record = metrics(tmp_path / "out")
    few = oracle(truth, results, "segm", most=3)
    assert record["metrics"]["segm"]["ap"] == pytest.approx(few[0], abs=1e-12)
    every = oracle(truth, results, "segm", most=len(results))[0]
    assert record["cut"]["ap_with_all"]["segm"] == pytest.approx(every, abs=1e-12)
    numbers = Counter((each["image_id"], each["category_id"]) for each in results)
    cut = len({image for (image, _), number in numbers.items() if number > 3})
    assert (record["cut"]["images"], record["cut"]["most"]) == (cut, max(numbers.values()))
    told = capsys.readouterr().out
    assert "more than 3 predictions of a category" not in said
    assert f"{cut} images have more than 3 predictions of a category, up to {max(numbers.values())}" in told
    assert f"segm AP {few[0]:.3f} so, {every:.3f} with all" in told
    assert "ar10" not in record["metrics"]["segm"]


def test_results_with_masks_and_boxes(tmp_path: Path, scene: Scene, truth: Path) -> None:
    """Masks are judged by the sizes of masks, as if there were no boxes: detectron2 does so too."""
    both = scene.results(boxes=True)
    assert evaluate(*options(tmp_path, truth), write(tmp_path / "results.json", both)) == 0
    record = metrics(tmp_path / "out")
    assert stats(record, "segm") == pytest.approx(oracle(truth, scene.results(), "segm"), abs=1e-12)
    assert stats(record, "bbox") == pytest.approx(oracle(truth, both, "bbox"), abs=1e-12)
    assert oracle(truth, both, "bbox") != oracle(truth, scene.results(), "bbox")


def test_results_with_boxes_alone(tmp_path: Path, scene: Scene) -> None:
    """Labels need no masks then."""
    for annotation in scene.truth["annotations"][::2]:
        annotation["segmentation"] = []
    truth = write(tmp_path / "truth.json", scene.truth)
    results = scene.results(masks=False, boxes=True)
    assert evaluate(*options(tmp_path, truth), write(tmp_path / "results.json", results)) == 0
    record = metrics(tmp_path / "out")
    assert stats(record, "bbox") == pytest.approx(oracle(truth, results, "bbox"), abs=1e-12)
    assert record["metrics"].keys() == {"bbox"}


def test_an_output_of_annotate(
    tmp_path: Path, scene: Scene, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two parts, categories of other numbers; the detector's own boxes are the boxes."""
    rows = list(scene.ledger(uri_of(tmp_path / "photos")).values())
    rows[2] |= {"uri": uri_of(tmp_path / "photos.zip"), "member": "0/2.jpg"}
    other = ledger_row(uri_of(tmp_path / "photos/9.jpg"), SIZE)
    other["found"] = [nested(ellipse(50, 50, 9, 9), (1, "tree"), 0.9, 0)]
    write_annotated(str(tmp_path / "found"), [rows[:4], [*rows[4:], other]])
    assert evaluate(*options(tmp_path, truth), tmp_path / "found") == 0
    record = metrics(tmp_path / "out")
    assert stats(record, "segm") == pytest.approx(oracle(truth, scene.results(), "segm"), abs=1e-12)
    boxes = oracle(truth, scene.results(boxes=True), "bbox")
    assert stats(record, "bbox") == pytest.approx(boxes, abs=1e-12)
    assert record["counts"] == {"labels": 6, "compared": 6, "failed": 0, "extra": 1}
    said = capsys.readouterr().out
    assert "categories are matched by name" in said
    assert "score of 0.05 or more" in said

    digests = record["digests"]
    write_annotated(str(tmp_path / "again"), [[*rows[::-1], other]])
    assert evaluate(*options(tmp_path, truth), tmp_path / "again") == 0
    assert metrics(tmp_path / "out")["digests"] == digests
    scene.found[0]["score"] += 0.01
    rows = list(scene.ledger(uri_of(tmp_path / "photos")).values())
    write_annotated(str(tmp_path / "other"), [rows])
    assert evaluate(*options(tmp_path, truth), tmp_path / "other") == 0
    assert metrics(tmp_path / "out")["digests"]["predictions"] != digests["predictions"]
    assert metrics(tmp_path / "out")["digests"]["labels"] == digests["labels"]


def test_images_that_cannot_be_compared_are_named(
    tmp_path: Path, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six: one not predicted, one rejected, one of another size, two with broken masks."""
    rows = scene.ledger(uri_of(tmp_path / "photos"))
    ids = [image["id"] for image in scene.truth["images"]]
    del rows[ids[0]]
    rows[ids[1]] = ledger_row(rows[ids[1]]["uri"], SIZE, rejected="it ends early")
    rows[ids[2]] |= {"height": 60}
    broken = next(each for each in scene.truth["annotations"] if each["image_id"] == ids[4])
    broken["segmentation"] = [[1, 2, 3, 4]]
    rows[ids[5]]["found"][0]["segmentation"]["counts"] = "11"
    truth = write(tmp_path / "truth.json", scene.truth)
    write_annotated(str(tmp_path / "found"), [list(rows.values())])
    assert evaluate(*options(tmp_path, truth), tmp_path / "found") == 3
    record = metrics(tmp_path / "out")
    assert record["counts"] == {"labels": 6, "compared": 1, "failed": 5, "extra": 0}
    assert {each["name"]: each["reason"] for each in record["failed"]} == {
        "0/0.jpg": "missing: no prediction of this name",
        "1/1.jpg": "prediction: rejected as corrupt: it ends early",
        "0/2.jpg": "prediction: 240 x 60 pixels, its truth 240 x 200",
        "0/4.jpg": f"truth: annotation {broken['id']}: a polygon must be x, y, x, y, … with at least three "
        "points",
        "1/5.jpg": "prediction: run lengths do not sum to 200 x 240 pixels",
    }
    assert record["instances"]["labels"] == 0  # image 3 has none
    assert "0/0.jpg: missing" in capsys.readouterr().out
    assert evaluate(*options(tmp_path, truth), tmp_path / "found", "--max-rejects", 0.9) == 0


def test_names_of_files_alone_and_names_that_are_twice(tmp_path: Path, scene: Scene) -> None:
    rows = scene.ledger("s3://bucket/other")
    for image_id, number in zip(rows, range(6), strict=True):
        rows[image_id]["uri"] = f"s3://bucket/other/{number}.jpg"
    twin = ledger_row("s3://bucket/more/5.jpg", SIZE)
    write_annotated(str(tmp_path / "found"), [[*rows.values(), twin]])
    truth = write(tmp_path / "truth.json", scene.truth)
    assert evaluate(*options(tmp_path, truth), tmp_path / "found") == 3
    record = metrics(tmp_path / "out")
    assert [each["name"] for each in record["failed"]] == ["1/5.jpg"]
    rows[next(iter(rows))]["uri"] = "s3://bucket/other/0/0.jpg"
    twin = ledger_row("s3://bucket/more/0/0.jpg", SIZE)
    write_annotated(str(tmp_path / "whole"), [[*rows.values(), twin]])
    assert evaluate(*options(tmp_path, truth), tmp_path / "whole") == 3
    (problem,) = metrics(tmp_path / "out")["failed"]
    assert problem["reason"].startswith("2 predictions have this name: s3://bucket/")
    scene.truth["images"][0]["file_name"] = scene.truth["images"][1]["file_name"] = "5.jpg"
    truth = write(tmp_path / "truth.json", scene.truth)
    assert evaluate(*options(tmp_path, truth), tmp_path / "found") == 3
    reasons = {each["name"]: each["reason"] for each in metrics(tmp_path / "out")["failed"]}
    assert reasons["5.jpg"] == "labels have 2 images of this name"


def test_categories_by_name_or_by_number(
    tmp_path: Path, scene: Scene, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = scene.ledger(uri_of(tmp_path / "photos"))
    for row in rows.values():
        for each in row["found"]:
            each["category"] = {"tree": "plant", "roof": " ROOF"}[each["category"]]
    write_annotated(str(tmp_path / "found"), [list(rows.values())])
    given = (*options(tmp_path, truth), tmp_path / "found")
    assert evaluate(*given) == 0
    record = metrics(tmp_path / "out")
    plants = sum(each["category_id"] == 7 for each in scene.found)
    assert record["instances"]["unknown_categories"] == {"plant": plants}
    roofs = [row for row in scene.results() if row["category_id"] == 20]
    assert stats(record, "segm") == pytest.approx(oracle(truth, roofs, "segm"), abs=1e-12)
    assert f"labels do not have: plant {plants}" in capsys.readouterr().out

    scene.truth["categories"] = [{"id": 1, "name": "1"}, {"id": 2, "name": "2"}]
    for annotation in scene.truth["annotations"]:
        annotation["category_id"] = {7: 1, 20: 2}[annotation["category_id"]]
    truth = write(tmp_path / "truth.json", scene.truth)
    assert evaluate(*given) == 2
    said = capsys.readouterr().err
    assert "no name in common; set categories to id" in said
    assert evaluate(*given, "--categories", "id") == 0
    assert stats(metrics(tmp_path / "out"), "segm")[0] > record["metrics"]["segm"]["ap"]


def test_names_that_labels_have_twice_do_not_tell(
    tmp_path: Path, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.truth["categories"].append({"id": 8, "name": "ROOF"})
    truth = write(tmp_path / "truth.json", scene.truth)
    write_annotated(str(tmp_path / "found"), [list(scene.ledger(uri_of(tmp_path / "photos")).values())])
    assert evaluate(*options(tmp_path, truth), tmp_path / "found") == 2
    assert "two categories have the same name" in capsys.readouterr().err


def test_equal_scores_stand_in_the_order_of_the_ids(tmp_path: Path, scene: Scene, truth: Path) -> None:
    """Ids fall while names rise; which of two equal scores comes first moves the precision."""
    for each in scene.found:
        each["score"] = float(np.float32(round(each["score"], 1)))
    results = scene.results()
    assert evaluate(*options(tmp_path, truth), write(tmp_path / "results.json", results)) == 0
    expected = oracle(truth, results, "segm")
    assert stats(metrics(tmp_path / "out"), "segm") == pytest.approx(expected, abs=1e-12)
    for image in scene.truth["images"]:
        image["id"] = 2000 - image["id"]
    for row in (*scene.truth["annotations"], *results):
        row["image_id"] = 2000 - row["image_id"]
    assert oracle(write(tmp_path / "turned.json", scene.truth), results, "segm") != expected


def test_nothing_true_and_nothing_found(tmp_path: Path, scene: Scene) -> None:
    scene.truth["annotations"].clear()
    results = write(tmp_path / "results.json", [])
    assert evaluate(*options(tmp_path, write(tmp_path / "truth.json", scene.truth)), results) == 0
    record = metrics(tmp_path / "out")
    assert record["counts"] == {"labels": 6, "compared": 6, "failed": 0, "extra": 0}
    assert record["metrics"]["segm"]["ap"] is None


def test_a_split_of_the_labels(tmp_path: Path, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    for number, image in enumerate(scene.truth["images"]):
        image["split"] = "test" if number < 2 else "train"
    truth = write(tmp_path / "truth.json", scene.truth)
    results = write(tmp_path / "results.json", scene.results())
    assert evaluate(*options(tmp_path, truth), results, "--split", "test") == 0
    assert metrics(tmp_path / "out")["counts"] == {"labels": 2, "compared": 2, "failed": 0, "extra": 4}
    assert "do not list" not in capsys.readouterr().out
    scene.truth["annotations"].append(scene.truth["annotations"][0] | {"image_id": 5})
    truth = write(tmp_path / "truth.json", scene.truth)
    assert evaluate(*options(tmp_path, truth), results, "--split", "test") == 0
    assert "1 annotations of images that labels do not list" in capsys.readouterr().out
    assert evaluate(*options(tmp_path, truth), results, "--split", "all") == 0
    assert metrics(tmp_path / "out")["counts"]["compared"] == 6
    assert evaluate(*options(tmp_path, truth), results, "--split", "val") == 2


def test_in_a_bucket(
    s3_server: servers.Server, tmp_path: Path, scene: Scene, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(scene.ledger(s3_server.url("photos")).values())
    write_annotated(s3_server.url("instances/found"), [rows[:2], rows[2:]], s3_server.storage)
    s3_server.put("instances/truth.json", truth.read_bytes())
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    given = [s3_server.url(f"instances/{name}") for name in ("found", "truth.json", "scores")]
    assert evaluate("--predictions", given[0], "--labels", given[1], "--output", given[2]) == 0
    record = json.loads(s3_server.get("instances/scores/metrics.json"))
    assert stats(record, "segm") == pytest.approx(oracle(truth, scene.results(), "segm"), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda truth: truth.clear(), 2, "it needs images, annotations and categories"),
        (lambda truth: truth["images"].clear(), 4, "no images: nothing"),
        (lambda truth: truth["images"].append({"id": 1}), 2, "image 1 has no file_name"),
        (lambda truth: truth["images"].append(truth["images"][0]), 2, "two have 1000"),
        (lambda truth: truth["images"][0].update(height=0), 2, "image 1000 has no height"),
        (lambda truth: truth["images"][0].update(id="x"), 2, "some ids of images are numbers"),
        (lambda truth: truth["categories"].append({"id": 7, "name": "x"}), 2, "categories need an id"),
        (lambda truth: truth["categories"].append({"id": 8, "name": "ROOF"}), 0, "predicted"),
        (lambda truth: truth["annotations"].extend(["x", {"image_id": [1]}]), 0, "predicted"),
        (lambda truth: truth["annotations"][0].update(category_id=[7]), 3, "predicted"),
        (lambda truth: truth["annotations"][0].update(bbox=[1, 2]), 3, "predicted"),
    ],
)
def test_labels_that_are_not_quite_coco(
    tmp_path: Path, scene: Scene, capsys: pytest.CaptureFixture[str], change: Any, code: int, said: str
) -> None:
    change(scene.truth)
    truth = write(tmp_path / "truth.json", scene.truth)
    results = write(tmp_path / "results.json", scene.results())
    assert evaluate(*options(tmp_path, truth), results) == code
    assert said in capsys.readouterr().err
    assert (tmp_path / "out").exists() == (code in (0, 3))


def test_predictions_that_are_none(
    tmp_path: Path, scene: Scene, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(content: object, code: int = 2) -> str:
        given = tmp_path / "results.json"
        given.write_text(content if isinstance(content, str) else json.dumps(content))
        assert evaluate(*options(tmp_path, truth), given) == code
        return capsys.readouterr().err

    results = scene.results(boxes=True)
    assert "it is not JSON" in told("{")
    assert "expected a list" in told(scene.truth)
    assert "result 1 has no score" in told([results[0], results[1] | {"score": None}])
    assert "result 0: an image_id is" in told([results[0] | {"image_id": [1]}])
    assert "result 0: a category_id is" in told([results[0] | {"category_id": "roof"}])
    del results[3]["segmentation"]
    assert f"{len(results) - 1} of {len(results)} results have a segmentation" in told(results)
    assert "nothing to compare" in told([row | {"image_id": 5} for row in scene.results()], 4)
    assert evaluate(*options(tmp_path, truth), tmp_path / "nowhere") == 2
    assert "neither an output of annotate nor" in capsys.readouterr().err
    assert evaluate(*options(tmp_path, tmp_path / "nowhere.json"), tmp_path / "nowhere") == 2
    assert "nowhere.json: no such file" in capsys.readouterr().err
    assert "0 predicted, 45 true instances" in told([], 0)
    assert metrics(tmp_path / "out")["metrics"]["segm"]["ap"] == 0.0  # nothing was found
