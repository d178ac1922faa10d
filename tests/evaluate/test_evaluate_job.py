"""`segray evaluate` of label maps through the command line, against torchmetrics; exit codes, words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from segray.cli import main
from segray.status import status_of
from segray.storage import StorageSettings
from tests import servers
from tests.evaluate.made import Bytes, ledger_row, uri_of, write_predicted

CLASSES = ("road", "tree", "roof")


def drawn(seed: int, shape: tuple[int, int] = (24, 31), values: tuple[int, ...] = (0, 1, 2, 255)) -> Bytes:
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


def found(truth: Bytes, seed: int) -> Bytes:
    """A prediction that is right in most pixels."""
    guess = drawn(seed, truth.shape, (0, 1, 2))
    right = (np.random.default_rng(seed + 1).random(truth.shape) < 0.7) & (truth != 255)
    return np.where(right, truth, guess).astype(np.uint8)


def save(path: Path, pixels: Bytes) -> Bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def evaluate(*options: object) -> int:
    return main(["evaluate", *map(str, options)])


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def check(record: dict[str, Any], pairs: list[tuple[Bytes, Bytes]], classes: int = 3) -> None:
    """Against torchmetrics."""
    truth, guess = (
        torch.from_numpy(np.concatenate([each[side].ravel() for each in pairs])) for side in (0, 1)
    )
    options: dict[str, Any] = {"num_classes": classes, "ignore_index": 255}
    iou = multiclass_jaccard_index(guess, truth, average="none", **options)
    dice = multiclass_f1_score(guess, truth, average="none", **options)
    accuracy = multiclass_accuracy(guess, truth, average="micro", **options)
    assert [row["iou"] for row in record["classes"]] == pytest.approx(iou.tolist(), abs=1e-6)
    assert [row["dice"] for row in record["classes"]] == pytest.approx(dice.tolist(), abs=1e-6)
    assert record["metrics"]["miou"] == pytest.approx(float(iou.mean()), abs=1e-6)
    assert record["metrics"]["dice"] == pytest.approx(float(dice.mean()), abs=1e-6)
    assert record["metrics"]["pixel_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    assert record["metrics"]["pixels"] == int((truth != 255).sum())
    assert 0.4 < record["metrics"]["miou"] < 0.95


@pytest.fixture
def folders(tmp_path: Path) -> list[tuple[Bytes, Bytes]]:
    """Seven pairs in labels/ and maps/."""
    pairs = []
    for seed in range(7):
        truth = save(tmp_path / f"labels/{seed % 2}/{seed}.png", drawn(seed))
        pairs.append((truth, save(tmp_path / f"maps/{seed % 2}/{seed}.tif", found(truth, seed + 50))))
    return pairs


def two_folders(tmp_path: Path) -> list[object]:
    return [
        "--predictions", tmp_path / "maps", "--labels", tmp_path / "labels", "--classes", ",".join(CLASSES),
        "--output", tmp_path / "out",
    ]  # fmt: skip


COLOURS = {"0,0,255": "road", "#00ff00": "tree", "255,0,0": 2, "0,0,0": "void"}
SHOWN = np.zeros((256, 3), np.uint8)
SHOWN[:3] = (0, 0, 255), (0, 255, 0), (255, 0, 0)


def test_label_maps_in_colour(
    tmp_path: Path, folders: list[tuple[Bytes, Bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the numbers that they stand for; without a word of what they mean they are refused."""
    for path in [*tmp_path.glob("labels/*/*.png"), *tmp_path.glob("maps/*/*.tif")]:
        save(path, SHOWN[np.asarray(Image.open(path))])
    assert evaluate(*two_folders(tmp_path)) == 4
    assert "say with `colours` which class each colour is" in capsys.readouterr().err
    colours = json.dumps(COLOURS)
    options = ("--colours", colours, "--prediction-colours", colours)
    assert evaluate(*two_folders(tmp_path), *options) == 0
    check(metrics(tmp_path / "out"), folders)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"colours": COLOURS, "prediction_colours": COLOURS}))
    assert evaluate(*two_folders(tmp_path), "--config", tmp_path / "job.yaml") == 0
    check(metrics(tmp_path / "out"), folders)
    state = status_of(str(tmp_path / "out"), StorageSettings())
    assert (state.verb, state.state) == ("evaluate", "finished")
    assert state.counts["metrics"] == metrics(tmp_path / "out")["metrics"]


