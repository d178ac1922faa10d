"""How far the overlapping windows of one scene disagree, from its tiles before they are merged."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.scenes.scene import scene_from
from segray.selection.disagreement import windows_disagreement


def disagreement_of(tiles: pa.Table, threshold: float) -> float | None:
    """Return `windows_disagreement` of an item's tiles (schema ANNOTATED), instances above the threshold.

    None where no instance lies in what two windows share.
    """
    grid = scene_from(tiles["scene"][0].as_py()).grid
    tiles = tiles.filter(pc.equal(tiles["status"], "annotated"))
    found = tiles["found"].combine_chunks()
    rows, parents = pc.list_flatten(found), pc.list_parent_indices(found).to_numpy()
    number = tiles["tile"].to_numpy().astype(np.int64)
    starts = np.array(
        [(window.col_start, window.row_start) for window in map(grid.window, number.tolist())], np.float32
    ).reshape(-1, 2)[parents]
    box = pc.list_flatten(pc.struct_field(rows, "box")).to_numpy(zero_copy_only=False).reshape(-1, 4)
    corner = box[:, :2] + starts
    keep = pc.struct_field(rows, "score").to_numpy(zero_copy_only=False) > threshold
    boxes = np.concatenate([corner, corner + box[:, 2:]], axis=1).astype(np.float32)
    categories = pc.struct_field(rows, "category_id").to_numpy(zero_copy_only=False).astype(np.int32)
    share = windows_disagreement(
        number[parents][keep], boxes[keep], categories[keep], grid, set(number.tolist())
    )
    return None if np.isnan(share) else share
