"""Merge the windows of one item into its map, and its tiles into one row of the ledger."""

from functools import partial

import numpy as np
import pyarrow as pa
import rasterio

from segray.bulk.merge_tiles import all_rejected, item_of, merged_or_rejected, with_column
from segray.bulk.results import Outcome, results_table
from segray.output.folder import Output
from segray.predict.blend import blended, blended_labels
from segray.predict.cleanup import CleanUp
from segray.predict.maps import TOGETHER, Maps, growing, png
from segray.predict.predictor import Labelled
from segray.predict.settings import PredictSettings
from segray.predict.windows import Windows
from segray.scenes.scene import Scene


def merged_map(tiles: pa.Table, settings: PredictSettings, names: tuple[str, ...], store: Output) -> pa.Table:
    """Merge all tiles of one item (schema ANNOTATED) into its row, after writing its map.

    Raises JobFailedError where the output cannot be read or written.
    """
    return merged_or_rejected(tiles, partial(_joined, settings=settings, names=names, store=store))


def _joined(
    tiles: pa.Table, scene: Scene, settings: PredictSettings, names: tuple[str, ...], store: Output
) -> pa.Table:
    image_id = tiles["image_id"][0].as_py()
    outcome: Outcome = all_rejected(tiles)
    if outcome is None:
        outcome = Labelled()
        windows = Windows(store, image_id, scene.grid)
        with growing(scene, names, settings.probabilities) as maps:
            if settings.probabilities:
                maps.write(blended(scene.grid, windows.read, len(names), TOGETHER))
            else:
                maps.write_labels(blended_labels(scene.grid, windows.read, len(names), TOGETHER))
            if clean_up := CleanUp(settings.smallest_area, settings.close_holes, names):
                clean_up.file(maps.plain("labels"))
            _write(maps, store, image_id, scene, len(names))
            if settings.polygons:
                from segray.predict.polygons import write_polygons

                write_polygons(maps.plain("labels"), store, image_id, scene, names, settings.crs)
    row = results_table(item_of(tiles, scene), [outcome])
    note = "; ".join(filter(None, (scene.note, scene.told))) or None
    return with_column(row, "note", pa.array([note], pa.string()))


def _write(maps: Maps, store: Output, image_id: str, scene: Scene, classes: int) -> None:
    """Write COGs of a scene; a large image, without bands and georeference, becomes a PNG as the others."""
    for kind, path in maps.cogs():
        if kind == "labels" and not scene.bands:
            with rasterio.open(path) as file:
                store.put(f"labels/{image_id}.png", png(np.asarray(file.read(1)), classes))
        else:
            store.put_file(f"{kind}/{image_id}.tif", path)
