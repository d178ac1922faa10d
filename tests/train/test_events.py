"""Event files, read by TensorBoard itself (which checks every checksum)."""

import math
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segray.storage import open_filesystem
from segray.train.reporting.events import EVENTS, event_file, write_events
from tests.servers import Server

LOCAL = fsspec.filesystem("file")
CLASSES = ["road", "sign/symbol", "arbre épais"]


def history(epochs: int, started: float = 1.7e9) -> list[dict[str, Any]]:
    """Lines as in metrics.jsonl; the second class has no IoU in even epochs."""
    return [
        {
            "epoch": epoch,
            "step": 300 * epoch,
            "time": started + epoch,
            "train_loss": 1 / epoch,
            "val_loss": math.nan if epoch == 2 else 2 / epoch,
            "miou": 0.1 * epoch,
            "dice": 0.15 * epoch,
            "pixel_accuracy": 0.18 * epoch,
            "ap": None,
            "iou": [0.3, None if epoch % 2 == 0 else 0.2, 0.1 * epoch],
            "lr": 10.0**-epoch,
            "images_per_s": 100.0 + started % 1000,
        }
        for epoch in range(1, epochs + 1)
    ]


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def steps(folder: Path, tag: str = "train/loss") -> list[int]:
    return [event.step for event in read(folder).Scalars(tag)]


def test_tensorboard_reads_what_the_lines_hold(tmp_path: Path) -> None:
    lines = history(5)
    write_events(LOCAL, str(tmp_path / "out/tensorboard"), lines, CLASSES)
    found = read(tmp_path / "out/tensorboard")
    keys = {
        "train/loss": "train_loss", "val/loss": "val_loss", "val/miou": "miou", "val/dice": "dice",
        "val/pixel_accuracy": "pixel_accuracy", "lr": "lr", "images_per_s": "images_per_s",
    }  # fmt: skip
    of_classes = [f"val/iou/{name}" for name in CLASSES]
    assert set(found.Tags()["scalars"]) == {*keys, *of_classes}
    for tag, key in keys.items():
        events = found.Scalars(tag)
        assert [event.step for event in events] == [300, 600, 900, 1200, 1500]
        assert [event.wall_time for event in events] == [line["time"] for line in lines]
        values = np.array([line[key] for line in lines], np.float32)
        np.testing.assert_array_equal([event.value for event in events], values)
    assert [event.step for event in found.Scalars(of_classes[1])] == [300, 900, 1500]
    assert [event.value for event in found.Scalars(of_classes[2])] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_lines_without_a_time_and_large_steps(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(
        event_file([{"epoch": 1, "step": 2**40 + 127, "lr": 1, "time_left": 5.0}], [])
    )
    found = read(tmp_path)
    assert [(event.step, event.wall_time, event.value) for event in found.Scalars("lr")] == [
        (2**40 + 127, 0.0, 1.0)
    ]
    assert found.Tags()["scalars"] == ["lr", "time_left"]


def test_before_the_first_epoch_there_is_nothing_to_show(tmp_path: Path) -> None:
    write_events(LOCAL, str(tmp_path), [], CLASSES)
    assert read(tmp_path).Tags()["scalars"] == []


@pytest.mark.parametrize("cut", [0, 7, 11, 60])
def test_a_run_that_went_on_shows_each_epoch_once(tmp_path: Path, cut: int) -> None:
    """It was killed while it wrote its fifth epoch, went on after the third, and was slower then."""
    whole = event_file(history(5), CLASSES)
    (tmp_path / EVENTS).write_bytes(whole[: len(whole) - cut])
    assert steps(tmp_path) == [300, 600, 900, 1200, 1500][: 5 if cut == 0 else 4]
    again = history(3) + history(6, started=1.8e9)[3:]
    for epochs in (4, 5, 6):
        write_events(LOCAL, str(tmp_path), again[:epochs], CLASSES)
        assert steps(tmp_path) == [300 * epoch for epoch in range(1, epochs + 1)]
    times = [event.wall_time for event in read(tmp_path).Scalars("lr")]
    assert times == [line["time"] for line in again]
    assert [path.name for path in tmp_path.iterdir()] == [EVENTS]


def test_a_tensorboard_that_holds_the_file_open_sees_the_next_epochs(tmp_path: Path) -> None:
    """Its data server reads on in the file it opened; one that is renamed over it, it never sees."""
    write_events(LOCAL, str(tmp_path), history(2), CLASSES)
    with (tmp_path / EVENTS).open("rb") as watching:
        seen = watching.read()
        for epochs in (3, 4):
            write_events(LOCAL, str(tmp_path), history(epochs), CLASSES)
            seen += watching.read()
            assert seen == event_file(history(epochs), CLASSES)


def test_into_a_bucket(s3_server: Server, tmp_path: Path) -> None:
    filesystem, path = open_filesystem(s3_server.url("events/tensorboard"), s3_server.storage)
    for epochs in (3, 2):
        write_events(filesystem, path, history(epochs), CLASSES)
        (tmp_path / EVENTS).write_bytes(filesystem.cat_file(f"{path}/{EVENTS}"))
        assert steps(tmp_path, "val/iou/road") == [300, 600, 900][:epochs]
    assert s3_server.names("events/") == [f"events/tensorboard/{EVENTS}"]


def test_a_thousand_epochs_of_twenty_scalars_take_less_than_a_second() -> None:
    names = [f"class number {index}" for index in range(13)]
    lines = [{**line, "iou": [0.5] * 13} for line in history(1000)]
    started = time.process_time()
    event_file(lines, names)
    assert time.process_time() - started < 1.0
