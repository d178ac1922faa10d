"""`segray compare` of label maps: the figures of `evaluate`, paired differences, costs, panels, a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import segray
from segray.cli import main
from segray.comparison.candidates import load_candidates, names_apart
from segray.comparison.measure import Measured, Task, counted, gflops_of, measure
from segray.comparison.semantic import SemanticData
from segray.comparison.settings import CompareSettings
from segray.data.labels import LabelRules
from segray.data.pair_reader import Example, Reader
from segray.data.pairs import list_pairs
from segray.errors import ItemError
from segray.evaluate.compare_model import Classifier, classified
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.precision_recall import Resampling, image_hash
from segray.models.architectures import Task as Kind
from segray.models.weights import load_weights
from segray.palette import palette
from segray.run import Problems
from segray.settings import without_environment
from segray.status import status_of
from segray.storage import StorageSettings
from tests.comparison import made
from tests.preview.made import scripts
from tests.sam_models import save

DRAWS = 40
STORAGE = StorageSettings()
PICKY = "python:tests.comparison.made:picky"


def compare(*options: object) -> int:
    return main(["compare", "--device", "cpu", *map(str, options)])


def scores_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and the models `a` and `b`."""
    found = tmp_path_factory.mktemp("compare")
    made.write_data(found / "data")
    for seed, name in enumerate("ab"):
        made.write_model(found / f"{name}/model.pt", seed, 4 + 2 * seed)
    return found


