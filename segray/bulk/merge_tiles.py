"""Merge the tiles of one item into one row: the part that annotate and predict share. No Ray, no storage."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.bulk.results import results_table
from segray.errors import ItemError, JobFailedError
from segray.scenes.scene import Scene, scene_from
from segray.schema import ANNOTATED, DECODED, QUALITY
from segray.sources.names import one_line


def merged_or_rejected(tiles: pa.Table, merge: Callable[[pa.Table, Scene], pa.Table]) -> pa.Table:
    """Merge all tiles of one item (schema ANNOTATED; a repeated tile is used once) into its row.

    `merge` returns the row, still without the counts of its tiles. The item is rejected when every tile with
    data is, and when merging fails: else the job would end there, and at each restart again.
    """
    tiles = _each_once(tiles)
    scene = scene_from(tiles["scene"][0].as_py())
    try:
        row = with_column(merge(tiles, scene), "crs", pa.array([_name(scene.crs)], pa.string()))
        return _account(row, tiles, scene)
    except JobFailedError:
        raise  # the storage, which would fail for all scenes
    except Exception as error:  # noqa: BLE001 - an error of one scene costs that scene
        said = one_line(f"its tiles cannot be merged: {type(error).__name__}: {error}")[:300]
        row = results_table(item_of(tiles, scene), [ItemError("crashed", said)])
        row = _account(row, tiles, scene)
        return with_column(row, "tiles_rejected", row["tiles"].combine_chunks())


def all_rejected(tiles: pa.Table) -> ItemError | None:
    """Return the most frequent error of tiles (schema ANNOTATED) without a result; None if one has any."""
    statuses = Counter(tiles["status"].to_pylist())
    if statuses["annotated"] or not statuses["rejected"]:
        return None
    rejected = tiles.filter(pc.equal(tiles["status"], "rejected"))
    (kind, reason), _ = Counter(
        zip(rejected["error_type"].to_pylist(), rejected["error"].to_pylist(), strict=True)
    ).most_common(1)[0]
    number = statuses["rejected"]
    return ItemError(kind, f"all {number} tiles: {reason}" if number > 1 else reason)


def item_of(tiles: pa.Table, scene: Scene) -> pa.Table:
    """Return the item as a row of DECODED, without pixels and without its tiles' errors."""
    first = tiles.slice(0, 1)
    columns: dict[str, Any] = {name: first[name] for name in DECODED.names if name in first.schema.names}
    columns |= {"height": [scene.height], "width": [scene.width], "frames": [1]}
    columns |= {name: [None] for name in ("pixels", "nodata", "tile", "error_type", "error")}
    if scene.taken_at is not None and not first["taken_at"][0].is_valid:  # a STAC Item's comes first
        columns["taken_at"] = [scene.taken_at]
    return pa.table(
        [pa.array(each, f.type) if isinstance(each := columns[f.name], list) else each for f in DECODED],
        schema=DECODED,
    )


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Replace a column of a table of schema ANNOTATED."""
    return table.set_column(table.schema.get_field_index(name), ANNOTATED.field(name), column)


def _each_once(tiles: pa.Table) -> pa.Table:
    """Sort by tile; of repeated results keep the first that is not rejected, which a retry has overcome."""
    rejected = pc.equal(tiles["status"], "rejected").to_numpy(zero_copy_only=False)
    order = np.lexsort((rejected, tiles["tile"].to_numpy()))
    _, first = np.unique(tiles["tile"].to_numpy()[order], return_index=True)
    return tiles.take(pa.array(order[first]))


def _account(row: pa.Table, tiles: pa.Table, scene: Scene) -> pa.Table:
    """Return the item's row with the counts of its tiles."""
    statuses = Counter(tiles["status"].to_pylist())
    row = with_column(row, "tiles", pa.array([tiles.num_rows], pa.int32()))
    row = with_column(row, "tiles_rejected", pa.array([statuses["rejected"]], pa.int32()))
    row = with_column(row, "tiles_skipped", pa.array([statuses["skipped"]], pa.int32()))
    empty_masks = pc.sum(tiles["empty_masks"]).as_py() or 0
    row = with_column(row, "empty_masks", pa.array([empty_masks], pa.int32()))
    for field in QUALITY:
        value = _weighted(tiles, field.name) if row["status"][0].as_py() == "annotated" else None
        row = with_column(row, field.name, pa.array([value], field.type))
    kind = ANNOTATED.field("tile_rows").type
    return with_column(row, "tile_rows", pa.array([_tile_rows(tiles, scene)], kind))


def _weighted(tiles: pa.Table, name: str) -> float | None:
    """Return the mean over the tiles with a value, weighted by pixels; shared pixels count twice."""
    known = tiles.filter(pc.is_valid(tiles[name]))
    if not known.num_rows:
        return None
    height, width = (known[side].to_numpy().astype(np.float64) for side in ("height", "width"))
    return float(np.average(known[name].to_numpy(), weights=height * width))


def _tile_rows(tiles: pa.Table, scene: Scene) -> list[dict[str, Any]]:
    rows = []
    for tile, *outcome in zip(
        *(tiles[name].to_pylist() for name in ("tile", "status", "error_type", "error")), strict=True
    ):
        row, col = divmod(tile, scene.grid.cols)
        window = scene.grid.window(tile)
        place = {name: getattr(window, name) for name in ("row_start", "row_stop", "col_start", "col_stop")}
        result = dict(zip(("status", "error_type", "error"), outcome, strict=True))
        rows.append({"tile_row": row, "tile_col": col, **place, **result})
    return rows


def _name(crs: str | None) -> str | None:
    """Return `EPSG:32616` where the CRS has such a name, else its WKT."""
    if crs is None:
        return None
    from pyproj import CRS

    authority = CRS.from_wkt(crs).to_authority()
    return ":".join(authority) if authority else crs
