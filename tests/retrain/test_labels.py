"""Which labels of instances are new: those that mean something else, not those that were written anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segray.data.coco_listing import CocoListing, list_coco
from segray.retrain.labels import news, snapshot_of, unread_news
from segray.storage import StorageSettings
from tests.train.cells import write_cells


def snapshot(found: CocoListing) -> pa.Table:
    """With the digests that a survey gives: of the annotations as they stand in the file."""
    pairs = found.pairs
    columns = {"digest": [pair.image.version for pair in pairs]}
    columns["label_digest"] = [pair.label.version for pair in pairs]
    rows = pa.table(columns).append_column("likeness", pa.array(range(len(pairs)), pa.uint64()))
    return snapshot_of(pairs, rows, ["train"] * len(pairs), found.categories)


def numbered_anew(content: dict[str, Any]) -> None:
    content["annotations"].reverse()
    for number, annotation in enumerate(content["annotations"], start=5000):
        annotation["id"] = number
        annotation["area"] = 1.5
        annotation["category_id"] = 9
    content["categories"][0]["id"] = 9


def renamed(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "nucleus"


def one_lost(content: dict[str, Any]) -> None:
    del content["annotations"][0]


def one_is_a_crowd(content: dict[str, Any]) -> None:
    content["annotations"][0]["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "changed"), [(numbered_anew, 0), (renamed, 3), (one_lost, 1), (one_is_a_crowd, 1)]
)
def test_labels_are_compared_by_what_they_mean(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], changed: int
) -> None:
    write_cells(tmp_path / "cells", images=3)
    file = tmp_path / "cells/instances.json"
    before = snapshot(list_coco(str(tmp_path / "cells"), StorageSettings()))
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    found = list_coco(str(tmp_path / "cells"), StorageSettings())
    assert unread_news(found.pairs, before, found.categories).changed == changed
    assert news(snapshot(found), before).changed == changed