@pytest.fixture(scope="module")
def output(folder: Path) -> Path:
    """Of a run that was killed once its first measurement was there, and that was run again."""
    found = folder / "out"
    options = [
        *("--data", folder / "data", "--weights", f"{folder}/a/model.pt,{folder}/b/model.pt"),
        *("--output", found, "--device", "cpu", "--threads", 1, "--rounds", 1, "--round-s", 0.05),
        *("--draws", DRAWS, "--panels", 2, "--random-panels", 1, "--columns", 3),
    ]
    command = [sys.executable, "-m", "segray.cli", "compare", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until = time.monotonic() + 300
        while not (first := [*found.glob("_segray/measured/a-*.json")]) and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (found / "run.json").exists()
    assert status_of(str(found), STORAGE).state == "killed"
    files = [*first, *found.glob("scores/*.parquet")]
    assert len(files) == 3
    before = [path.stat().st_mtime_ns for path in files]
    assert compare(*options) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    return found


def test_the_figures_of_evaluate(folder: Path, output: Path) -> None:
    models = scores_of(output)["models"]
    assert [each["model"] for each in models] == ["a", "b"]
    for each in models:
        scored = segray.evaluate(
            weights=each["weights"], data=str(folder / "data"), output=str(folder / "scores"), device="cpu"
        ).record
        assert each["metrics"] == scored["metrics"]
        assert each["confusion"] == scored["confusion"]
        of_classes = [
            {name: row[name] for name in ("class", "iou", "dice", "recall")} for row in each["classes"]
        ]
        assert of_classes == [{name: row[name] for name in of_classes[0]} for row in scored["classes"]]
    assert models[0]["metrics"]["miou"] != models[1]["metrics"]["miou"]


def test_paired_differences_are_those_of_a_plain_loop(folder: Path, output: Path) -> None:
    """Each draw scores every image as often as its weight says, by both models alike."""
    pairs = [pair for pair in list_pairs(str(folder / "data"), STORAGE).pairs if pair.split == "test"]
    examples = Reader(LabelRules(3), 10**6, STORAGE).read(pairs)
    pictures = [
        (pair.name, each.pixels, each.classes)
        for pair, each in zip(pairs, examples, strict=True)
        if isinstance(each, Example)
    ]
    hashes = np.array([image_hash(name) for name, _, _ in pictures], np.uint64)
    weights = Resampling(hashes, DRAWS, 0).weights(0, DRAWS)
    drawn = []
    for name in "ab":
        found = [*classified(load_weights(f"{folder}/{name}/model.pt", STORAGE), pictures)]
        of_draws = []
        for row in weights:
            scores = SemanticScores(3)
            for times, (_, truth, classes) in zip(row, found, strict=True):
                for _ in range(times):
                    scores.add(truth, classes)
            of_draws.append(scores.compute()["miou"])
        drawn.append(np.array(of_draws))
    first, second = scores_of(output)["models"]
    assert first["intervals"]["miou"] == pytest.approx(np.percentile(drawn[0], [2.5, 97.5]).tolist())
    difference = second["difference"]["miou"]
    assert difference["difference"] == second["metrics"]["miou"] - first["metrics"]["miou"]
    low, high = np.percentile(drawn[1] - drawn[0], [2.5, 97.5])
    assert (difference["low"], difference["high"]) == (pytest.approx(low), pytest.approx(high))
    assert "difference" not in first


def test_costs(folder: Path, output: Path) -> None:
    for each, width in zip(scores_of(output)["models"], (4, 6), strict=True):
        model = load_weights(each["weights"], STORAGE)
        assert each["parameters"] == sum(tensor.numel() for tensor in model.module.parameters())
        assert each["file_bytes"] == Path(each["weights"]).stat().st_size
        assert each["input"] == {"height": 40, "width": 36}, "the most frequent size"
        assert each["images_per_s"] == each["rates"][0] > 1
        assert 50e6 < each["loaded_bytes"] <= each["peak_bytes"] < 4e9
        assert 0.001 < each["gflops"] * 4 / width < 0.02
    conditions = scores_of(output)["conditions"]
    assert (conditions["threads"], conditions["batch_size"], conditions["precision"]) == (1, 1, "fp32")


def test_operations_are_those_counted_by_hand() -> None:
    """2 for each multiplication with addition: 3 x 3 x 3 to 4 channels, then 4 to 2."""
    image = np.zeros((10, 12, 3), np.uint8)
    weights = "python:tests.comparison.made:convolutions"
    task = Task(weights, "semantic", STORAGE, "cpu", "fp32", 1, (image,), 1, 1, 0.1, 0.5, True)
    assert gflops_of(task) == 2 * (10 * 12) * (3 * 3 * 3 * 4 + 4 * 2) / 1e9


def task_of(weights: str, kind: Kind, image: NDArray[np.uint8]) -> Task:
    threads = torch.get_num_threads()
    return Task(weights, kind, STORAGE, "cpu", "fp32", threads, (image,), 1, 1, 0.01, 0.5, True)


def test_operations_of_a_detector_that_takes_bytes() -> None:
    task = task_of("python:tests.comparison.made:of_bytes", "instance", np.zeros((10, 12, 3), np.uint8))
    assert gflops_of(task) == 2 * (10 * 12) * 3 * 4 / 1e9


def test_a_failing_count_of_operations_costs_nothing_else() -> None:
    """What was measured before stays, with the reason."""
    found = Measured(3.0, 9, 200, 100, None)
    task = task_of(PICKY, "semantic", np.zeros((10, 90, 3), np.uint8))
    assert counted(task, found) == replace(found, uncounted="ValueError: too wide for me")
    none = counted(replace(task, images=(np.zeros((10, 12, 3), np.uint8),)), found)
    assert (none.gflops, none.uncounted) == (None, "the model computes nothing in torch that is counted")


def test_sam_has_the_size_of_its_tensors_and_no_operations(tmp_path: Path) -> None:
    """It finds things without classes: labels of the category `object` are compared with it."""
    sam = save(tmp_path / "sam", "sam")
    given = {"data": "labels.json", "weights": [str(sam)], "output": str(tmp_path / "out")}
    settings: CompareSettings = without_environment(CompareSettings, given)
    problems = Problems()
    (candidate,) = load_candidates(settings, "instance", problems)
    assert not problems.lines
    assert candidate.file_bytes == (sam / "model.safetensors").stat().st_size
    assert candidate.classes == ("object",)
    task = task_of(str(sam), "instance", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    found = counted(task, measure(task))
    assert found.images_per_s > 0
    assert (found.gflops, found.uncounted) == (None, "FLOPs of SAM depend on the number of prompts")


def test_tables(output: Path) -> None:
    first, second = csv.DictReader((output / "table.csv").open())
    models = scores_of(output)["models"]
    for row, model in zip((first, second), models, strict=True):
        assert float(row["miou"]) == model["metrics"]["miou"]
        assert float(row["iou tree"]) == model["classes"][1]["iou"]
        assert int(row["parameters"]) == model["parameters"]
    assert first["miou_difference"] == ""
    assert float(second["miou_difference_low"]) == models[1]["difference"]["miou"]["low"]
    text = (output / "table.md").read_text()
    head, line, *_ = text.splitlines()
    assert head.startswith("| model | mIoU [95 %] | difference [95 %] | pixel accuracy | parameters |")
    assert head.count("|") == line.count("|")
    assert f"| a | {models[0]['metrics']['miou']:.3f} [" in text
    assert "1 threads, batches of 1 of the input size; median of 1 rounds" in text
    run = json.loads((output / "run.json").read_text())
    assert run["counts"] == {"items": 6, "compared": 6, "rejected": 0, "models": 2}


def test_panels_show_truth_and_each_model(folder: Path, output: Path) -> None:
    """Of the images whose scores differ most, and of one more; the fourth panel is in the second row."""
    images = scores_of(output)["images"]
    assert [each["why"].partition(" by ")[0] for each in images] == ["scores differ"] * 2 + ["at random"]
    spread = [abs(each["scores"][0] - each["scores"][1]) for each in images]
    assert spread[0] >= spread[1]
    assert sorted(path.name for path in (output / "panels").iterdir()) == [
        each["panel"].rpartition("/")[2] for each in images
    ]
    name = images[0]["name"]
    drawn = np.asarray(Image.open(output / images[0]["panel"]))
    truth = np.array(Image.open(folder / "data" / name.replace("images", "labels", 1)))
    height, width = truth.shape
    factor = 256 // max(height, width)
    known = truth != 255
    column = max(width * factor, 150) + 10
    shown = drawn[62::factor, 16 + column :: factor][:height, :width]
    assert (shown[known] == palette(3)[truth[known]]).all()
    pixels = np.array(Image.open(folder / "data" / name))
    model = Classifier(load_weights(f"{folder}/b/model.pt", STORAGE), "cpu", "fp32")
    found = model.compared(pixels, truth)[1].numpy()
    shown = drawn[62 + height * factor + 28 :: factor, 16::factor][:height, :width]
    assert (shown == palette(3)[found]).all()


def test_a_preview_shows_table_and_panels(output: Path, tmp_path: Path) -> None:
    assert main(["preview", str(output), "--output", str(tmp_path / "page")]) == 0
    page = scripts(tmp_path / "page")
    assert page["page"]["facts"] == [[2, "models"], [6, "images compared"]]
    overview, differences, classes = page["scores"]
    models = scores_of(output)["models"]
    assert [row["miou"] for row in overview["rows"]] == [each["metrics"]["miou"] for each in models]
    assert [row["model"] for row in differences["rows"]] == ["b"]
    assert [row["b"] for row in classes["rows"]] == [row["iou"] for row in models[1]["classes"]]
    assert len(page["samples"]) == 3
    assert main(["preview", str(output), str(output), "--output", str(tmp_path / "two")]) == 2


def test_what_one_model_cannot_do_counts_for_none(
    folder: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image that cannot be read, one that a model refuses, and a class that it lacks."""
    data = made.write_data(tmp_path / "data")
    (data / "images/test/5.png").write_bytes(b"no picture")
    options = ["--data", data, "--output", tmp_path / "out", "--rounds", 0, "--panels", 1, "--draws", 0]
    options += ["--weights", folder / "a/model.pt", "--names", "a"]
    options += ["--weights", PICKY, "--names", "by colour"]
    assert compare(*options) == 2
    assert "by colour has Roof,  ground ; set classes to those of the labels" in capsys.readouterr().err
    options += ["--classes", ",".join(made.CLASSES)]
    assert compare(*options) == 3
    told = capsys.readouterr()
    assert "by colour lacks tree: scored 0 where they occur" in told.err
    assert "2 in no score" in told.out
    scores = scores_of(tmp_path / "out")
    reasons = {each["name"]: each["reason"] for each in scores["failed"]}
    assert reasons["images/test/3.png"] == "by colour: the model failed: ValueError: too wide for me"
    assert reasons["images/test/5.png"].startswith("not an image")
    confusion = [np.array(each["confusion"]) for each in scores["models"]]
    assert (confusion[0].sum(axis=1) == confusion[1].sum(axis=1)).all(), "the same pixels"
    assert confusion[1][:, 1].sum() == 0
    assert confusion[1][2, 2] > 10 * confusion[1][2, 0] > 0 == confusion[0][0, 3]
    assert [row["iou"] for row in scores["models"][1]["classes"]][1] == 0
    assert (scores["models"][1]["file_bytes"], scores["models"][1]["images_per_s"]) == (None, None)
    assert compare(*options, "--max-rejects", 0.5) == 0
    assert "nothing to do, finished before" in capsys.readouterr().out
    assert compare(*options, "--split", "all") == 2
    assert "split: test there, all now" in capsys.readouterr().err
    one_more = [*options, "--weights", folder / "b/model.pt", "--names", "b", "--max-rejects", 1]
    assert compare(*one_more) == 0
    assert capsys.readouterr().err.count("its scores are there") == 2
    assert len(scores_of(tmp_path / "out")["models"]) == 3


def test_rejected_images_are_tried_again_when_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has a score keeps it, in its place; nothing else changes a finished output."""
    options = ["--data", folder / "data", "--output", tmp_path / "out", "--rounds", 0, "--panels", 0]
    options += ["--weights", PICKY, "--classes", "ground,tree,roof", "--random-panels", 0, "--draws", 0]
    assert compare(*options) == 3
    assert "--retry-rejected tries them again" in capsys.readouterr().out
    monkeypatch.setattr(made, "WIDEST", [1000])
    made.SEEN.clear()
    assert compare(*options) == 3
    assert "finished before" in capsys.readouterr().out
    assert made.SEEN == []
    assert compare(*options, "--retry-rejected") == 0
    assert made.SEEN == [90], "the image that failed"
    scores = scores_of(tmp_path / "out")
    assert (scores["counts"]["compared"], scores["failed"]) == (6, [])
    assert compare(*options[:3], tmp_path / "new", *options[4:]) == 0
    assert scores_of(tmp_path / "new")["models"][0]["confusion"] == scores["models"][0]["confusion"]
    assert compare(*options, "--retry-rejected") == 0
    assert "finished before" in capsys.readouterr().out


def test_models_of_other_sizes_are_compared_at_the_images_own(folder: Path, tmp_path: Path) -> None:
    resizing = made.write_model(tmp_path / "resizing/model.pt", 2, fit="resize")
    weights = f"{folder}/a/model.pt,{resizing}"
    options = ["--data", folder / "data", "--output", tmp_path / "out", "--rounds", 0, "--panels", 0]
    assert compare(*options, "--weights", weights, "--random-panels", 0) == 0
    first, second = (np.array(each["confusion"]) for each in scores_of(tmp_path / "out")["models"])
    assert (first.sum(axis=1) == second.sum(axis=1)).all()
    assert "at the images' own size" in (tmp_path / "out/table.md").read_text()


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["/x/a/model.pt", "s3://bucket/b/model.pt"], ["a", "b"]),
        (["/x/a/model.pt", "/y/a/model.pt"], ["x/a", "y/a"]),
        (["nuclei-small", "/x/mine.pt", "python:my.module:make"], ["nuclei-small", "mine", "make"]),
        (["registry://bucket/models#cells@champion", "m.pth"], ["cells@champion", "m"]),
        (["/x/a/model.pt"] * 2, ["a (1)", "a (2)"]),
    ],
)
def test_names(specs: list[str], names: list[str]) -> None:
    assert names_apart(specs) == names


