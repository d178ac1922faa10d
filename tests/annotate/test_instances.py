"""Order, ids and columns of instances, and the rows around them."""

from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from segray.annotate.instances import annotated_table, found_instances
from segray.bulk.results import rejected_rows
from segray.errors import ItemError
from segray.masks.rle import EncodedMasks, encode_image_masks
from segray.schema import ANNOTATED
from tests.bulk.pictures import decoded, failed_row, picture_row

ID = "0" * 31 + "a"


def random_masks(rng: np.random.Generator, n: int) -> EncodedMasks:
    """Few different corners and areas, so that every key of the order decides somewhere; some are empty."""
    masks = np.zeros((n, 12, 10), bool)
    for mask in masks:
        y, x = rng.integers(0, 2, 2)
        mask[y : y + rng.integers(0, 3), x : x + rng.integers(1, 3)] = True
    return encode_image_masks(masks, 12, 10)


def test_rank_is_by_y_x_category_area_score() -> None:
    rng = np.random.default_rng(2)
    masks = random_masks(rng, 200)
    category = rng.integers(1, 3, 200).astype(np.int32)
    score = rng.choice(np.array([0.5, 0.75, 0.875], np.float32), 200)
    corners = rng.integers(0, 9, (200, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + np.array([1, 2], np.float32)], axis=1)
    found = found_instances(category, score, boxes, masks)
    keys = [
        (masks.bbox[i, 1], masks.bbox[i, 0], category[i], masks.area[i], score[i])
        for i in range(200)
        if masks.area[i] > 0
    ]
    got = zip(found.bbox[:, 1], found.bbox[:, 0], found.category_id, found.area, found.score, strict=True)
    assert list(got) == sorted(keys)
    assert found.empty_masks == 200 - len(keys) > 0
    assert found.box[:, 2:].tolist() == [[1, 2]] * len(keys)


def test_columns_and_rows() -> None:
    rng = np.random.default_rng(0)
    table = decoded(
        picture_row(ID, np.zeros((12, 10, 3), np.uint8)),
        failed_row("b" * 32, "corrupt", "no picture"),
        {"uri": "file:///a.tar", "end": {"items": 4, "ignored": 1, "broken": False}},
        picture_row("c" * 32, np.zeros((5, 6, 3), np.uint8)),
        picture_row("d" * 32, np.zeros((12, 10, 3), np.uint8)),
    )
    masks = random_masks(rng, 6)
    found = found_instances(
        np.array([1, 1, 2, 7, 1, 1], np.int32),
        np.full(6, 0.5, np.float32),
        np.ones((6, 4), np.float32),
        masks,
    )
    nothing = found_instances(
        np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), random_masks(rng, 0)
    )
    out = annotated_table(
        table, [found, None, None, ItemError("memory", "full"), nothing], {1: "one", 2: "two"}
    )
    out.validate(full=True)
    assert out.schema.equals(ANNOTATED)
    rows = out.to_pylist()
    assert [row["status"] for row in rows] == ["annotated", "rejected", None, "rejected", "annotated"]
    assert [row["instances"] for row in rows] == [len(found.counts), 0, None, 0, 0]
    assert [row["error_type"] for row in rows] == [None, "corrupt", None, "memory", None]
    assert [row["error"] for row in rows] == [None, "no picture", None, "full", None]
    assert [row["empty_masks"] for row in rows] == [found.empty_masks, 0, None, 0, 0]
    assert [len(row["found"]) for row in rows] == [len(found.counts), 0, 0, 0, 0]
    assert rows[2]["end"] == {"items": 4, "ignored": 1, "broken": False}
    assert [row["vanished"] for row in rows] == [False, False, None, False, False]
    check_instances(rows[0]["found"], found.category_id.tolist())


def check_instances(instances: list[dict[str, Any]], categories: list[int]) -> None:
    assert [each["instance_id"] for each in instances] == [
        f"{ID}-{rank:07d}" for rank in range(len(instances))
    ]
    assert [each["category_id"] for each in instances] == categories
    for each in instances:
        assert each["category"] == {1: "one", 2: "two"}.get(each["category_id"])
        assert each["segmentation"]["size"] == [12, 10]
        assert coco.area(each["segmentation"]) == each["area"]
        assert coco.toBbox(each["segmentation"]).tolist() == each["bbox"]
        assert (each["iscrowd"], each["geometry"], each["geometry_bbox"], each["area_m2"]) == (
            0,
            None,
            None,
            None,
        )


def test_rejected_rows_keep_what_is_no_picture() -> None:
    table = decoded(
        picture_row(ID, np.zeros((2, 2, 3), np.uint8)),
        failed_row("b" * 32, "missing", "gone"),
        {"uri": "file:///a.tar", "end": {"items": 2, "ignored": 0, "broken": False}},
    )
    out = rejected_rows(table, "crashed", "died")
    assert out["error_type"].to_pylist() == ["crashed", "missing", None]
    assert out["status"].to_pylist() == ["rejected", "rejected", None]


def test_a_table_without_rows() -> None:
    out = annotated_table(decoded(), [], {})
    assert (out.num_rows, out.schema) == (0, ANNOTATED)
    assert isinstance(out, pa.Table)
