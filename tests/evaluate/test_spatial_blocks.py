"""Intervals of one scene: blocks against a plain loop over what pycocotools matched, and against pictures."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray.evaluate.drawn_units import Units
from segray.evaluate.matching import Instances, Matches, match
from segray.evaluate.precision_recall import Resampling, figures, image_hash, mixed, ranked
from segray.evaluate.spatial_blocks import BY_NUMBER, LEAST, OWN, BlockGrid

SIZE = (900, 1_200)
HASHES = np.array([image_hash("scene.tif")], np.uint64)
Boxes = NDArray[np.float64]


def scene(number: int, seed: int) -> tuple[Boxes, Boxes, Boxes, NDArray[np.bool_]]:
    """True boxes, predicted boxes, their scores, crowds: some missed, false, found twice."""
    random = np.random.default_rng(seed)
    side = random.uniform(20, 60, (number, 2))
    truth = np.hstack([random.uniform(0, np.array(SIZE[::-1]) - side), side])
    near = truth + random.normal(0, 3, truth.shape)
    far = np.hstack([random.uniform(0, 800, (number // 3, 2)), np.full((number // 3, 2), 30.0)])
    found = np.concatenate([near[random.random(number) < 0.8], near[: number // 6] + 4, far])
    return truth, found, random.permutation(len(found)) / len(found), random.random(number) < 0.1


def matched(
    truth: Boxes, found: Boxes, score: Boxes, crowd: NDArray[np.bool_], grid: BlockGrid | None
) -> Matches:
    image = np.zeros(len(truth) + len(found), np.int64)
    area = np.append(truth[:, 2] * truth[:, 3], found[:, 2] * found[:, 3])
    scores = np.append(np.full(len(truth), np.nan), score)
    crowds = np.append(crowd, np.zeros(len(found), bool))
    every = Instances(image, image + 1, scores, crowds, area, np.concatenate([truth, found]))
    return match(every, ("bbox",), grid)


def drawn(matches: Matches, side: int, draws: int) -> tuple[NDArray[np.float64], Units]:
    units = Units.of(matches, HASHES, 1, side)
    categories = dict(ranked(matches, "bbox", 1_000, (units.found["bbox"], units.truth)))
    return Resampling(units.hashes, draws, 3).drawn(categories)[0], units


def coco_images(truth: Boxes, found: Boxes, score: Boxes, crowd: NDArray[np.bool_]) -> dict[str, Any]:
    """What COCOeval matched, of all sizes."""
    of = {"image_id": 1, "category_id": 1}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 1}],
            "annotations": [
                of | {"id": n + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd[n])}
                for n, box in enumerate(truth.tolist())
            ],
        }
        coco.createIndex()
        results = [of | {"bbox": box, "score": float(score[n])} for n, box in enumerate(found.tolist())]
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets = [1_000]
        evaluation.evaluate()
    image: dict[str, Any] = evaluation.evalImgs[0]
    return image


def plain_ap(rows: list[tuple[bool, bool, int]], truth: int) -> float:
    """AP of (true, ignored, weight), by falling score."""
    true = false = 0
    points = []
    for right, ignored, weight in rows:
        for _ in range(weight):
            true, false = true + (right and not ignored), false + (not right and not ignored)
            points.append((true / truth, true / max(true + false, 1)))
    recalls = np.linspace(0, 1, 101)
    return float(np.mean([max((p for r, p in points if r >= each), default=0) for each in recalls]))


@pytest.mark.parametrize("side", [250, BY_NUMBER])
def test_draws_are_blocks_repeated(side: int) -> None:
    """A block counts as often as its weight says; nothing is matched again."""
    made = truth, found, _, crowd = scene(60, 5)
    matches = matched(*made, BlockGrid(0, [SIZE], side))
    rows, units = drawn(matches, side, 12)
    length = side or np.sqrt(SIZE[0] * SIZE[1] / LEAST)
    columns = int(np.ceil(SIZE[1] / length))

    def block(box: Boxes) -> int:
        x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
        column = min(max(int(x // length), 0), columns - 1)
        return max(int(y // length), 0) * columns + column

    image = coco_images(*made)
    taken = image["dtMatches"]
    blocks = []
    for place, number in enumerate(image["dtIds"]):
        partners = [int(each) for each in taken[:, place] if each]
        blocks.append(block(truth[partners[0] - 1] if partners else found[number - 1]))
    whole = [block(box) for box in truth[~crowd]]
    numbers = np.array(sorted({*blocks, *(block(box) for box in truth)}), np.uint64)
    weights = Resampling(mixed(HASHES ^ mixed(numbers + np.uint64(1))), 12, 3).weights(0, 12)
    for draw, row in enumerate(weights.tolist()):
        weight = dict(zip(numbers.tolist(), row, strict=True))
        ap = [
            plain_ap(
                [
                    (bool(taken[iou, n]), bool(image["dtIgnore"][iou, n]), weight[b])
                    for n, b in enumerate(blocks)
                ],
                sum(weight[each] for each in whole),
            )
            for iou in range(10)
        ]
        expected = [float(np.mean(ap)), ap[0], ap[5]]
        np.testing.assert_allclose(rows[:3, draw], expected, atol=1e-9)
    assert units.name == "blocks"
    assert units.number == len({*whole})
    assert units.number > LEAST // 2
    assert not units.warning


def test_figures_do_not_change_and_shards_add() -> None:
    made = scene(60, 6)
    plain, cut = (matched(*made, grid) for grid in (None, BlockGrid(0, [SIZE], BY_NUMBER)))
    one, other = (figures(ranked(each, "bbox", 100), 100) for each in (plain, cut))
    np.testing.assert_equal(one.overall, other.overall)
    assert (plain.states["bbox"] == cut.states["bbox"]).all()
    truth, found, score, crowd = made
    none = matched(truth[:0], found[:0], score[:0], crowd[:0], BlockGrid(0, [SIZE], BY_NUMBER))
    both = Matches.joined([cut, none])
    np.testing.assert_array_equal(drawn(both, BY_NUMBER, 9)[0], drawn(cut, BY_NUMBER, 9)[0])
    assert len(both.of_images(np.array([False])).block["bbox"]) == 0


def test_each_of_few_objects_is_drawn_alone_with_what_found_it() -> None:
    made = truth, found, *_ = scene(OWN - 1, 7)
    matches = matched(*made, BlockGrid(0, [SIZE], BY_NUMBER))
    _, units = drawn(matches, BY_NUMBER, 2)
    assert units.name == "objects"
    assert len(set(units.truth.tolist())) == len(truth)
    shared = np.isin(units.found["bbox"], units.truth)
    taken = coco_images(*made)["dtMatches"].any(axis=0)
    assert shared.sum() == taken.sum() > 10
    assert len(units.hashes) == len(truth) + (~taken).sum()
    assert len(found) > taken.sum()


def outcomes(number: int, seed: int) -> tuple[Boxes, Boxes, Boxes, NDArray[np.bool_]]:
    """Objects in cells of 100 pixels that are found, or not, each by its own chance; false ones likewise."""
    random = np.random.default_rng(seed)
    columns = int(np.sqrt(number))
    corner = 100.0 * np.stack(np.divmod(np.arange(number), columns)[::-1], axis=1)
    truth = np.hstack([corner + 10, np.full((number, 2), 30.0)])
    moved = truth + np.array([1, 1, 0, 0]) * random.uniform(0, 12, (number, 1))
    false = np.hstack([corner + 60, np.full((number, 2), 25.0)])
    found = np.concatenate([moved[random.random(number) < 0.7], false[random.random(number) < 0.3]])
    return truth, found, random.random(len(found)), np.zeros(number, bool)


@pytest.mark.parametrize(("number", "name"), [(25, "objects"), (400, "blocks")])
def test_independent_objects_of_a_scene_are_as_sure_as_single_pictures(number: int, name: str) -> None:
    widths = []
    for seed in range(8):
        truth, found, score, crowd = outcomes(number, seed)
        side = 100 * int(np.sqrt(number))
        rows, units = drawn(
            matched(truth, found, score, crowd, BlockGrid(0, [(side, side)], BY_NUMBER)), BY_NUMBER, 200
        )
        cell, own = (
            (each[:, 1] // 100 * (side // 100) + each[:, 0] // 100).astype(np.int64)
            for each in (truth, found)
        )
        image = np.append(cell, own)
        area = np.full(len(image), np.nan)
        scores = np.append(np.full(number, np.nan), score)
        boxes = np.concatenate([truth, found])
        pictures = match(
            Instances(image, image * 0 + 1, scores, np.zeros(len(image), bool), area, boxes), ("bbox",)
        )
        hashes = np.array([image_hash(f"{each}.png") for each in range(number)], np.uint64)
        alone = Resampling(hashes, 200, 3).drawn(dict(ranked(pictures, "bbox", 1_000)))[0]
        widths.append([each[:3].std(axis=1) for each in (rows, alone)])
        assert units.name == name
    ratio = np.mean(widths, axis=0)
    np.testing.assert_allclose(ratio[0] / ratio[1], 1, atol=0.2)
