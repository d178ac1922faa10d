"""Corrected images -> the tables of `annotate`, by the store that annotate writes with; none has a score."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray import schema
from segray.export.table import Image, Instance
from segray.importer.compare import Found
from segray.masks.polygonize import outlines
from segray.masks.spans import Spans, area, bounds, counts_of, spans_of
from segray.output.store import MERGE_BYTES, Part, Store
from segray.scenes.crs import can_place
from segray.scenes.georeference import Place, placed
from segray.scenes.scene import scene_from

KEPT = ("split", "group")
"""Columns of images that the labels may carry, beside those of the run."""
_BUFFER_BYTES = 2 << 20
"""Of rows in memory, before they are compressed."""
_MERGE_BYTES = 48 << 20
"""Likewise, of what is merged at once: equal masks take next to nothing in a file, but not in memory."""
_MASKS = 500
"""Masks decoded at once."""


class LabelWriter:
    """Add images, then `finish`."""

    def __init__(self, store: Store) -> None:
        """Drop what an attempt that was killed has left: an import begins anew."""
        self._store = store
        self._schema = schema.with_kept(schema.ANNOTATED, store.kept)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._staged: list[Part] = []
        self._staged_bytes = 0
        for part in store.recover():
            store.discard(part)

    def add(
        self, image: Image, ledger: Mapping[str, Any], found: Sequence[Found], before: Sequence[Instance]
    ) -> None:
        """Add an image with its row of the run's ledger and its instances, as corrected and before."""
        about = {name: ledger.get(name) for name in self._schema.names if name in ledger}
        text = {name: None if ledger.get(name) is None else str(ledger[name]) for name in self._store.kept}
        outcome = {"status": "annotated", "instances": len(found), "error_type": None, "error": None}
        unknown = dict.fromkeys(("empty_masks", "tiles", "tiles_rejected", "tiles_skipped", "tile", "end"))
        rows = instance_rows(image, ledger, found, before, self._store.crs)
        self._rows.append({**about, **text, **outcome, **unknown, "found": rows, "tile_rows": None})
        self._bytes += 1000 + sum(300 + len(each.counts) for each in found)
        if self._bytes >= _BUFFER_BYTES:
            self._commit()

    def _commit(self) -> None:
        plain = [{name: row.get(name) for name in self._schema.names} for row in self._rows]
        if plain:
            self._staged.append(self._store.commit(pa.Table.from_pylist(plain, self._schema)))
        self._staged_bytes += self._bytes
        self._rows, self._bytes = [], 0
        if self._staged_bytes >= _MERGE_BYTES or sum(part.size for part in self._staged) >= MERGE_BYTES:
            self._merge()

    def _merge(self) -> None:
        if self._staged:
            self._store.merge(self._staged)
        self._staged, self._staged_bytes = [], 0

    def finish(self) -> None:
        """Write what is left."""
        self._commit()
        self._merge()


def instance_rows(
    image: Image, ledger: Mapping[str, Any], found: Sequence[Found], before: Sequence[Instance], crs: str
) -> list[dict[str, Any]]:
    """Return rows of NESTED_INSTANCE; new instances get the numbers after the largest of the image.

    Of those that were removed as well: a number is never another instance's.
    """
    masks = list[Spans]()
    for first in range(0, len(found), _MASKS):
        texts = [each.counts for each in found[first : first + _MASKS]]
        masks += [spans_of(counts, image.height) for counts in counts_of(texts)]
    ids = _ids(image, found, masks, before)
    rows = [
        {
            "instance_id": ids[place],
            "category_id": each.category_id,
            "category": each.category,
            "score": None,
            **_measured(mask, image),
            "segmentation": {"size": [image.height, image.width], "counts": each.counts},
            "iscrowd": int(each.crowd or False),
        }
        for place, (each, mask) in enumerate(zip(found, masks, strict=True))
    ]
    for row, more in zip(rows, _on_the_map(masks, ledger, crs), strict=False):
        row |= more
    return sorted(rows, key=lambda row: str(row["instance_id"]))


def _measured(mask: Spans, image: Image) -> dict[str, Any]:
    window = bounds(mask)
    box = [float(each) for each in (window.col_start, window.row_start, window.width, window.height)]
    ends = window.row_stop == image.height or window.col_stop == image.width
    truncated = min(window.row_start, window.col_start) == 0 or ends
    return {"bbox": box, "box": box, "area": area(mask), "truncated": truncated}


def _ids(
    image: Image, found: Sequence[Found], masks: Sequence[Spans], before: Sequence[Instance]
) -> list[str]:
    """Return the ids; new instances in the order of annotate: bbox y, bbox x, category_id, area."""
    ids = [each.instance_id for each in found]
    taken = [*(each for each in ids if each is not None), *(row.instance_id for row in before)]
    numbers = [each.rpartition("-")[2] for each in taken]
    following = max((int(each) for each in numbers if each.isdecimal()), default=-1) + 1
    new = [place for place, each in enumerate(ids) if each is None]
    for rank, place in enumerate(sorted(new, key=lambda place: _order(found[place], masks[place]))):
        ids[place] = f"{image.image_id}-{following + rank:07d}"
    return [str(each) for each in ids]


def _order(each: Found, mask: Spans) -> tuple[int, ...]:
    window = bounds(mask)
    return window.row_start, window.col_start, each.category_id, area(mask)


def _on_the_map(masks: Sequence[Spans], ledger: Mapping[str, Any], crs: str) -> list[dict[str, Any]]:
    """Return geometry, its box and area of each mask of a scene; nothing for other images."""
    scene = None if ledger.get("scene") is None else scene_from(ledger["scene"])
    if scene is None or scene.crs is None or scene.transform is None or can_place(scene.crs, crs):
        return []
    geometry, box, square_metres = placed(outlines(masks), Place(scene.transform, scene.crs, crs))
    return [
        {
            "geometry": shape,
            "geometry_bbox": _sides(corners),
            "area_m2": None if np.isnan(size) else float(size),
        }
        for shape, corners, size in zip(geometry, box, square_metres, strict=True)
    ]


def _sides(corners: NDArray[np.float64]) -> dict[str, float] | None:
    if np.isnan(corners).any():
        return None
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), corners.tolist(), strict=True))


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"
