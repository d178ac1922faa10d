"""COCO JSON, also zipped as CVAT writes it: read by a streaming parser into a temporary SQLite file.

Beside COCO's own fields: `segray_image_id`, `split` and `group` of images, `segray_instance_id` of
annotations. An annotation without a segmentation is its box.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from segray.data.coco_file import box_of, categories_of, images_of, known_id
from segray.errors import ItemError, SettingsError
from segray.importer.categories import Categories
from segray.importer.drawn import Draw, Drawn, Looked, box, failing, segmentation
from segray.importer.files import Inside
from segray.importer.pile import Pile
from segray.importer.rejects import Rejects

_PARTS = ("images", "annotations", "categories")


def read_coco(file: Inside, categories: Categories, rejects: Rejects, folder: Path) -> Iterator[Looked]:
    """Yield the images of a file. Raises SettingsError where it is not COCO."""
    named = categories_of(list(_items(file, "categories")), file.name)
    categories.declare((number, name) for number, name in named.items())
    annotations = Pile(folder, f"annotations-{file.number}")
    annotations.add((_key(each), _checked(each, file)) for each in _items(file, "annotations"))
    annotations.settle()
    if not named or not annotations.count():
        _check(file)
    seen, numbers = 0, set[str]()  # 90 bytes an image
    try:
        for entry in _items(file, "images"):
            ((number, image),) = images_of([entry], file.name).items()
            if str(number) in numbers:
                raise SettingsError(f"{file.name}: images need ids of their own, two have {number}")
            numbers.add(str(number))
            drawn = [_drawn(each, named) for each in annotations.of(str(number))]
            seen += len(drawn)
            yield Looked(
                image.name,
                drawn,
                _text(entry.get("segray_image_id")),
                image.size,
                _text(image.split) or file.split,
                _text(image.group),
            )
        if strays := annotations.count() - seen:
            rejects.annotations(strays, file.name, "annotations of images that it does not list")
    finally:
        annotations.close()


def _items(file: Inside, part: str) -> Iterator[Any]:
    try:
        with file.open() as stream:
            yield from ijson.items(stream, f"{part}.item", use_float=True)
    except ijson.JSONError as error:
        raise SettingsError(f"{file.name}: it is not JSON: {error}") from error


def _check(file: Inside) -> None:
    """Raise SettingsError where a part is missing or no list."""
    with file.open() as stream:
        there = {prefix for prefix, event, _ in ijson.parse(stream) if event == "start_array"}
    if lost := [part for part in _PARTS if part not in there]:
        raise SettingsError(f"{file.name}: not COCO JSON: it has no list {', '.join(lost)}")


def _checked(annotation: Any, file: Inside) -> Any:
    """Return an annotation. Raises SettingsError for one of COCO-panoptic."""
    if isinstance(annotation, dict) and "segments_info" in annotation:
        raise SettingsError(f"{file.name}: COCO-panoptic, not COCO: its segments are in PNG files; not read")
    return annotation


def _key(annotation: Any) -> str:
    image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
    return str(int(image_id)) if isinstance(image_id, float) and image_id.is_integer() else str(image_id)


def _drawn(annotation: dict[str, Any], named: dict[int, str]) -> Drawn:
    number = annotation.get("category_id")
    known = known_id(named, number)
    name = None if known is None else named[known]
    return Drawn(
        f"annotation {annotation.get('id')}",
        failing(f"category {number} is not in the file") if name is None else _shape(annotation),
        name,
        instance_id=_text(annotation.get("segray_instance_id")),
        crowd=None if annotation.get("iscrowd") is None else annotation["iscrowd"] == 1,
    )


def _shape(annotation: dict[str, Any]) -> Draw:
    if annotation.get("segmentation") or annotation.get("bbox") is None:
        return segmentation(annotation.get("segmentation"))
    try:
        left, top, width, height = box_of(annotation["bbox"])
    except ItemError as error:
        return failing(error.reason)
    return box(left, top, left + width, top + height)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
