"""COCO JSON: https://cocodataset.org/#format-data, written as it is read; only the categories are in memory.

Ids of images and annotations count from 1, in the order of addresses and of `instance_id`. Beside COCO's own
fields an image has `segray_image_id`, and `split` and `group` where it has them; an annotation has `score`
(none where a person drew it) and `segray_instance_id` (FiftyOne keeps `instance_id` for itself).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import shapely

from segray.export.table import Image, Instance, LabelTable
from segray.masks.polygonize import outlines


def write_coco(table: LabelTable, path: Path, split: str | None, *, polygons: bool) -> None:
    """Write the images of a split (None: all) and their instances to a local file."""
    categories = [{"id": number, "name": name} for number, name in table.categories().items()]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "segray export"}, "licenses": [],\n"categories": ')
        json.dump(categories, file, ensure_ascii=False)
        file.write(',\n"images": ')
        write_list(file, map(_image, table.images(split)))
        file.write(',\n"annotations": ')
        write_list(file, _annotations(table, split, polygons=polygons))
        file.write("}\n")


def write_list(file: TextIO, items: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list, a line an item."""
    between = "[\n"
    for item in items:
        file.write(between)
        file.write(json.dumps(item, ensure_ascii=False))
        between = ",\n"
    file.write("[]" if between == "[\n" else "\n]")


def _image(image: Image) -> dict[str, Any]:
    more = {"split": image.split, "group": image.group}
    return {
        "id": image.number,
        "file_name": image.file_name or image.address,
        "height": image.height,
        "width": image.width,
        "segray_image_id": image.image_id,
        **{name: value for name, value in more.items() if value is not None},
    }


def _annotations(table: LabelTable, split: str | None, *, polygons: bool) -> Iterator[dict[str, Any]]:
    for number, (image, each) in enumerate(table.instances(split), start=1):
        outline = exact_polygon(each) if polygons else None
        more = {"score": each.plain_score, "segray_instance_id": each.instance_id}
        yield {
            "id": number,
            "image_id": image.number,
            "category_id": each.category_id,
            "segmentation": each.rle if outline is None else [outline],
            "area": each.area,
            "bbox": [each.left, each.top, each.box_width, each.box_height],
            "iscrowd": each.iscrowd,
            **{name: value for name, value in more.items() if value is not None},
        }


def exact_polygon(instance: Instance) -> list[float] | None:
    """Return x, y, x, y, … along the pixel edges of a mask.

    None for a mask of several parts or with holes, which one polygon does not describe.
    """
    (shape,) = outlines([instance.spans])
    if shape.geom_type != "Polygon" or shape.is_empty or len(shape.interiors):
        return None
    ring: list[float] = shapely.get_coordinates(shape.exterior)[:-1].ravel().tolist()
    return ring