def test_two_folders(
    tmp_path: Path, folders: list[tuple[Bytes, Bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "maps/more.png", drawn(1))
    assert evaluate(*two_folders(tmp_path)) == 0
    record = metrics(tmp_path / "out")
    check(record, folders)
    assert record["task"] == "semantic"
    assert record["counts"] == {"labels": 7, "compared": 7, "failed": 0, "extra": 1}
    assert [row["class"] for row in record["classes"]] == list(CLASSES)
    assert np.sum(record["confusion"]) == record["metrics"]["pixels"]
    assert [row["pixels"] for row in record["classes"]] == np.sum(record["confusion"], axis=1).tolist()
    assert record["settings"]["classes"] == list(CLASSES)
    assert record["versions"].keys() >= {"segray", "python", "numpy"}
    said = capsys.readouterr().out
    assert f"miou {record['metrics']['miou']:.4f}" in said
    assert "7 of 7 labels compared" in said
    assert "1 predictions without a label" in said


def test_pictures_are_decoded_in_a_child(
    tmp_path: Path, folders: list[tuple[Bytes, Bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a file does to its decoder is done to the job."""

    def opened(*_: object, **__: object) -> None:
        pytest.fail("a picture was opened here")

    monkeypatch.setattr(Image, "open", opened)
    assert evaluate(*two_folders(tmp_path)) == 0
    check(metrics(tmp_path / "out"), folders)


def test_a_class_that_is_nowhere_has_no_figures(tmp_path: Path) -> None:
    truth = save(tmp_path / "labels/a.png", drawn(1, values=(0, 1)))
    save(tmp_path / "maps/a.png", truth)
    assert evaluate(*two_folders(tmp_path)) == 0
    assert "NaN" not in (tmp_path / "out/metrics.json").read_text()
    record = metrics(tmp_path / "out")
    assert record["metrics"]["miou"] == 1
    roof = {"class": "roof", "iou": None, "dice": None, "recall": None, "precision": None, "pixels": 0}
    assert record["classes"][2] == roof


def test_the_digest_tells_contents_apart_not_places(tmp_path: Path, folders: object) -> None:
    digests = []
    for change in (None, "move", "change"):
        if change == "move":
            (tmp_path / "maps").rename(tmp_path / "moved")
            (tmp_path / "moved").rename(tmp_path / "maps")
        if change == "change":
            save(tmp_path / "maps/0/0.tif", drawn(77, values=(0, 1, 2)))
        assert evaluate(*two_folders(tmp_path)) == 0
        digests.append(metrics(tmp_path / "out")["digests"]["compared"])
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_compared_is_named_and_the_exit_code_says_so(
    tmp_path: Path, folders: list[tuple[Bytes, Bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps/0/0.tif").unlink()
    save(tmp_path / "maps/1/1.tif", drawn(1, (24, 30)))
    (tmp_path / "labels/0/2.png").write_bytes(b"no picture")
    assert evaluate(*two_folders(tmp_path)) == 3
    said = capsys.readouterr().out
    record = metrics(tmp_path / "out")
    check(record, folders[3:])
    assert record["counts"] == {"labels": 7, "compared": 4, "failed": 3, "extra": 0}
    assert {each["name"]: each["reason"] for each in record["failed"]} == {
        "0/0": "missing: no prediction of this name",
        "0/2": record["failed"][1]["reason"],
        "1/1": "prediction: 30 x 24 pixels, its truth 31 x 24",
    }
    assert record["failed"][1]["reason"].startswith("truth: not an image")
    for each in record["failed"]:
        assert f"{each['name']}: {each['reason']}" in said
    assert evaluate(*two_folders(tmp_path), "--max-rejects", "0.5") == 0
    assert evaluate(*two_folders(tmp_path), "--max-rejects", "0.4") == 3


def manifest(tmp_path: Path, folders: list[tuple[Bytes, Bytes]]) -> Path:
    """Pictures beside the seven labels: 0 to 2 test, the others train; one more row of each has no files."""
    rows = ["images,masks,split"]
    for seed in range(7):
        save(tmp_path / f"pictures/p{seed}.png", drawn(seed))
        rows.append(f"pictures/p{seed}.png,labels/{seed % 2}/{seed}.png,{'test' if seed < 3 else 'train'}")
    for seed, split in ((0, "test"), (6, "train")):
        rows.append(f"pictures/p{seed}.png,labels/{seed % 2}/{seed}.png,{split}")  # again: no other pair
        rows.append(f"pictures/lost-{split}.png,labels/0/lost.png,{split}")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    for seed, (_, guess) in enumerate(folders):
        save(tmp_path / f"named/p{seed}.png", guess)
    return tmp_path / "data.csv"


def test_a_manifest_with_a_split(
    tmp_path: Path, folders: list[tuple[Bytes, Bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    data = manifest(tmp_path, folders)
    names = [option for name in CLASSES for option in ("--classes", name)]
    options = ("--predictions", tmp_path / "named", "--labels", data, *names, "--output", tmp_path / "out")
    assert evaluate(*options, "--split", "test") == 3
    record = metrics(tmp_path / "out")
    check(record, folders[:3])
    assert record["counts"] == {"labels": 4, "compared": 3, "failed": 1, "extra": 4}
    assert record["failed"][0]["name"].endswith("pictures/lost-test.png")
    assert "3 were found by their file name alone" in capsys.readouterr().out
    assert evaluate(*options, "--max-rejects", "1") == 0
    check(metrics(tmp_path / "out"), folders)
    assert metrics(tmp_path / "out")["counts"] == {"labels": 9, "compared": 7, "failed": 2, "extra": 0}
    assert evaluate(*options, "--split", "val") == 4
    assert "none in the split val: they are 3 test, 4 train" in capsys.readouterr().err


def test_an_output_of_predict(tmp_path: Path, folders: list[tuple[Bytes, Bytes]]) -> None:
    """By the addresses of the pictures, one of them in an archive; a label stored at half the scale fits."""
    pictures = [ledger_row(uri_of(tmp_path / f"photos/{n % 2}/{n}.jpg"), (24, 31)) for n in range(4)]
    pictures.append(ledger_row(uri_of(tmp_path / "more.zip"), (24, 31), member="in/0/4.jpg"))
    pictures.append(ledger_row(uri_of(tmp_path / "photos/1/5.jpg"), (24, 31), rejected="it is broken"))
    pictures.append(ledger_row(uri_of(tmp_path / "photos/0/6.jpg"), (24, 31)))
    pictures.append(ledger_row(uri_of(tmp_path / "elsewhere/6.jpg"), (24, 31)))
    maps = [guess for _, guess in folders[:5]]
    half = save(tmp_path / "labels/0/0.png", drawn(0, (12, 15)))
    maps[0] = found(half.repeat(2, axis=0).repeat(2, axis=1), 3)
    write_predicted(
        str(tmp_path / "predicted"), list(zip(pictures, [*maps, None, None, drawn(1)], strict=True)), 3
    )
    options = [*two_folders(tmp_path), "--predictions", tmp_path / "predicted"]
    assert evaluate(*options) == 3
    record = metrics(tmp_path / "out")
    pairs = [(half.repeat(2, axis=0).repeat(2, axis=1), maps[0]), *folders[1:5]]
    check(record, pairs)
    assert record["counts"] == {"labels": 7, "compared": 5, "failed": 2, "extra": 1}
    reasons = {each["name"]: each["reason"] for each in record["failed"]}
    assert reasons["1/5"] == "prediction: rejected as corrupt: it is broken"
    assert reasons["0/6"].endswith("0 label maps, not one")
    (tmp_path / "predicted/run.json").unlink()
    assert evaluate(*options) == 2


def test_masks_of_0_and_255_need_no_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = []
    for seed in range(3):
        truth = drawn(seed, values=(0, 1))
        guess = np.where(drawn(seed + 9, values=(0, 1, 1, 1)) == 1, truth, 1 - truth).astype(np.uint8)
        pairs.append((truth, guess))
        save(tmp_path / f"labels/{seed}.png", truth * 255)
        save(tmp_path / f"maps/{seed}.png", guess * 255)
    options = (
        "--predictions",
        tmp_path / "maps",
        "--labels",
        tmp_path / "labels",
        "--output",
        tmp_path / "out",
    )
    assert evaluate(*options) == 0
    record = metrics(tmp_path / "out")
    check(record, pairs, classes=2)
    assert [row["class"] for row in record["classes"]] == ["background", "foreground"]
    assert "predictions are binary: 3 label images hold 255" in capsys.readouterr().out
    assert evaluate(*options, "--prediction-values", "indices") == 0
    assert metrics(tmp_path / "out")["classes"][1]["recall"] == 0  # 255 is no class


def test_everything_in_a_bucket(
    s3_server: servers.Server,
    tmp_path: Path,
    folders: list[tuple[Bytes, Bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in tmp_path.rglob("*.*"):
        s3_server.put(f"evaluate/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    rows = [ledger_row(s3_server.url(f"photos/{n % 2}/{n}.jpg"), (24, 31)) for n in range(7)]
    maps = [(row, guess) for row, (_, guess) in zip(rows, folders, strict=True)]
    write_predicted(s3_server.url("evaluate/predicted"), maps, 3, s3_server.storage)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    written = []
    for predictions in ("maps", "predicted"):
        url = s3_server.url(f"evaluate/{predictions}")
        output = s3_server.url(f"evaluate/scores/{predictions}")
        labels = s3_server.url("evaluate/labels/")
        common = ("--labels", labels, "--classes", "road,tree,roof")
        assert evaluate("--predictions", url, "--output", output, *common) == 0
        written.append(json.loads(s3_server.get(f"evaluate/scores/{predictions}/metrics.json")))
        check(written[-1], folders)
    assert written[0]["metrics"] == written[1]["metrics"]
    assert "secret" not in json.dumps(written)
    assert evaluate("--predictions", url, "--output", "s3://no-such-bucket/x", *common) == 2
    assert "no bucket or container no-such-bucket" in capsys.readouterr().err


def test_what_is_known_before_work_begins(
    tmp_path: Path, folders: object, capsys: pytest.CaptureFixture[str]
) -> None:
    maps, labels, out = tmp_path / "maps", tmp_path / "labels", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    named = ("--classes", "road,tree,roof")

    def told(code: int, *options: object) -> str:
        assert evaluate("--output", out, *options) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        return said.err

    assert (
        "give --predictions and --labels (or --footprints), or --weights and --data: predictions is req"
        in told(2)
    )
    assert "labels is required" in told(2, "--predictions", maps)
    assert "data is required" in told(2, "--weights", "model.pt")
    both = told(2, "--predictions", maps, "--labels", labels, "--weights", "w", "--data", "d")
    assert "not predictions, labels too" in both
    assert "classes: set the names of the labels' classes" in told(
        2, "--predictions", maps, "--labels", labels
    )
    assert "nowhere: no such file" in told(
        2, "--predictions", tmp_path / "nowhere", "--labels", labels, *named
    )
    assert "nowhere: no such file" in told(2, "--predictions", maps, "--labels", tmp_path / "nowhere", *named)
    assert "use that of the split" in told(
        2, "--predictions", maps, "--labels", labels, *named, "--split", "val"
    )
    assert "binary labels have 2" in told(
        2, "--predictions", maps, "--labels", labels, *named, "--values", "binary"
    )
    assert "nothing to compare" in told(4, "--predictions", maps, "--labels", tmp_path / "empty", *named)
    nothing = told(4, "--predictions", tmp_path / "empty", "--labels", labels, *named)
    assert "none of 7 labels could be compared" in nothing
    assert "0/0: missing" in nothing
    assert not out.exists()
    out = tmp_path / "file/out"
    assert "file is a file" in told(2, "--predictions", maps, "--labels", labels, *named)
    out = Path("/proc/out")  # nobody may write there, whatever the rights say
    assert "output: cannot write into /proc: " in told(2, "--predictions", maps, "--labels", labels, *named)


def test_a_dry_run_writes_nothing(
    tmp_path: Path, folders: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps/0/0.tif").unlink()
    assert evaluate(*two_folders(tmp_path), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 of 7 labels have a prediction" in said
    assert "nothing was compared" in said
    assert not (tmp_path / "out").exists()


def test_settings_come_from_a_file_and_are_printed_without_secrets(
    tmp_path: Path, folders: list[tuple[Bytes, Bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluate.yaml"
    file.write_text(
        f"predictions: {tmp_path}/maps\nlabels: {tmp_path}/labels\noutput: {tmp_path}/out\n"
        "classes: [road, tree, roof]\nmax-rejects: 0.25\n"
    )
    assert evaluate("--config", file) == 0
    check(metrics(tmp_path / "out"), folders)
    capsys.readouterr()
    secret = "https://host/maps?signature=SECRET"
    assert evaluate("--config", file, "--predictions", secret, "--labels", secret, "--print-config") == 0
    said = capsys.readouterr().out
    assert "SECRET" not in said
    assert yaml.safe_load(said)["max_rejects"] == 0.25


def test_the_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    from segray.evaluate.settings import EvaluateSettings

    with pytest.raises(SystemExit) as ended:
        evaluate("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name in EvaluateSettings.model_fields.keys() - {"storage", "ray"}:
        assert f"--{name.replace('_', '-')}" in said
    assert "exit codes:" in said
    assert main(["--help"]) == 0
    assert "  evaluate " in capsys.readouterr().out
