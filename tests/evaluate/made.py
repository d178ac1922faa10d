"""Outputs of `annotate` and `predict` with known contents, by the code that writes real ones; no Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray import schema
from segray.output.store import Store
from segray.predict.maps import png
from segray.sources.item import image_id
from segray.storage import StorageSettings, canonical_uri

Bytes = NDArray[np.uint8]


def ledger_row(
    uri: str, size: tuple[int, int], member: str | None = None, rejected: str | None = None
) -> dict[str, Any]:
    """One item, annotated, or rejected for this reason; nothing found in it."""
    return {
        "image_id": image_id(uri, member, 0, "1"),
        "uri": uri,
        "member": member,
        "member_index": None if member is None else 0,
        "version": "1",
        "height": None if rejected else size[0],
        "width": None if rejected else size[1],
        "frames": None if rejected else 1,
        "status": "rejected" if rejected else "annotated",
        "instances": 0,
        "error_type": "corrupt" if rejected else None,
        "error": rejected,
        "empty_masks": 0,
        "vanished": False,
        "found": [],
    }


def nested(mask: Bytes, category: tuple[int, str], score: float | None, rank: int) -> dict[str, Any]:
    """One instance; the detector's own box is a pixel wider than the mask's."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    box = coco_mask.toBbox(rle).tolist()
    return {
        "instance_id": f"x-{rank:07d}",
        "category_id": category[0],
        "category": category[1],
        "score": score,
        "bbox": box,
        "box": [box[0], box[1], box[2] + 1, box[3]],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "iscrowd": 0,
        "truncated": False,
    }


def write_annotated(
    output: str, parts: list[list[dict[str, Any]]], storage: StorageSettings | None = None
) -> None:
    """A finished output with one part for each list of rows."""
    store = Store(output, storage or StorageSettings())
    for rows in parts:
        counted = [row | {"instances": len(row["found"])} for row in rows]
        store.merge([store.commit(pa.Table.from_pylist(counted, schema=schema.ANNOTATED))])
    store.write_json("run.json", {"settings": {"score_threshold": 0.05}})


def write_predicted(
    output: str,
    maps: Sequence[tuple[dict[str, Any], Bytes | None]],
    classes: int,
    storage: StorageSettings | None = None,
) -> None:
    """A finished output of label maps; None: there is no file."""
    store = Store(output, storage or StorageSettings(), keeps_instances=False)
    for row, labels in maps:
        if labels is not None:
            store.write(f"labels/{row['image_id']}.png", png(labels, classes))
    rows = pa.Table.from_pylist([row for row, _ in maps], schema=schema.ANNOTATED)
    store.merge([store.commit(rows)])
    store.write_json("run.json", {})


def uri_of(path: Path) -> str:
    """As the ledger has it."""
    return canonical_uri(str(path))