def test_everything_wrong_is_told_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no model")
    given = f"{tmp_path}/lost.pt,nuclei-small,{folder}/a/model.pt"
    options = ["--data", tmp_path / "lost.csv", "--output", tmp_path / "out", "--weights"]
    assert compare(*options, given) == 2
    told = capsys.readouterr().err
    one = "nuclei-small: finds instances, but the labels of "
    for line in (
        "lost.pt: no such file",
        one,
        "label maps; compare takes",
        "lost.csv: the file is not there",
    ):
        assert line in told
    assert compare(*options, tmp_path / "broken.pt", "--names", "x,y") == 2
    assert "names: 2 for 1 weights" in capsys.readouterr().err.replace("settings: ", "")
    options[1] = folder / "data"  # a file is loaded once all that is known without is right
    assert compare(*options, tmp_path / "broken.pt") == 2
    assert "broken.pt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_model_twice(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under another name it may be wanted; copied by mistake it is not."""
    (tmp_path / "copy.pt").write_bytes((folder / "a/model.pt").read_bytes())
    options = ["--data", folder / "data", "--output", tmp_path / "out", "--dry-run", "--weights"]
    assert compare(*options, f"{folder}/a/model.pt,{folder}/b/model.pt,{tmp_path}/copy.pt") == 0
    assert "copy is the same model as a\n" in capsys.readouterr().err


