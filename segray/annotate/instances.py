"""Detected instances as Arrow columns: their order, their ids, and the ANNOTATED table around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.bulk.results import Outcome, results_table
from segray.masks.rle import EncodedMasks
from segray.schema import ANNOTATED, BOX, NESTED_INSTANCE, RLE


@dataclass(frozen=True, slots=True)
class Found:
    """The instances of one image in the order of their ids; the columns have one entry each."""

    category_id: NDArray[np.int32]
    score: NDArray[np.float32]
    box: NDArray[np.float32]
    """(n, 4): x, y, width, height of the detector's box in pixels of the image."""
    bbox: NDArray[np.float32]
    """(n, 4): x, y, width, height of the mask."""
    area: NDArray[np.int64]
    """Mask pixels, at least 1."""
    truncated: NDArray[np.bool_]
    counts: list[str]
    """COCO compressed run lengths of the whole image."""
    empty_masks: int
    """Number of detections that were dropped because no mask pixel was left."""

    @property
    def instances(self) -> int:
        """Return the number of instances."""
        return len(self.counts)


def found_instances(
    category_id: NDArray[np.int32],
    score: NDArray[np.float32],
    boxes: NDArray[np.float32],
    masks: EncodedMasks,
) -> Found:
    """Drop empty masks and sort by (bbox y, bbox x, category_id, area, score), all ascending.

    category_id, score: (n,); boxes: (n, 4) as x0, y0, x1, y1. Instances that are equal in all five keep the
    detector's order.
    """
    keys = (score, masks.area, category_id, masks.bbox[:, 0], masks.bbox[:, 1])  # the last counts most
    order = np.lexsort(keys)
    order = order[masks.area[order] > 0]
    return Found(
        category_id=category_id[order],
        score=score[order],
        box=np.concatenate([boxes[order, :2], boxes[order, 2:] - boxes[order, :2]], axis=1),
        bbox=masks.bbox[order],
        area=masks.area[order],
        truncated=masks.truncated[order],
        counts=[masks.counts[index] for index in order],
        empty_masks=len(score) - len(order),
    )


def annotated_table(
    decoded: pa.Table, outcomes: Sequence[Outcome], categories: Mapping[int, str]
) -> pa.Table:
    """Return a table of schema ANNOTATED like `results_table`, with the instances of each row in `found`.

    `categories`: id -> name; an id without one gets a null.
    """
    return results_table(decoded, outcomes, _nested(decoded, outcomes, categories))


def _nested(decoded: pa.Table, outcomes: Sequence[Outcome], categories: Mapping[int, str]) -> pa.Array:
    """Return the column `found`: a list of instance structs for each row, empty where there are none."""
    rows = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Found)]
    found = [outcome for outcome in outcomes if isinstance(outcome, Found)]
    sizes = np.zeros(len(outcomes) + 1, np.int32)
    sizes[[index + 1 for index in rows]] = [len(each.counts) for each in found]
    offsets = pa.array(np.cumsum(sizes, dtype=np.int32))
    pictures = decoded.select(["image_id", "height", "width"]).take(pa.array(rows, pa.int64()))
    instances = _instances(pictures, found, categories)
    return pa.ListArray.from_arrays(offsets, instances, type=ANNOTATED.field("found").type)


def _instances(pictures: pa.Table, found: Sequence[Found], categories: Mapping[int, str]) -> pa.StructArray:
    """Return all instances of the images one after another, as NESTED_INSTANCE."""
    size = sum(len(each.counts) for each in found)
    category_id = _joined([each.category_id for each in found], np.int32)
    columns: dict[str, pa.Array] = {
        "instance_id": _instance_ids(pictures["image_id"].to_pylist(), found),
        "category_id": pa.array(category_id),
        "category": pa.array([categories.get(each) for each in category_id.tolist()], pa.string()),
        "score": pa.array(_joined([each.score for each in found], np.float32)),
        "bbox": _fixed_lists([each.bbox for each in found]),
        "box": _fixed_lists([each.box for each in found]),
        "area": pa.array(_joined([each.area for each in found], np.int64)),
        "segmentation": _segmentations(pictures, found),
        "iscrowd": pa.array(np.zeros(size, np.int8)),
        "truncated": pa.array(_joined([each.truncated for each in found], np.bool_)),
    }
    arrays = [columns.get(field.name, pa.nulls(size, field.type)) for field in NESTED_INSTANCE]
    return pa.StructArray.from_arrays(arrays, fields=list(NESTED_INSTANCE))


def _instance_ids(image_ids: Sequence[str], found: Sequence[Found]) -> pa.Array:
    """Return `image_id`, a hyphen and the rank from 0 in seven digits."""
    ids = [
        f"{image_id}-{rank:07d}"
        for image_id, each in zip(image_ids, found, strict=True)
        for rank in range(len(each.counts))
    ]
    return pa.array(ids, pa.string())


def _segmentations(pictures: pa.Table, found: Sequence[Found]) -> pa.StructArray:
    sizes = np.stack([pictures["height"].to_numpy(), pictures["width"].to_numpy()], axis=1).astype(np.int32)
    repeated = np.repeat(sizes, [len(each.counts) for each in found], axis=0)
    counts = pa.array([counts for each in found for counts in each.counts], pa.string())
    size = pa.FixedSizeListArray.from_arrays(pa.array(repeated.ravel()), type=RLE.field("size").type)
    return pa.StructArray.from_arrays([size, counts], fields=list(RLE))


def _fixed_lists(parts: Sequence[NDArray[np.float32]]) -> pa.FixedSizeListArray:
    values = _joined([part.ravel() for part in parts], np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type=BOX)


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype)
