"""Two runs: the difference of an image against a plain loop, the order, what cannot be compared."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from segray.preview.compare import MATCHED, difference, matches
from tests.preview import made
from tests.preview.test_pages import preview


def plain_difference(first: list[NDArray[np.uint8]], second: list[NDArray[np.uint8]]) -> float:
    """One minus panoptic quality by its definition, of disjoint masks of one class."""
    total, pairs = 0.0, 0
    for one in first:
        for other in second:
            iou = (one & other).sum() / (one | other).sum()
            if iou > 0.5:
                total, pairs = total + iou, pairs + 1
    missing = len(first) + len(second) - 2 * pairs
    return 1 - total / (pairs + missing / 2)


@pytest.mark.parametrize("seed", range(20))
def test_the_difference_is_one_minus_panoptic_quality(seed: int) -> None:
    random = np.random.default_rng(seed)
    sides: list[list[NDArray[np.uint8]]] = [[], []]
    for row in range(15, 90, 30):  # cells that do not touch
        for col in range(15, 120, 30):
            for side in sides:
                if random.random() < 0.7:
                    centre = row + random.uniform(-4, 4), col + random.uniform(-4, 4)
                    side.append(made.ellipse(*centre, *random.uniform(5, 10, 2)))
    rows = [[made.instance("a", at, mask, 0, 0.9) for at, mask in enumerate(side)] for side in sides]
    pairs = matches(*rows)
    assert all(iou > MATCHED for *_, iou in pairs)
    assert len({one for one, *_ in pairs}) == len({other for _, other, _ in pairs}) == len(pairs)
    found = difference(pairs, len(rows[0]), len(rows[1]))
    assert found == pytest.approx(plain_difference(*sides), abs=1e-9)


def test_classes_match_only_themselves_and_nothing_is_no_difference() -> None:
    mask = made.ellipse(40, 60, 20, 20)
    first, second = ([made.instance("a", 0, mask, kind, 0.9)] for kind in (0, 1))
    assert matches(first, second) == []
    assert difference(matches(first, second), 1, 1) == 1.0
    assert difference(matches(first, first), 1, 1) == 0.0
    assert difference([], 0, 0) == 0.0


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made.annotated(tmp_path / "one"), made.annotated(tmp_path / "other", less=2)
    assert preview(tmp_path / "page", one, other) == 0
    assert "6 of 6 images that both runs have were compared, 6 are shown" in capsys.readouterr().out
    page = made.scripts(tmp_path / "page")
    values = [each["difference"] for each in page["images"]]
    assert values == sorted(values, reverse=True)
    assert values == pytest.approx([1 - 2 * 4 / (6 + 4)] * 5 + [0], abs=1e-4)
    for number, entry in enumerate(page["images"][:5]):
        first, second = (
            made.scripts(tmp_path / "page", f"images{side}/{number}")[f"image{side}/{number}"]
            for side in ("", "2")
        )
        assert (entry["instances"], entry["instances2"]) == (6, 4)
        assert [first["mark"].count(each) for each in ("unmatched", None)] == [2, 4]
        assert [second["mark"].count(each) for each in ("unmatched", None)] == [0, 4]
    table = {row["what"]: (row["first"], row["second"], row["more"]) for row in page["scores"][0]["rows"]}
    counts = [len(pd.read_parquet(run / "instances")) for run in (one, other)]
    assert table["instances"] == (*counts, counts[1] - counts[0])
    areas = next(each for each in page["figures"] if each["name"] == "area")
    assert [sum(areas["counts"]), sum(areas["counts2"])] == counts
    assert [run["name"] for run in page["page"]["runs"]] == ["one", "other"]


def test_rows_without_an_id_are_marked(tmp_path: Path) -> None:
    one, other = made.annotated(tmp_path / "one"), made.annotated(tmp_path / "other", less=2)
    for part in (*(one / "instances").iterdir(), *(other / "instances").iterdir()):
        pq.write_table(pq.read_table(part).drop_columns(["instance_id"]), part)
    assert preview(tmp_path / "page", one, other) == 0
    first = made.scripts(tmp_path / "page", "images/0")["image/0"]
    assert [first["mark"].count(each) for each in ("unmatched", None)] == [2, 4]


def test_two_runs_of_predict(tmp_path: Path) -> None:
    one, other = made.labelled(tmp_path / "maps"), made.labelled(tmp_path / "moved", 3)
    assert preview(tmp_path / "page", one, other) == 0
    page = made.scripts(tmp_path / "page")
    # stripes move by 3 columns of 120 a picture
    assert [each["difference"] for each in page["images"]] == pytest.approx(
        [3 * n / made.WIDTH for n in range(5, -1, -1)], abs=1e-4
    )


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, maps = made.annotated(tmp_path / "run"), made.labelled(tmp_path / "maps")
    assert preview(tmp_path / "page", run, maps) == 2
    assert "one run holds instances, the other label maps" in capsys.readouterr().err
    far = made.annotated(tmp_path / "far/run")
    assert preview(tmp_path / "page", run, far) == 2
    assert "the two runs share no image" in capsys.readouterr().err
    assert preview(tmp_path / "page", run, tmp_path) == 2
    assert preview(tmp_path / "page", run, run, run) == 2
