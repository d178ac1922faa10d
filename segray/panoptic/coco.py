"""panoptic.json: COCO-panoptic of the whole output, written as the tables are read, a part in memory.

Ids of images count from 1, in the order of the tables. Beside COCO's own fields an image has
`segray_image_id`; a segment has `score` and `segray_instance_id` where it has them.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from segray.export.coco import write_list
from segray.output.folder import IMAGES
from segray.output.panoptic import SEGMENTS, info_of
from segray.panoptic.ledger import Tables


def write_coco(store: Tables, parts: Sequence[str], categories: list[dict[str, Any]], path: Path) -> None:
    """Write the annotated images of the parts and their segments to a local file."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "segray panoptic"}, "licenses": [],\n"categories": ')
        json.dump(categories, file, ensure_ascii=False)
        file.write(',\n"images": ')
        write_list(file, (_image(number, row) for number, row in _numbered(store, parts)))
        file.write(',\n"annotations": ')
        write_list(file, _annotations(store, parts))
        file.write("}\n")


def _numbered(store: Tables, parts: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    good = (row for row in store.rows(IMAGES, parts) if row["status"] == "annotated")
    return enumerate(good, start=1)


def _annotations(store: Tables, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    number = 0
    for part in parts:
        rows = store.rows(SEGMENTS, [part])
        segments = {key: list(group) for key, group in groupby(rows, lambda row: row["image_id"])}
        for row in store.rows(IMAGES, [part]):
            if row["status"] == "annotated":
                number += 1
                infos = [info_of(each) for each in segments.get(row["image_id"], [])]
                name = row["file"].rpartition("/")[2]
                yield {"image_id": number, "file_name": name, "segments_info": infos}


def _image(number: int, row: dict[str, Any]) -> dict[str, Any]:
    whole = row["uri"] if row["member"] is None else f"{row['uri']}/{row['member']}"
    return {
        "id": number,
        "file_name": whole.removeprefix("file://"),
        "height": row["height"],
        "width": row["width"],
        "segray_image_id": row["image_id"],
    }
