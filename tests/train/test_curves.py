"""curves.png: what is drawn where, for ordinary and for odd histories."""

import io
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segray.train.reporting.curves import best_of, class_curves, curves, lowest, write_curves

NAMES = ["sky", "_pole", r"$\no$ price", "道路", "W" * 60]
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)
"""The first two colours of matplotlib's default cycle: train and val."""


def history(epochs: int, **columns: list[Any]) -> list[dict[str, Any]]:
    """Losses fall, scores rise; `columns` replace what they name."""
    lines = []
    for epoch in range(1, epochs + 1):
        line = {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 1.0 - 0.6 * epoch / epochs,
            "val_loss": 1.1 - 0.4 * epoch / epochs,
            "miou": 0.5 * epoch / epochs,
            "dice": 0.6 * epoch / epochs,
            "pixel_accuracy": 0.8 * epoch / epochs,
            "iou": [(0.1 + 0.1 * index) * epoch / epochs for index in range(len(NAMES))],
            "lr": 1e-3,
            "images_per_s": 20.0,
        }
        lines.append(line | {key: values[epoch - 1] for key, values in columns.items()})
    return lines


def drawn(lines: list[dict[str, Any]], names: list[str] = NAMES) -> NDArray[np.uint8]:
    """Pixels; whatever matplotlib warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = curves(lines, names)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert pixels.shape == (900, 1200, 3)
    return pixels


def heights(pixels: NDArray[np.uint8], colour: tuple[int, int, int], columns: slice) -> NDArray[np.int64]:
    """Rows in the plot of losses that have the colour in these columns, which are left of its legend."""
    return 60 + np.flatnonzero((pixels[60:405, columns] == colour).all(axis=2).any(axis=1))


def test_losses_fall_from_left_to_right() -> None:
    pixels = drawn(history(20))
    for colour in (BLUE, ORANGE):
        left, right = heights(pixels, colour, slice(100, 200)), heights(pixels, colour, slice(350, 450))
        assert left.mean() + 60 < right.mean()  # rows run downwards
    assert heights(pixels, ORANGE, slice(300, 320)).mean() < heights(pixels, BLUE, slice(300, 320)).mean()


def test_another_history_is_another_picture_and_the_same_is_the_same() -> None:
    lines = history(6)
    first = curves(lines, NAMES)
    assert curves([json.loads(json.dumps(line)) for line in lines], NAMES) == first
    for change in ({"dice": 0.45}, {"lr": 1e-4}, {"iou": [0.2] * 5}):
        assert curves([*lines[:-1], lines[-1] | change], NAMES) != first, change


def test_what_is_no_number_leaves_a_gap() -> None:
    nothing = [None, math.nan, math.inf, -math.inf]
    values = [1.0, *nothing, 0.8, *nothing, 0.9, 0.7]
    pixels = drawn(history(12, val_loss=values, miou=values[::-1], iou=[[value] * 5 for value in values]))
    assert len(heights(pixels, ORANGE, slice(65, 450))) > 3
    assert not len(heights(pixels, ORANGE, slice(120, 250)))  # epochs 2 to 5
    assert len(heights(pixels, BLUE, slice(120, 250))) > 10


@pytest.mark.parametrize(
    "lines",
    [
        history(1),
        history(2, miou=[None] * 2, iou=[[None] * 5] * 2, train_loss=[math.nan] * 2, lr=[None] * 2),
        [{"epoch": 3, "step": 5, "train_loss": 0.0, "val_loss": -1.0, "ap": 0.5, "ap50": 0.7}, *history(1)],
        history(3, train_loss=[1e9, 1.0, 1e-9], lr=[0.0, 0.0, 0.0]),
        [],
    ],
    ids=["one epoch", "no values", "other scores", "far apart", "no epoch"],
)  # fmt: skip
def test_odd_histories_are_drawn(lines: list[dict[str, Any]]) -> None:
    assert len(np.unique(drawn(lines).reshape(-1, 3), axis=0)) > 2


def test_many_classes_stay_legible() -> None:
    names = [f"class number {index}" for index in range(150)]
    lines = history(40, iou=[[index / 150 for index in range(150)]] * 40)
    pixels = drawn(lines, names)
    rows = np.any(pixels[480:, 1050:].max(axis=2) < 128, axis=1).astype(int)
    assert np.count_nonzero(np.diff(rows) == 1) == 20  # lines of the legend


def test_classes_are_ordered_by_their_last_iou() -> None:
    lines = history(
        3, iou=[[0.5, None, 0.1, None, 0.9], [0.6, 0.4, 0.2, math.nan, 0.1], [None, 0.3] + [None] * 3]
    )
    found = class_curves(lines, NAMES)
    assert [curve.name for curve in found] == ["sky", "_pole", r"$\no$ price", "W" * 39 + "…", "class 3"]
    assert [curve.last() for curve in found[:4]] == [0.6, 0.3, 0.2, 0.1]
    assert lowest(found, 3) == found[1:4]
    assert lowest(found, 9) == found


def test_the_best_epoch_is_the_first_of_the_highest_miou() -> None:
    lines = history(5, miou=[None, 0.3, 0.4, 0.4, math.nan])
    assert best_of(lines) == lines[2]
    assert best_of(history(2, miou=[None, math.nan])) is None


def test_written_over_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out/curves.png"
    for epochs in (1, 2):
        write_curves(fsspec.filesystem("file"), str(path), history(epochs), NAMES)
    assert path.read_bytes() == curves(history(2), NAMES)
    assert list(path.parent.iterdir()) == [path]


def test_no_display_and_no_trace_in_the_process() -> None:
    """In a process of its own, with a backend that would need a display."""
    code = """
import logging, sys
from segray.train.reporting.curves import curves
assert "matplotlib" not in sys.modules, "loaded before it is used"
import matplotlib
before, levels = dict(matplotlib.rcParams), {n: logging.getLogger(n).level for n in ("", "matplotlib")}
curves([{"epoch": 1, "step": 1, "train_loss": 1.0, "iou": [0.5]}], ["a"])
assert dict(matplotlib.rcParams) == before
assert {name: logging.getLogger(name).level for name in levels} == levels and not logging.root.handlers
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"} | {
        "MPLBACKEND": "tkagg"
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
