"""Found instances as Arrow columns: their order, their ids, and the ANNOTATED table around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.annotate.rle import EncodedMasks
from segray.errors import ErrorType, ItemError
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
    """Detections that were dropped because no mask pixel was left."""


Outcome = Found | ItemError | None
"""What became of a row: annotated, rejected, or None for one without a picture: a control row, or a tile that
holds no data."""


_OF_JOINED = ("tiles", "tiles_rejected", "tiles_skipped", "note", "tile_rows")
"""Columns of an item that was joined from its tiles, null before that."""


def found_instances(
    category_id: NDArray[np.int32],
    score: NDArray[np.float32],
    boxes: NDArray[np.float32],
    masks: EncodedMasks,
) -> Found:
    """Drop empty masks and sort by (bbox y, bbox x, category_id, area, score), all ascending.

    boxes: (n, 4) as x0, y0, x1, y1. Instances that are equal in all five keep the detector's order.
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
    """DECODED and what became of each of its rows -> ANNOTATED, one row out for each row in, in order.

    Rows that came with an error stay rejected with it. Control rows (null `image_id`) keep what they came
    with, and all else in them is null or empty. `categories`: id to name; an id without one gets a null.
    """
    final = [
        outcome or _earlier_error(*error)
        for outcome, *error in zip(
            outcomes, decoded["error_type"].to_pylist(), decoded["error"].to_pylist(), strict=True
        )
    ]
    columns: dict[str, Any] = {
        "status": [
            _status(outcome) if outcome else "skipped" if tile is not None else None
            for outcome, tile in zip(final, decoded["tile"].to_pylist(), strict=True)
        ],
        "instances": [
            outcome and (len(outcome.counts) if isinstance(outcome, Found) else 0) for outcome in final
        ],
        "error_type": [getattr(outcome, "error_type", None) for outcome in final],
        "error": [getattr(outcome, "reason", None) for outcome in final],
        "empty_masks": [outcome and getattr(outcome, "empty_masks", 0) for outcome in final],
        "vanished": [None if outcome is None else False for outcome in final],
        "crs": pa.nulls(decoded.num_rows, pa.string()),
        "found": _nested(decoded, final, categories),
        **{name: pa.nulls(decoded.num_rows, ANNOTATED.field(name).type) for name in _OF_JOINED},
    }
    arrays = [columns[name] if name in columns else decoded[name] for name in ANNOTATED.names]
    return pa.table(arrays, schema=ANNOTATED)


def rejected_rows(decoded: pa.Table, error_type: ErrorType, reason: str) -> pa.Table:
    """DECODED -> ANNOTATED with every picture rejected for one reason; other rows pass through."""
    error = ItemError(error_type, reason)
    outcomes = [error if valid else None for valid in pc.is_valid(decoded["pixels"]).to_pylist()]
    return annotated_table(decoded, outcomes, {})


def _earlier_error(error_type: ErrorType | None, reason: str | None) -> ItemError | None:
    return None if error_type is None else ItemError(error_type, reason or "")


def _status(outcome: Found | ItemError) -> str:
    return "annotated" if isinstance(outcome, Found) else "rejected"


def _nested(decoded: pa.Table, outcomes: Sequence[Outcome], categories: Mapping[int, str]) -> pa.Array:
    """The column `found`: a list of instance structs for each row, empty where nothing was found."""
    rows = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Found)]
    found = [outcome for outcome in outcomes if isinstance(outcome, Found)]
    sizes = np.zeros(len(outcomes) + 1, np.int32)
    sizes[[index + 1 for index in rows]] = [len(each.counts) for each in found]
    offsets = pa.array(np.cumsum(sizes, dtype=np.int32))
    pictures = decoded.select(["image_id", "height", "width"]).take(pa.array(rows, pa.int64()))
    instances = _instances(pictures, found, categories)
    return pa.ListArray.from_arrays(offsets, instances, type=ANNOTATED.field("found").type)


def _instances(pictures: pa.Table, found: Sequence[Found], categories: Mapping[int, str]) -> pa.StructArray:
    """All instances of the pictures one after another, as NESTED_INSTANCE."""
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
    """`image_id`, a hyphen and the rank from 0 in seven digits."""
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
