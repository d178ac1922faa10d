"""PQ, SQ and RQ equal panopticapi's own loop, and torchmetrics where its definition is the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.detection import PanopticQuality

from segray.errors import ItemError
from segray.evaluate import panoptic_quality
from segray.evaluate.panoptic_quality import Overlaps, PanopticScores, Segments
from tests.panoptic import panopticapi

THINGS = {1: True, 2: True, 3: True, 7: False, 9: False}
Ids = NDArray[np.uint32]
Rows = list[dict[str, Any]]


def of(rows: Rows) -> Segments:
    columns = (np.array([row[name] for row in rows], np.int64) for name in ("id", "category_id", "iscrowd"))
    ids, categories, crowd = columns
    return Segments(ids, categories, crowd != 0)


def scored(*images: tuple[Ids, Rows, Ids, Rows]) -> PanopticScores:
    total = PanopticScores()
    for true_ids, true, found_ids, found in images:
        overlaps = Overlaps(of(true), of(found))
        overlaps.add(true_ids[:9], found_ids[:9])  # by window
        overlaps.add(true_ids[9:], found_ids[9:])
        one = PanopticScores()
        one.add(overlaps)
        total = total + one
    return total


def image(random: np.random.Generator, *, void: bool = True) -> tuple[Ids, Rows, Ids, Rows]:
    """A map of blocks with ids of three bytes, and one that differs in places: parts merged, cut, renamed."""
    coarse = random.integers(0 if void else 1, 9, (4, 6))
    labels = coarse.repeat(8, 0).repeat(8, 1)
    found = np.where(random.random(labels.shape) < random.choice([0.05, 0.4]), np.roll(labels, 5, 1), labels)
    if random.random() < 0.5:
        found[found == 3] = 4
    keys = np.r_[0, random.choice(2**24 - 1, 8, replace=False) + 1].astype(np.uint32)
    others = np.r_[0, random.choice(2**24 - 1, 8, replace=False) + 1].astype(np.uint32)
    categories = random.choice([1, 2, 3], 9)
    stuff = {7: 7, 8: 9}
    kinds = [stuff.get(label, int(categories[label])) for label in range(9)]
    wrong = [1 if kinds[label] < 7 and random.random() < 0.2 else kinds[label] for label in range(9)]
    if random.random() < 0.3:
        wrong[7], wrong[8] = 9, 7
    crowds, seen = dict[int, int](), set[int]()
    for label in range(1, 7):
        crowds[label] = int(void and random.random() < 0.3 and kinds[label] not in seen)
        seen |= {kinds[label]} if crowds[label] else set()
    there = [label for label in np.unique(labels).tolist() if label]
    true = [
        {"id": int(keys[label]), "category_id": kinds[label], "iscrowd": crowds.get(label, 0)}
        for label in there
    ]
    predicted = [
        {"id": int(others[label]), "category_id": wrong[label], "iscrowd": 0}
        for label in np.unique(found).tolist()
        if label
    ]
    return keys[labels], true, others[found], predicted


def test_it_equals_panopticapi() -> None:
    random = np.random.default_rng(1)
    images = [image(random) for _ in range(100)]
    stat = panopticapi.new_stat()
    for true_ids, true, found_ids, found in images:
        panopticapi.count(stat, true_ids, true, found_ids, found)
    scores = scored(*images)
    assert len(scores.sums) == len(THINGS)
    for category, sums in scores.sums.items():
        assert sums.tolist() == pytest.approx(stat[category], rel=1e-12)
        assert min(sums) > 0, "every case occurs"
    figures = scores.compute([number for number, thing in THINGS.items() if thing])
    for name, only in (("all", None), ("things", True), ("stuff", False)):
        assert figures[name] == pytest.approx(panopticapi.pq_average(stat, THINGS, only), rel=1e-12)


def test_it_equals_torchmetrics() -> None:
    """Where predictions have no void, and truth no crowd: there the definitions are one."""
    random = np.random.default_rng(2)
    images = [image(random, void=False) for _ in range(30)]
    metric = PanopticQuality(things={1, 2, 3}, stuffs={7, 9}, return_per_class=True, return_sq_and_rq=True)
    for true_ids, true, found_ids, found in images:
        metric.update(*(in_two_channels(ids, rows) for ids, rows in ((found_ids, found), (true_ids, true))))
    scores = scored(*images)
    theirs = metric.compute().tolist()
    order = [metric.cat_id_to_continuous_id[number] for number in scores.per_class()]
    ours = [[each.pq, each.sq, each.rq] for each in scores.per_class().values()]
    assert ours == [pytest.approx(theirs[place], abs=1e-6) for place in order]  # they sum in float32


def in_two_channels(ids: Ids, rows: Rows) -> torch.Tensor:
    """Category and instance of each pixel, (1, h, w, 2)."""
    found = np.zeros((*ids.shape, 2), np.int64)
    for row in rows:
        found[ids == row["id"]] = (row["category_id"], row["id"])
    return torch.from_numpy(found)[None]


def test_identical_is_1_and_disjoint_is_0() -> None:
    random = np.random.default_rng(3)
    true_ids, true, *_ = image(random, void=False)
    kinds = {row["category_id"] for row in true}
    same = scored((true_ids, true, true_ids, true)).compute({1, 2, 3})
    assert same["all"] == {"pq": 1, "sq": 1, "rq": 1, "classes": len(kinds)}
    other = [{**row, "category_id": row["category_id"] + 100} for row in true]
    disjoint = scored((true_ids, true, true_ids, other)).compute({1, 2, 3})
    assert disjoint["all"] == {"pq": 0, "sq": 0, "rq": 0, "classes": 2 * len(kinds)}
    assert np.isnan(PanopticScores().compute({1})["all"]["pq"])


SEGMENT = {"id": 5, "category_id": 1, "iscrowd": 0}


@pytest.mark.parametrize(
    ("true", "found", "message"),
    [
        ([SEGMENT], [], "prediction: pixels of segment 5, which is not in its list"),
        ([], [SEGMENT], "truth: pixels of segment 5"),
        ([SEGMENT], [SEGMENT, {**SEGMENT, "id": 6}], "segment 6 of its list has no pixel"),
    ],
)
def test_lists_that_do_not_fit_their_pixels(true: Rows, found: Rows, message: str) -> None:
    ids = np.full((12, 4), 5, np.uint32)
    with pytest.raises(ItemError, match=message):
        scored((ids, true, ids, found))


def test_another_size_is_refused() -> None:
    overlaps = Overlaps(of([SEGMENT]), of([SEGMENT]))
    with pytest.raises(ItemError, match="prediction: 2 x 3 pixels, its truth 3 x 2"):
        overlaps.add(np.full((2, 3), 5, np.uint32), np.full((3, 2), 5, np.uint32))


def test_many_segments_are_counted_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    images: Sequence[tuple[Ids, Rows, Ids, Rows]] = [image(random) for _ in range(10)]
    dense = scored(*images)
    monkeypatch.setattr(panoptic_quality, "_DENSE", 0)
    sparse = scored(*images)
    assert {key: sums.tolist() for key, sums in dense.sums.items()} == {
        key: sums.tolist() for key, sums in sparse.sums.items()
    }
