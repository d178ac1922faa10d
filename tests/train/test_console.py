"""What is printed of each epoch, and when the time that is left is told."""

import json
import time
from pathlib import Path

import pytest

from segray.output.lease import Lease
from segray.output.store import Store
from segray.storage import StorageSettings
from segray.train import console
from segray.train.console import Watch


def test_what_is_left_is_told_after_two_epochs_of_this_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier run did the first; the second came after a start of 100 s, the others take 10 s each."""
    times = [0.0, 5100.0, 5110.0, 5120.0]
    lines = [
        json.dumps({"epoch": epoch, "train_loss": 0.5, "miou": None, "images_per_s": 0.25, "time": at}) + "\n"
        for epoch, at in enumerate(times, start=1)
    ]
    store = Store(str(tmp_path), StorageSettings())
    store.write("metrics.jsonl", lines[0].encode())
    with Lease(store) as lock, Watch(store, 10, lock, lambda: "one word"):
        store.write("metrics.jsonl", "".join(lines).encode())
    assert capsys.readouterr().err.splitlines() == [
        "segray: one word",
        "segray: epoch 2 of 10: loss 0.5000, mIoU none, 4.0 s/image",
        "segray: epoch 3 of 10: loss 0.5000, mIoU none, 4.0 s/image, 0:01:10 left",
        "segray: epoch 4 of 10: loss 0.5000, mIoU none, 4.0 s/image, 0:01:00 left",
    ]


def test_what_cannot_be_shown_ends_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that fails for a while, and a file that is half there, are said once; then all is shown."""
    monkeypatch.setattr(console, "_LOOK_EVERY_S", 0.05)
    store = Store(str(tmp_path), StorageSettings())
    line = {"epoch": 1, "train_loss": 0.5, "miou": None, "images_per_s": 4.0, "time": 0.0}
    with Lease(store) as lock, Watch(store, 1, lock, lambda: None):
        (tmp_path / "metrics.jsonl").mkdir()
        time.sleep(0.5)
        (tmp_path / "metrics.jsonl").rmdir()
        (tmp_path / "metrics.jsonl").write_text('{"epoch": ')
        time.sleep(0.5)
        store.write("metrics.jsonl", json.dumps(line).encode())
    first, second, last = capsys.readouterr().err.splitlines()
    assert "the epochs cannot be printed now, training continues: cannot read" in first
    assert "the epochs cannot be printed now, training continues: Expecting value" in second
    assert last == "segray: epoch 1 of 1: loss 0.5000, mIoU none, 4.0 images/s"
