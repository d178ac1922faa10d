"""Merge the tiles of one item into one row: seams closed, ids assigned, map outlines. No Ray, no storage."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.annotate.instances import annotated_table, found_instances
from segray.bulk.merge_tiles import all_rejected, item_of, merged_or_rejected, with_column
from segray.bulk.results import Outcome
from segray.masks.polygonize import outlines
from segray.masks.rle import EncodedMasks
from segray.masks.spans import Spans, area, bounds, counts_of, encoded, moved, spans_of
from segray.scenes.crs import can_place
from segray.scenes.georeference import Place, placed
from segray.scenes.scene import Scene
from segray.scenes.seams import Joined, Views, join
from segray.schema import GEOMETRY_BBOX, NESTED_INSTANCE


def merged_item(tiles: pa.Table, crs: str) -> pa.Table:
    """Merge all tiles of one item (schema ANNOTATED) into its row; `crs`: of the outlines."""
    return merged_or_rejected(tiles, partial(_joined, crs=crs))


def _joined(tiles: pa.Table, scene: Scene, crs: str) -> pa.Table:
    objects = _sorted(join(_views(tiles, scene), scene.grid))
    row = annotated_table(item_of(tiles, scene), [_outcome(tiles, objects, scene)], _categories(tiles))
    row = with_column(row, "found", _on_the_map(row["found"].combine_chunks(), objects, scene, crs))
    return with_column(row, "note", pa.array([_note(scene, crs)], pa.string()))


def _views(tiles: pa.Table, scene: Scene) -> Views:
    """Return the instances of each tile, moved to their position in the scene."""
    found = tiles["found"].combine_chunks()
    rows = pc.list_flatten(found)
    parents = pc.list_parent_indices(found).to_numpy()
    number = tiles["tile"].to_numpy()[parents]
    windows = [scene.grid.window(tile) for tile in tiles["tile"].to_pylist()]
    starts = np.array([(window.col_start, window.row_start) for window in windows], np.float32)[parents]
    box = _fixed(rows, "box")
    corner = box[:, :2] + starts
    strings = pc.struct_field(pc.struct_field(rows, "segmentation"), "counts").to_pylist()
    masks = [
        moved(spans_of(counts, windows[parent].height), windows[parent].row_start, windows[parent].col_start)
        for counts, parent in zip(counts_of(strings), parents, strict=True)
    ]
    return Views(
        number.astype(np.int64),
        pc.struct_field(rows, "category_id").to_numpy(zero_copy_only=False).astype(np.int32),
        pc.struct_field(rows, "score").to_numpy(zero_copy_only=False).astype(np.float32),
        np.concatenate([corner, corner + box[:, 2:]], axis=1),
        masks,
    )


def _fixed(rows: pa.StructArray, name: str) -> NDArray[np.float32]:
    """Return a column of fixed-size lists as (n, 4) float32."""
    values: NDArray[np.float32] = pc.list_flatten(pc.struct_field(rows, name)).to_numpy(zero_copy_only=False)
    return values.reshape(-1, 4).astype(np.float32)


def _sorted(objects: Joined) -> Joined:
    """Return the objects in the order of their future ids (see `found_instances`)."""
    if not objects.masks:
        return objects
    boxes = [bounds(mask) for mask in objects.masks]
    top, left = ([getattr(box, name) for box in boxes] for name in ("row_start", "col_start"))
    areas = [area(mask) for mask in objects.masks]
    order = np.lexsort([objects.score, np.array(areas), objects.category_id, np.array(left), np.array(top)])
    return Joined(
        objects.category_id[order],
        objects.score[order],
        objects.box[order],
        [objects.masks[place] for place in order],
        objects.views[order],
    )


def _outcome(tiles: pa.Table, objects: Joined, scene: Scene) -> Outcome:
    if (error := all_rejected(tiles)) is not None:
        return error
    masks = EncodedMasks(
        encoded(objects.masks, scene.height, scene.width),
        np.array([area(mask) for mask in objects.masks], np.int64),
        _boxes(objects.masks),
        np.array([_touches(mask, scene) for mask in objects.masks], bool),
    )
    return found_instances(objects.category_id, objects.score, objects.box, masks)


def _boxes(masks: list[Spans]) -> NDArray[np.float32]:
    """Return (n, 4) float32 boxes: x, y, width, height."""
    boxes = [bounds(mask) for mask in masks]
    rows = [(box.col_start, box.row_start, box.width, box.height) for box in boxes]
    return np.array(rows, np.float32).reshape(-1, 4)


def _touches(mask: Spans, scene: Scene) -> bool:
    """Return whether a mask touches the border of its scene."""
    box = bounds(mask)
    return (
        min(box.row_start, box.col_start) == 0 or box.row_stop == scene.height or box.col_stop == scene.width
    )


def _categories(tiles: pa.Table) -> dict[int, str]:
    rows = pc.list_flatten(tiles["found"].combine_chunks())
    columns = (pc.struct_field(rows, name).to_pylist() for name in ("category_id", "category"))
    return dict(zip(*columns, strict=True))


def _on_the_map(found: pa.ListArray, objects: Joined, scene: Scene, crs: str) -> pa.ListArray:
    """Return `found` with outlines, where the scene is georeferenced and can be transformed to `crs`."""
    if _unplaced(scene, crs) is not None or not len(found.values):
        return found
    if scene.crs is None or scene.transform is None:
        return found
    geometry, box, square_metres = placed(outlines(objects.masks), Place(scene.transform, scene.crs, crs))
    nothing = np.isnan(box).any(1)
    corners = [pa.array(box[:, side], pa.float64()) for side in range(4)]
    columns = {
        "geometry": pa.array(geometry, pa.binary()),
        "geometry_bbox": pa.StructArray.from_arrays(
            corners, fields=list(GEOMETRY_BBOX), mask=pa.array(nothing)
        ),
        "area_m2": pa.array(square_metres, pa.float64(), mask=np.isnan(square_metres)),
    }
    arrays = [columns.get(field.name, pc.struct_field(found.values, field.name)) for field in NESTED_INSTANCE]
    values = pa.StructArray.from_arrays(arrays, fields=list(NESTED_INSTANCE))
    return pa.ListArray.from_arrays(found.offsets, values, type=found.type)


def _note(scene: Scene, crs: str) -> str | None:
    reason = _unplaced(scene, crs)
    notes = [f"no outlines on the map: {reason}" if reason else None, scene.told]
    return "; ".join(filter(None, notes)) or None


def _unplaced(scene: Scene, crs: str) -> str | None:
    """Return why its instances have no outlines; None also for images."""
    if scene.crs is None:
        return scene.note
    reason = can_place(scene.crs, crs)
    return None if reason is None else f"its CRS cannot be transformed to {crs}: {reason}"