def test_a_model_that_cannot_be_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are there, the command fails, and run.json is not written."""
    options = ["--data", folder / "data", "--output", tmp_path / "out", "--rounds", 1, "--panels", 0]
    options += ["--weights", PICKY, "--classes", "ground,tree,roof", "--random-panels", 0, "--draws", 0]
    assert compare(*options, "--input-size", "90x17") == 1
    assert "picky could not be measured: ValueError: too wide for me" in capsys.readouterr().err
    assert "| picky |" in (tmp_path / "out/table.md").read_text()
    assert not (tmp_path / "out/run.json").exists()
    assert compare(*options, "--rounds", 0) == 3


def test_images_that_are_gone_once_it_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All models were scored, and then the storage lost the images on which speed is measured."""

    def lost(_: SemanticData, names: Sequence[str]) -> Iterator[tuple[str, ItemError]]:
        return ((name, ItemError("missing", "no such file")) for name in names)

    monkeypatch.setattr(SemanticData, "pixels", lost)
    options = ["--data", folder / "data", "--output", tmp_path / "out", "--rounds", 1, "--panels", 0]
    options += ["--weights", f"{folder}/a/model.pt", "--random-panels", 0, "--draws", 0]
    assert compare(*options) == 1
    told = capsys.readouterr().err
    assert "a could not be measured: none of 4 images could be read again: no such file" in told
