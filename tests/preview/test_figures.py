"""Trainings, evaluations, retrainings: what their records hold is shown, what they lack is left out."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.preview import made
from tests.preview.conftest import Watched
from tests.preview.test_pages import preview

EPOCHS = [
    {"epoch": 1, "train_loss": 2.0, "val_loss": 1.9, "miou": 0.2, "dice": 0.3, "iou": [0.1, 0.3], "lr": 0.1},
    {
        "epoch": 2,
        "train_loss": 1.0,
        "val_loss": 1.1,
        "miou": 0.5,
        "dice": 0.6,
        "iou": [0.2, None],
        "lr": 0.01,
    },
]


def training(folder: Path, epochs: list[dict[str, Any]] = EPOCHS, **record: Any) -> Path:
    """An output of train with one sample and one damaged."""
    (folder / "samples").mkdir(parents=True)
    Image.fromarray(made.picture(1)).save(folder / "samples/a.png")
    (folder / "samples/b.png").write_bytes(b"no picture")
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)))
    about = {
        "verb": "train",
        "settings": {"classes": ["<b>sky</b>", "road"], "lr": 0.1},
        "best": {"miou": 0.5},
    }
    (folder / "run.json").write_text(json.dumps({**about, **record}))
    return folder


def evaluation(folder: Path, predictions: Path | None = None, **more: Any) -> Path:
    """What `evaluate` writes for instances."""
    falling = np.linspace(1, 0, 101).round(4).tolist()
    curve = {"precision": falling, "scores": [each if each > 0.3 else 0.0 for each in falling]}
    record = {
        "task": "instances", "counts": {"labels": 3, "compared": 2, "failed": 1, "extra": 0},
        "metrics": {"segm": {"ap": 0.5, "ap50": 0.7, "ap_large": None}, "bbox": {"ap": 0.4}},
        "classes": [{"class": "car", "id": 1, "segm_ap": 0.5, "labels": 7}],
        "failed": [{"name": "x.png", "reason": "missing: no <i>prediction</i>"}],
        "intervals": {"level": 0.95, "draws": 9, "segm": {"ap": [0.4, 0.6]}, "classes": []},
        "groups": [{"group": "north", "images": 2, "segm": {"ap": 0.5}, "intervals": {}}],
        "thresholds": [{"class": "car", "segm": {"score": 0.7, "f1": 0.8, "precision": 0.9, "recall": 0.7}}],
        "curves": {"segm": [{"class": "car", "id": 1, "iou50": curve, "iou75": curve}]},
        "settings": {"predictions": None if predictions is None else str(predictions)},
        **more,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def test_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preview(tmp_path / "page", training(tmp_path / "run")) == 0
    assert "b.png: " in capsys.readouterr().out
    page = made.scripts(tmp_path / "page")
    curves = {
        each["title"]: {one["name"]: one["values"] for one in each["curves"]} for each in page["curves"]
    }
    assert curves["Loss"] == {"train": [2.0, 1.0], "val": [1.9, 1.1]}
    assert curves["Scores of the val images"] == {"mIoU": [0.2, 0.5], "Dice": [0.3, 0.6]}
    assert curves["IoU of each class (run)"] == {"<b>sky</b>": [0.1, 0.2]}
    assert page["page"]["facts"] == [[2, "epochs"], [0.5, "best mIoU"]]
    assert [each["name"] for each in page["samples"]] == ["a.png"]
    assert "confusion" not in page


def test_a_best_score_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    run = training(tmp_path / "run", best={"miou": float("nan"), "ap": 0.25})
    assert preview(tmp_path / "page", run) == 0
    assert made.scripts(tmp_path / "page")["page"]["facts"] == [[2, "epochs"], [0.25, "best AP"]]


def test_two_trainings_share_their_plots(tmp_path: Path) -> None:
    one = training(tmp_path / "a/run", EPOCHS, confusion=[[3, 1, 0], [0, 4, 1]])
    other = training(tmp_path / "b/run", EPOCHS[:1], confusion=[[3, 1, 0], [0, 4, 1]])
    assert preview(tmp_path / "page", one, other) == 0
    page = made.scripts(tmp_path / "page")
    curves = {one["name"]: one["values"] for one in page["curves"][0]["curves"]}
    assert curves["a/run: train"] == [2.0, 1.0]
    assert curves["b/run: train"] == [2.0, None]
    assert page["confusion"]["columns"] == ["<b>sky</b>", "road", "no class"]


def test_a_training_without_an_epoch_or_with_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview(tmp_path / "page", training(tmp_path / "none", [])) == 4
    assert "no epoch has ended" in capsys.readouterr().err
    run = training(tmp_path / "damaged")
    (run / "metrics.jsonl").write_text("{")
    assert preview(tmp_path / "page", run) == 2
    assert "metrics.jsonl of" in capsys.readouterr().err


def test_an_evaluation(tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    run = made.annotated(tmp_path / "run")
    assert preview(tmp_path / "first", run) == 0
    ids = [each["id"] for each in made.scripts(tmp_path / "first")["images"]]
    worst = [
        {"name": f"{n}.png", "image_id": ids[n], "false_positives": 5 - n, "false_negatives": 1}
        for n in range(3)
    ]
    assert preview(tmp_path / "page", evaluation(tmp_path / "scores", run, worst=worst)) == 0
    page = made.scripts(tmp_path / "page")
    titles = [each["title"] for each in page["scores"]]
    assert titles == [
        "Over all images", "Classes", "Precision and recall, masks", "Score of the best F1, masks at IoU 0.5",
        "Groups", "Images with the most errors", "In no score",
    ]  # fmt: skip
    assert page["scores"][0]["rows"][0] == {"what": "masks: ap", "value0": 0.5, "bounds0": "0.4000 to 0.6000"}
    plots = {each["title"]: each for each in page["scores"][2]["curves"]}
    f1 = plots["F1 over the score, masks, IoU 0.50"]["curves"][0]["values"]
    precision = np.linspace(1, 0, 101)
    at = {
        score: 2 * p * r / (p + r)
        for p, r, score in zip(precision, np.linspace(0, 1, 101), precision, strict=True)
    }
    assert f1[40] == pytest.approx(max(f for score, f in at.items() if round(score * 50) == 40), abs=1e-3)
    assert f1[10] is None  # no prediction has so low a score
    assert [each["id"] for each in page["images"]] == ids[:3]
    assert [each["errors"] for each in page["images"]] == [6, 5, 4]
    capsys.readouterr()
    with Watched(browser, tmp_path / "page") as shown:
        assert shown.get_by_role("tab").first.inner_text() == "Scores"
        expect(shown.locator(".plot canvas")).to_have_count(4)
        expect(shown.get_by_text("missing: no <i>prediction</i>")).to_be_visible()
        shown.get_by_role("tab", name="Pictures").click()
        expect(shown.locator(".card").first).to_contain_text("5 false positives, 1 missed")
    shutil.rmtree(run)
    assert preview(tmp_path / "page", tmp_path / "scores") == 0
    assert "the worst images are not drawn: " in capsys.readouterr().out


def test_an_old_evaluation_of_label_maps(tmp_path: Path, browser: Browser) -> None:
    record: dict[str, Any] = {
        "task": "semantic",
        "metrics": {"miou": 0.5},
        "confusion": [[90, 10, 0], [0, 50, 50]],
    }
    record["classes"] = [{"class": name, "iou": 0.5} for name in made.CLASSES[:2]]
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/metrics.json").write_text(json.dumps(record))
    assert preview(tmp_path / "page", tmp_path / "scores") == 0
    with Watched(browser, tmp_path / "page") as page:
        page.get_by_role("tab", name="Confusion").click()
        cells = page.locator(".cell").all_inner_texts()
        assert cells == ["90", "10", "", "", "50", "50"]


def test_the_worst_images_of_weights_are_those_of_its_own_predictions(tmp_path: Path) -> None:
    run = made.annotated(tmp_path / "scores/predictions")
    assert preview(tmp_path / "first", run) == 0
    one = made.scripts(tmp_path / "first")["images"][0]["id"]
    worst = [{"name": "a.png", "image_id": one, "false_positives": 2, "false_negatives": 1}]
    own = evaluation(tmp_path / "scores/own", worst=worst)
    record = json.loads((own / "metrics.json").read_text())
    assert record["settings"]["predictions"] is None
    (own / "metrics.json").write_text(json.dumps(record | {"predictions": str(run)}))
    assert preview(tmp_path / "page", own) == 0
    (shown,) = made.scripts(tmp_path / "page")["images"]
    assert (shown["id"], shown["errors"], shown["error"]) == (one, 3, None)


def test_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = evaluation(tmp_path / "one")
    other = evaluation(tmp_path / "other", metrics={"segm": {"ap": 0.6}})
    assert preview(tmp_path / "page", one, other) == 0
    row = made.scripts(tmp_path / "page")["scores"][0]["rows"][0]
    assert (row["value0"], row["value1"]) == (0.5, 0.6)
    assert preview(tmp_path / "page", one, training(tmp_path / "run")) == 2
    assert "evaluate and train cannot be compared" in capsys.readouterr().err


def test_a_retraining(tmp_path: Path, browser: Browser) -> None:
    root = tmp_path / "rounds"
    for number, (champion, challenger, promoted) in enumerate([(None, 0.3, True), (0.3, 0.5, False)], 1):
        folder = root / f"rounds/{number:04d}"
        training(folder / "train")
        decision: dict[str, Any] = {
            "metric": "mIoU",
            "images": 4,
            "promoted": promoted,
            "reasons": ["<i>why</i>"],
        }
        for who, figure in (("champion", champion), ("challenger", challenger)):
            decision[who] = (
                None if figure is None else {"figure": figure, "low": figure - 0.1, "high": figure + 0.1}
            )
        (folder / "decision.json").write_text(json.dumps(decision))
        (folder / "report.html").write_text("<!doctype html><title>report</title>")
    record = {
        "verb": "retrain",
        "round": 2,
        "model": "m",
        "version": "v",
        "promoted": False,
        "reasons": ["r"],
    }
    (root / "run.json").write_text(json.dumps(record))
    assert preview(tmp_path / "page", root) == 0
    page = made.scripts(tmp_path / "page")
    assert page["curves"][0]["curves"] == [
        {"name": "champion", "values": [None, 0.3]}, {"name": "challenger", "values": [0.3, 0.5]},
    ]  # fmt: skip
    assert [row["decision"] for row in page["scores"][1]["rows"]] == ["promoted", "refused"]
    with Watched(browser, tmp_path / "page") as shown:
        shown.get_by_role("tab", name="Scores").click()
        expect(shown.get_by_text("<i>why</i>").first).to_be_visible()
        shown.get_by_role("link", name="Report of the last round").click()
        expect(shown).to_have_title("report")
