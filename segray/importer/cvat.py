"""CVAT for images 1.1: annotations.xml, also zipped; read image by image.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Polygons and boxes in pixels, boxes
may be turned; masks are run lengths row by row of the box around them, empty pixels first. An attribute
`instance_id` of a shape is the run's.
"""

from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from segray.errors import ItemError, SettingsError
from segray.importer.categories import Categories
from segray.importer.drawn import Draw, Drawn, Looked, failing, pasted, polygons, turned_box
from segray.importer.files import Inside

_NO_AREA = ("points", "polyline", "cuboid", "ellipse", "skeleton")


def read_cvat(file: Inside, categories: Categories) -> Iterator[Looked]:
    """Yield the images of a file. Raises SettingsError where it is not CVAT's XML for images."""
    try:
        with file.open() as stream:
            yield from _images(stream, file, categories)
    except ElementTree.ParseError as error:
        raise SettingsError(f"{file.name}: it is not XML: {error}") from error


def _images(stream: object, file: Inside, categories: Categories) -> Iterator[Looked]:
    root = None
    for event, element in ElementTree.iterparse(stream, ("start", "end")):  # type: ignore[call-overload]
        if root is None:
            root = element
            if root.tag != "annotations":
                raise SettingsError(f"{file.name}: not CVAT: its root is <{root.tag}>, not <annotations>")
        if event == "start":
            continue
        if element.tag == "track":
            raise SettingsError(f"{file.name}: it is CVAT for video; export the task as CVAT for images 1.1")
        if element.tag == "meta":
            names = [each.findtext("name") for each in element.iter("label")]
            categories.declare((None, name) for name in names if name)
        elif element.tag == "image":
            yield _looked(element)
            root.clear()


def _looked(image: ElementTree.Element) -> Looked:
    drawn = [_drawn(place, each) for place, each in enumerate(image, start=1) if each.tag != "tag"]
    size = (image.get("height", ""), image.get("width", ""))
    sides = (int(size[0]), int(size[1])) if all(each.isdecimal() for each in size) else None
    return Looked(image.get("name", ""), drawn, size=sides, split=_split(image.get("subset")))


def _split(subset: str | None) -> str | None:
    return None if subset in (None, "", "default") else subset


def _drawn(place: int, shape: ElementTree.Element) -> Drawn:
    attributes = {each.get("name"): (each.text or "").strip() for each in shape.iter("attribute")}
    try:
        draw = _shape(shape)
    except (KeyError, ValueError) as error:
        draw = failing(f"its <{shape.tag}> is broken: {error}")
    except ItemError as error:
        draw = failing(error.reason)
    return Drawn(
        f"shape {place}", draw, shape.get("label"), instance_id=attributes.get("instance_id") or None
    )


def _shape(shape: ElementTree.Element) -> Draw:
    of = shape.attrib
    if shape.tag == "polygon":
        return polygons([[float(each) for point in of["points"].split(";") for each in point.split(",")]])
    if shape.tag == "box":
        x, y, right, bottom = (float(of[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        middle = (x + right) / 2, (y + bottom) / 2
        return turned_box((x, y), (right - x, bottom - y), float(of.get("rotation", 0)), middle)
    if shape.tag == "mask":
        left, top, width, height = (int(of[name]) for name in ("left", "top", "width", "height"))
        return _mask(left, top, width, height, of["rle"])
    kind = "has no area here; draw a polygon or a mask" if shape.tag in _NO_AREA else "is not known"
    raise ItemError("unsupported", f"a <{shape.tag}> {kind}")


def _mask(left: int, top: int, width: int, height: int, rle: str) -> Draw:
    counts = [int(each) for each in rle.split(",")]
    if width < 1 or height < 1 or min(counts) < 0 or sum(counts) != width * height:
        raise ItemError("unsupported", f"run lengths do not sum to {width} x {height} pixels")

    def draw(rows: int, cols: int) -> str:
        if height > rows or width > cols:
            raise ItemError("unsupported", f"a mask of {width} x {height} in an image of {cols} x {rows}")
        crop = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
        return pasted(crop, top, left)(rows, cols)

    return draw
