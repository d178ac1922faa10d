"""Small tables of schema ANNOTATED with known contents."""

from typing import Any

import pyarrow as pa

from segray import schema
from segray.annotate.settings import AnnotateSettings
from segray.annotate.task import Annotate
from segray.sources.item import image_id


def answer(
    uri: str, version: str = "1", instances: int = 2, error_type: str | None = None, member: int | None = None
) -> dict[str, Any]:
    """One ledger row with its instances inside; instance k has area k + 1."""
    name = None if member is None else f"{member}.png"
    item = image_id(uri, name, 0, version)
    found = [] if error_type else [instance(item, rank) for rank in range(instances)]
    return {
        "image_id": item,
        "uri": uri,
        "member": name,
        "member_index": member,
        "version": version,
        "height": 8,
        "width": 8,
        "frames": 1,
        "status": "rejected" if error_type else "annotated",
        "instances": len(found),
        "error_type": error_type,
        "error": error_type and f"it was {error_type}",
        "empty_masks": 0,
        "vanished": False,
        "found": found,
    }


def instance(item: str, rank: int) -> dict[str, Any]:
    """One nested instance."""
    return {
        "instance_id": f"{item}-{rank:07d}",
        "category_id": 1,
        "category": "nucleus",
        "score": 0.5,
        "bbox": [0.0, 0.0, 1.0, rank + 1.0],
        "box": [0.0, 0.0, 1.0, rank + 1.0],
        "area": rank + 1,
        "segmentation": {"size": [8, 8], "counts": f"0{rank + 1}"},
        "iscrowd": 0,
        "truncated": True,
    }


def end(uri: str, items: int, version: str = "1", ignored: int = 0, broken: bool = False) -> dict[str, Any]:
    """The control row after an archive's last member."""
    return {
        "uri": uri,
        "version": version,
        "end": {"items": items, "ignored": ignored, "broken": broken},
    }


def table(*rows: dict[str, Any]) -> pa.Table:
    """Rows as schema ANNOTATED."""
    return pa.Table.from_pylist(list(rows), schema=schema.ANNOTATED)


VERB = Annotate(AnnotateSettings.model_validate({"sources": ["x"], "output": "o"}))
"""For a sink that joins tiles as `annotate` does."""
