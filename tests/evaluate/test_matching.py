"""COCO's twelve figures against pycocotools on random and adversarial sets; run lengths against its masks."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.evaluate import matching
from segray.evaluate.average_precision import InstanceScores
from segray.evaluate.matching import KINDS, Matches
from segray.evaluate.precision_recall import figures, ranked
from segray.masks.run_ends import RunEnds
from tests.evaluate.random_coco import STATS, RandomSet, pycocotools


def scores_of(made: RandomSet, images: list[int] | None = None, *, masks: bool = True) -> InstanceScores:
    """Of these images, all unless given; by boxes alone without masks."""
    scores = InstanceScores()
    sizes = {each["id"]: (each["height"], each["width"]) for each in made.truth["images"]}
    for number in sizes if images is None else images:
        scores.add_image(f"{number:04d}", sizes[number])
    for each in made.truth["annotations"]:
        name, mask = f"{each['image_id']:04d}", each["segmentation"] if masks else None
        if name in scores.images:
            more = {"crowd": bool(each["iscrowd"]), "box": each["bbox"], "area": each["area"]}
            scores.add_truth(name, mask, each["category_id"], **more)
    for row, box in zip(made.results, made.boxes(), strict=True):
        name, mask = f"{row['image_id']:04d}", row["segmentation"] if masks else None
        if name in scores.images:
            given = None if masks else box["bbox"]
            scores.add_prediction(name, mask, row["category_id"], row["score"], box=given)
    return scores


def stats(found: dict[str, float]) -> list[float]:
    """As COCOeval gives them."""
    return [-1.0 if math.isnan(found[name]) else found[name] for name in STATS]


def test_twelve_figures_are_those_of_pycocotools(request: pytest.FixtureRequest) -> None:
    """Crowds, ties, empty images, areas on the borders, more than a hundred predictions; masks and boxes."""
    for seed in range(request.config.getoption("--coco-sets")):
        made = RandomSet(seed)
        for kind in KINDS:
            expected = pycocotools(made.truth, made.results, kind)
            assert stats(scores_of(made).figures(kind).overall) == pytest.approx(expected, abs=1e-9), seed
        expected = pycocotools(made.truth, made.boxes(), "bbox")
        assert stats(scores_of(made, masks=False).figures("bbox").overall) == pytest.approx(
            expected, abs=1e-9
        )


@pytest.mark.parametrize("seed", [3, 7, 9])
def test_shards_add(seed: int) -> None:
    """In any order, with 40 bytes a prediction and 9 a true instance."""
    made = RandomSet(seed)
    images = sorted(each["id"] for each in made.truth["images"])
    whole = scores_of(made).matches(*KINDS)
    assert len(images) > 3
    assert len(whole.score) > 10
    parts = []
    for first, image in enumerate(images):
        part = scores_of(made, [image]).matches(*KINDS)
        moved = {name: getattr(part, name) + np.int32(first) for name in ("image", "truth_image")}
        parts.append(Matches(**{name: moved.get(name, getattr(part, name)) for name in Matches.__slots__}))
    joined = Matches.joined(parts[::-1])
    for kind in KINDS:
        one, other = (figures(ranked(each, kind, 100), 100) for each in (whole, joined))
        np.testing.assert_equal(one.overall, other.overall)
        np.testing.assert_equal(one.per_category, other.per_category)
    columns: list[NDArray[Any]] = [
        joined.image,
        joined.category,
        joined.rank,
        joined.score,
        *joined.states.values(),
    ]
    assert sum(each.nbytes for each in columns) == 40 * len(joined.score)
    truth: tuple[NDArray[Any], ...] = joined.truth_image, joined.truth_category, joined.truth_sizes
    assert sum(each.nbytes for each in truth) == 9 * len(joined.truth_image)


def test_a_search_tree_finds_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a scene of thousands; and pairs in many pieces."""
    scores = [scores_of(RandomSet(seed)) for seed in range(12)]
    usual = [each.matches(*KINDS) for each in scores]
    monkeypatch.setattr(matching, "_MANY", 1)
    monkeypatch.setattr(matching, "_AT_ONCE", 3)
    for one, two in zip(usual, (each.matches(*KINDS) for each in scores), strict=True):
        for kind in KINDS:
            np.testing.assert_array_equal(one.states[kind], two.states[kind])
    assert any(len(one.truth_image) > 5 for one in usual)


def test_run_lengths_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    masks = [random.random((40, 30)) < share for share in (0, 0.01, 0.2, 0.5, 0.9, 1)]
    masks += [np.pad(np.ones((9, 9), bool), ((row, 31 - row), (3, 18))) for row in (0, 5, 31)]
    strings = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks]
    runs = RunEnds.of(strings)
    assert runs.valid.all()
    assert runs.pixels.tolist() == [40 * 30] * len(masks)
    assert runs.area.tolist() == [int(mask.sum()) for mask in masks]
    one, other = np.divmod(np.arange(len(masks) ** 2), len(masks))
    flat = np.array(masks).reshape(len(masks), -1).astype(int)
    assert runs.shared(one, other).tolist() == (flat @ flat.T).ravel().tolist()


def test_what_is_no_run_length_has_no_runs() -> None:
    good = coco_mask.encode(np.ones((3, 3), np.uint8, order="F"))["counts"]
    broken = [b"", b"\xff12", b"1o", b"o", b" 1", b"ooooooooo1", b"12O"]
    runs = RunEnds.of([part for each in broken for part in (good, each)])
    assert runs.valid.tolist() == [True, False] * len(broken)
    assert runs.area.tolist() == [9, 0] * len(broken)
    assert runs.pixels.tolist() == [9, 0] * len(broken)
