"""Label Studio: a list of tasks with brush or polygon regions, and the labelling interface for them.

Formats: https://labelstud.io/guide/task_format and https://labelstud.io/guide/predictions. A brush is a bit
stream of its own (`encode` of @thi.ng/rle-pack) over red, green, blue and alpha of all pixels, row by row.
Instances with a score are predictions, those from a person are annotations.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from segray.export.coco import exact_polygon, write_list
from segray.export.table import Image, Instance, LabelTable
from segray.masks.spans import bounds, crop
from segray.palette import VOID, palette

INTERFACE = "label_config.xml"
_FROM, _TO = "label", "image"
_BITS = (3, 4, 8, 16)
"""Widths of a run's length, of which each run names one."""


def write_tasks(table: LabelTable, path: Path, split: str | None, *, polygons: bool) -> None:
    """Write a task for each image of a split (None: all) to a local file, one image in memory at a time."""
    with path.open("w", encoding="utf-8") as file:
        write_list(file, _tasks(table, split, polygons=polygons))
        file.write("\n")


def _tasks(table: LabelTable, split: str | None, *, polygons: bool) -> Iterator[dict[str, Any]]:
    for image in table.images(split):
        drawn, predicted = list[dict[str, Any]](), list[dict[str, Any]]()
        for each in table.of_image(image):
            (drawn if each.score is None else predicted).append(_region(each, image, polygons=polygons))
        name = image.file_name or image.address
        task: dict[str, Any] = {"data": {"image": name, "segray_image_id": image.image_id}}
        if drawn:
            task["annotations"] = [{"result": drawn}]
        if predicted:
            task["predictions"] = [{"model_version": "segray", "result": predicted}]
        yield task


def _region(each: Instance, image: Image, *, polygons: bool) -> dict[str, Any]:
    ring = exact_polygon(each) if polygons else None
    kind = "brushlabels" if ring is None else "polygonlabels"
    value = (
        {"format": "rle", "rle": brush(each)}
        if ring is None
        else {"points": _percent(ring, image), "closed": True}
    )
    score = {} if each.score is None else {"score": each.plain_score}
    return {
        "id": each.instance_id,
        "type": kind,
        "from_name": f"{_FROM}_{kind}",
        "to_name": _TO,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {**value, kind: [each.category]},
        **score,
    }


def _percent(ring: Sequence[float], image: Image) -> list[list[float]]:
    points = np.array(ring).reshape(-1, 2) * 100 / (image.width, image.height)
    found: list[list[float]] = points.tolist()
    return found


def brush(instance: Instance) -> list[int]:
    """Return a mask as Label Studio's bytes: 255 in its pixels, 0 elsewhere.

    The stream is: number of values (32 bits), bits a value less 1 (5), four widths less 1 (4 each); then for
    each run a 1, the index of a width (2), its length less 1 in that width, its value (8).
    """
    head = f"{4 * instance.height * instance.width:032b}{7:05b}" + "".join(
        f"{bits - 1:04b}" for bits in _BITS
    )
    runs = _runs(instance)
    parts = [head]
    for place, length in enumerate((4 * runs).tolist()):
        value = "1" * 8 if place % 2 else "0" * 8
        for start in range(0, length, 2**16):
            few = min(length - start, 2**16) - 1
            width = next(index for index, bits in enumerate(_BITS) if few < 2**bits)
            parts.append(f"1{width:02b}{few:0{_BITS[width]}b}{value}")
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _runs(instance: Instance) -> NDArray[np.int64]:
    """Return run lengths by rows, alternately empty and full, int64 (runs,); COCO's own are by columns.

    An empty run between two rows that are full is 0.
    """
    spans = instance.spans
    window = bounds(spans)
    lines = np.pad(crop(spans, window), ((0, 0), (1, 1))).astype(np.int8)
    row, col = np.nonzero(np.diff(lines, axis=1))
    edges = (row + window.row_start) * instance.width + col + window.col_start
    runs: NDArray[np.int64] = np.diff(np.r_[0, edges, instance.height * instance.width])
    return runs


def interface(names: Sequence[str], *, polygons: bool) -> str:
    """Return the labelling interface of a project for these classes."""
    kinds = ["BrushLabels", "PolygonLabels"] if polygons else ["BrushLabels"]
    lines = ["<View>", f'  <Image name="{_TO}" value="$image" zoom="true"/>']
    colours = palette(min(max(len(names) + 1, 1), VOID))
    for kind in kinds:
        lines.append(f'  <{kind} name="{_FROM}_{kind.lower()}" toName="{_TO}">')
        for place, name in enumerate(names, start=1):
            red, green, blue = colours[place % VOID]
            colour = f"#{red:02x}{green:02x}{blue:02x}"
            lines.append(f'    <Label value={quoteattr(name, {chr(10): "&#10;"})} background="{colour}"/>')
        lines.append(f"  </{kind}>")
    return "\n".join([*lines, "</View>"]) + "\n"
