"""The benchmark: its gates see wrong arms, its numbers are what they say. Times are not tested."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from jobs import benchmark
from jobs.benchmarks import rle, seams
from jobs.benchmarks.agreement import check_alike, check_same
from jobs.benchmarks.commands import answered
from jobs.benchmarks.measure import Figure, Options, UnequalError, take_turns
from jobs.benchmarks.pictures import folder_of, score_of
from jobs.benchmarks.processes import held_bytes
from segray.masks.rle import EncodedMasks, encode_roi_masks


def one_pixel_off(masks: rle.Floats, boxes: rle.Floats, height: int, width: int) -> EncodedMasks:
    """An encoder that moves the last box."""
    moved = boxes.copy()
    moved[-1] += 1
    return encode_roi_masks(masks, moved, height, width)


@pytest.mark.parametrize(("encode", "exit_code"), [(encode_roi_masks, 0), (one_pixel_off, 1)])
def test_wrong_arm_is_not_timed(
    encode: rle.Encode, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmark.PARTS, "rle", partial(rle.figures, encode=encode))
    record = tmp_path / "figures.json"
    assert benchmark.main(["rle", "--quick", "--json", str(record)]) == exit_code
    told = json.loads(record.read_text())
    assert len(told["figures"]) == (0 if exit_code else 2)
    assert len(told["unequal"]) == exit_code


def instance(score: float, column: int, side: int = 10, category: int = 1) -> dict[str, Any]:
    """A square of a picture of 40 x 40."""
    mask = np.zeros((40, 40), np.uint8, order="F")
    mask[5 : 5 + side, column : column + side] = 1
    run: Any = coco.encode(mask)
    box = [float(column), 5.0, float(side), float(side)]
    return {
        "category_id": category, "score": score, "box": box, "size": [40, 40],
        "counts": run["counts"].decode(),
    }  # fmt: skip


TRUTH = {"a": [instance(0.9, 0), instance(0.7, 20)], "b": []}


@pytest.mark.parametrize(
    "wrong",
    [
        [instance(0.9, 0)],
        [*TRUTH["a"], instance(0.6, 10)],
        [instance(0.9, 0), instance(0.7, 21)],
        [instance(0.9, 0), instance(0.7002, 20)],
        [instance(0.9, 0), instance(0.7, 20, category=2)],
        [instance(0.9, 0), instance(0.7, 20) | {"box": [20.1, 5.0, 10.0, 10.0]}],
    ],
)
def test_gate_of_one_precision(wrong: list[dict[str, Any]]) -> None:
    at_threshold = {**TRUTH, "a": [*TRUTH["a"], instance(0.50001, 10, 5)]}
    check_same(TRUTH, at_threshold, 0.5, "same")
    with pytest.raises(UnequalError):
        check_same({**TRUTH, "a": wrong}, TRUTH, 0.5, "wrong")


def test_gate_of_two_precisions() -> None:
    near = {"a": [instance(0.8, 1), instance(0.7, 20), instance(0.55, 8, 4)], "b": []}
    assert check_alike(near, TRUTH, 0.8, "near") == 4 / 5
    with pytest.raises(UnequalError):
        check_alike(near, TRUTH, 0.81, "near")


def test_figures() -> None:
    assert Figure("", ">= 2", [1, 3, 2]).met
    assert not Figure("", "<= 1.9", [1, 3, 2]).met
    assert Figure("", ">= 10", []).met is None
    assert "not measured" in Figure("on a GPU", ">= 10", []).lines()[0]
    calls: list[float] = []

    def arm(number: float) -> float:
        calls.append(number)
        return number

    values = take_turns([partial(arm, 1.0), partial(arm, 2.0)], 3)
    assert calls == [1, 2, 2, 1, 1, 2]
    assert values == [[1.0] * 3, [2.0] * 3]


def test_decoding_alone_sees_all_pixels(tmp_path: Path) -> None:
    folder = folder_of(Options(tmp_path), 3)
    wanted = {each.name: round(score_of(np.asarray(Image.open(each))), 6) for each in folder.iterdir()}
    assert len(set(wanted.values())) == 3
    assert answered("readers", "pool", folder, 2)["pictures"] == wanted


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda found: found, (0, 0)),
        (lambda found: found[1:], (1, 0)),
        (lambda found: np.concatenate([found, found[:2] + 1]), (0, 2)),
        (lambda found: np.concatenate([found, [[0, 500, 9, 509]]]), (0, 1)),
    ],
)
def test_objects_that_are_lost_or_doubled_are_counted(change: Any, wanted: tuple[int, int]) -> None:
    town = seams.made(2000, 42)
    assert len(town.grid) > 1
    assert seams.faults(town.truth, change(seams.ours(town))) == wanted


HOLD = """
import os
held = bytearray(os.urandom(1 << 20) * 48)
shared = os.memfd_create("pixels")
os.pwrite(shared, held, 0)
if os.fork():
    os.wait()
else:
    print(os.getpid(), flush=True)
    input()
"""


@pytest.fixture
def parent_and_child() -> Iterator[list[int]]:
    """They share 48 MiB of their own and 48 MiB in a file in memory that neither has mapped."""
    command, pipe = [sys.executable, "-c", HOLD], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        yield [process.pid, int(process.stdout.readline())]
        process.communicate("\n")


def test_memory_is_counted_once(parent_and_child: list[int]) -> None:
    assert 96 <= held_bytes(parent_and_child) / 2**20 < 120
