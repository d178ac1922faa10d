"""Runs of made rows in the tables of `annotate`; no image is there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray import schema


def image(number: int, **more: Any) -> dict[str, Any]:
    """A row of the ledger; ids are in no order of the numbers."""
    return {
        "image_id": f"{(7919 * (number + 1)) % 100_003:032x}",
        "uri": f"file:///photos/{number:04d}.jpg",
        "height": 100,
        "width": 100,
        "status": "annotated",
        "brightness": 50.0,
        "sharpness": 100.0,
        **more,
    }


def instance(
    of: dict[str, Any], score: float | None, box: Sequence[float] = (0, 0, 10, 10)
) -> dict[str, Any]:
    """A row of the instances; box: x, y, width, height."""
    return {
        "image_id": of["image_id"], "category_id": 1, "category": "thing", "score": score,
        "bbox": list(box), "area": int(box[2] * box[3]),
    }  # fmt: skip


def write(
    folder: Path,
    images: Sequence[dict[str, Any]],
    instances: Sequence[dict[str, Any]],
    *,
    parts: int = 2,
    record: dict[str, Any] | None = None,
) -> Path:
    """Write the tables, the rows dealt to some parts, and run.json; return the folder."""
    for name, rows, declared in (
        ("images", images, schema.with_kept(schema.IMAGES, ["camera"])),
        ("instances", instances, schema.INSTANCES),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for part in range(parts):
            plain = [{field.name: row.get(field.name) for field in declared} for row in rows[part::parts]]
            table = pa.Table.from_pylist(plain, declared)
            pq.write_table(table, folder / name / f"part-{part:06d}.parquet", row_group_size=7)
    plain_record = {"verb": "annotate", "settings": {"score_threshold": 0.5}}
    (folder / "run.json").write_text(json.dumps(plain_record if record is None else record))
    return folder


def many(number: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images of up to eight instances with drawn scores, sizes, brightness and cameras."""
    rng = np.random.default_rng(seed)
    images, instances = [], []
    for each in range(number):
        quality = {"brightness": float(rng.uniform(0, 255)), "sharpness": float(rng.uniform(1, 1e4))}
        row = image(each, camera=["left", "right", None][each % 3 if each < number // 2 else 0], **quality)
        images.append(row)
        for _ in range(rng.integers(0, 9)):
            box = [*rng.uniform(0, 80, 2).round(), *rng.uniform(2, 20, 2).round()]
            instances.append(instance(row, float(np.float32(rng.uniform(0.5, 1))), box))
    return images, instances
