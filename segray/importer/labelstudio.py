"""Label Studio's JSON export: a list of tasks with brushes, polygons and rectangles; read task by task.

Format: https://labelstud.io/guide/export and https://labelstud.io/tags; brushes as `export.labelstudio`. Of a
task the newest annotation counts. A task without one (predictions alone) was not looked at.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ijson
import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError, SettingsError
from segray.importer.drawn import Draw, Drawn, Looked, by_value, failing, polygons, turned_box
from segray.importer.files import Inside
from segray.importer.rejects import Rejects
from segray.masks.spans import encoded

_KINDS = ("brush", "polygon", "rectangle", "ellipse", "keypoint")
_CHANNELS = 4


def read_labelstudio(file: Inside, rejects: Rejects) -> Iterator[Looked]:
    """Yield the images of tasks that have an annotation; the others are counted.

    Raises SettingsError where it is not such an export.
    """
    try:
        with file.open() as stream:
            if next(iter(ijson.parse(stream)))[1] != "start_array":
                raise SettingsError(f"{file.name}: not Label Studio: a list of tasks is expected (JSON)")
        with file.open() as stream:
            for place, task in enumerate(ijson.items(stream, "item", use_float=True), start=1):
                if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                    raise SettingsError(
                        f"{file.name}: task {place} has no data; export as JSON, not JSON-MIN"
                    )
                looked = _looked(task, place)
                if looked is None:
                    rejects.not_looked_at += 1
                else:
                    yield looked
    except (ijson.JSONError, StopIteration) as error:
        raise SettingsError(f"{file.name}: it is not JSON: {error}") from error


def _looked(task: dict[str, Any], place: int) -> Looked | None:
    done = [each for each in task.get("annotations") or [] if _counts(each)]
    if not done:
        return None
    newest = max(enumerate(done), key=lambda pair: (str(pair[1].get("updated_at") or ""), pair[0]))[1]
    regions = _regions(newest["result"])
    data = task["data"]
    sizes = [(each.get("original_height"), each.get("original_width")) for each in regions]
    known = [*{size for size in sizes if all(isinstance(each, int) for each in size)}]
    name = data.get("image") or next((value for value in data.values() if isinstance(value, str)), "")
    return Looked(
        str(name),
        [_drawn(each) for each in regions],
        _text(data.get("segray_image_id")),
        known[0] if len(known) == 1 else None,  # type: ignore[arg-type]
        _text(data.get("split")),
        _text(data.get("group")),
    )


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _counts(annotation: Any) -> bool:
    is_result = isinstance(annotation, dict) and isinstance(annotation.get("result"), list)
    return is_result and not annotation.get("was_cancelled")


def _regions(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a region for each shape, with the labels that other results of its id give it."""
    by_id: dict[str, dict[str, Any]] = defaultdict(dict)
    for place, each in enumerate(results):
        if not isinstance(each, dict) or not isinstance(each.get("value"), dict):
            continue
        number = each.get("id")
        region = by_id[f"#{place + 1}" if number is None else str(number)]
        kind = str(each.get("type", ""))
        if shape := next((one for one in _KINDS if kind.startswith(one)), None):
            region |= {**each, "shape": shape}
        named = each["value"].get(kind) if kind.endswith("labels") else None
        if isinstance(named, list) and named:
            region["label"] = str(named[0])
    return [{**region, "id": number} for number, region in by_id.items() if "shape" in region]


def _drawn(region: Mapping[str, Any]) -> Drawn:
    try:
        draw = _shape(region)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        draw = failing(f"its value is broken: {error!r}")
    number = str(region.get("id"))
    return Drawn(f"region {number}", draw, region.get("label"), instance_id=number)


def _shape(region: Mapping[str, Any]) -> Draw:
    kind, value = region["shape"], region["value"]
    if kind == "brush":
        if not isinstance(value["rle"], list):  # bytes(9) are nine of them
            raise TypeError("its rle is no list")
        data = bytes(value["rle"])
        return lambda height, width: _brushed(data, height, width)
    if kind == "polygon":
        points = np.array(value["points"], np.float64).reshape(-1, 2)
        return lambda height, width: polygons([(points * (width, height) / 100).ravel().tolist()])(
            height, width
        )
    if kind == "rectangle":
        x, y, wide, high = (float(value[name]) for name in ("x", "y", "width", "height"))
        degrees = float(value.get("rotation") or 0)
        return lambda height, width: turned_box(
            (x * width / 100, y * height / 100),
            (wide * width / 100, high * height / 100),
            degrees,
            (x * width / 100, y * height / 100),
        )(height, width)
    return failing(f"a {kind} has no area here; draw a brush, polygon or rectangle")


def _brushed(data: bytes, height: int, width: int) -> str:
    pixels = unpacked(data, height * width * _CHANNELS).reshape(height, width, _CHANNELS)[..., 3] > 0
    return by_value(pixels.astype(np.uint8)).get(1, "") or _empty(height, width)


def _empty(height: int, width: int) -> str:
    return encoded([np.zeros((0, 3), np.int64)], height, width)[0]


def unpacked(data: bytes, size: int) -> NDArray[np.uint8]:
    """Return the values, uint8 (size,), of Label Studio's bit stream (`decode` of @thi.ng/rle-pack).

    Number of values (32 bits), bits a value less 1 (5), four widths less 1 (4 each); then a flag, the index
    of a width (2), a length less 1 in that width, and one value that is repeated, or that many values. Raises
    ItemError for anything else.
    """
    bits = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
    position = 0

    def take(number: int) -> int:
        nonlocal position
        position += number
        if position > len(bits):
            raise ItemError("unsupported", "the bits of a brush end early")
        return int(bits[position - number : position], 2)

    total, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if total != size or word != 8:
        raise ItemError("unsupported", f"a brush of {total:,} values, not {size:,} (4 a pixel)")
    values, done = np.zeros(size, np.uint8), 0
    while done < size:
        is_run = take(1)
        length = take(widths[take(2)]) + 1
        stop = min(done + length, size)
        if is_run:
            values[done:stop] = take(word)
        else:
            values[done:stop] = [take(word) for _ in range(stop - done)]
        done = stop
    return values
