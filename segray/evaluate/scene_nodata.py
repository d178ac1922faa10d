"""The files of scenes, and their pixels without data where footprints are: the ledger does not keep these."""

import numpy as np

from segray.data.footprint_pieces import drawn_spans
from segray.data.footprints import Footprints
from segray.masks.spans import Spans, moved, union
from segray.retries import retrying
from segray.scenes.nodata import nodata_mask
from segray.scenes.scene import Scene
from segray.sources.byte_ranges import FileRanges
from segray.sources.concurrent_requests import as_item_error
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings, open_filesystem
from segray.tile_overlap import Window, blocks


def scene_file(address: str, version: str, storage: StorageSettings) -> FileRanges:
    """Return a file whose size the ledger does not keep. Raises ItemError where it cannot be read."""
    filesystem, path = open_filesystem(address, storage, is_listed=True)
    try:
        size = int(retrying(lambda: filesystem.info(path), storage)["size"] or 0)
    except Exception as error:  # whatever a storage raises
        raise as_item_error(error, "the scene") from error
    return FileRanges(address, version, address, size, storage)


def nodata_near(footprints: Footprints, scene: Scene, file: FileRanges, sandbox: DecodeSandbox) -> Spans:
    """Return the pixels (n, 3) without data, see `masks.spans`, in the windows that footprints are near.

    One window of the side of a tile is in memory at a time. Raises ItemError where the file cannot be read.
    """
    whole, found = Window(0, scene.height, 0, scene.width), [np.zeros((0, 3), np.int64)]
    for window in blocks(whole, scene.tile):
        if len(footprints.near(scene, window)):
            spans = _nodata(scene, window, file, sandbox)
            found.append(moved(spans, window.row_start, window.col_start))
    return union(found)


def _nodata(scene: Scene, window: Window, file: FileRanges, sandbox: DecodeSandbox) -> Spans:
    size, decoded = (window.height, window.width), sandbox.window(file, scene, window, sandbox.room())
    if decoded is None:
        return drawn_spans(np.ones(size, bool))
    return drawn_spans(np.zeros(size, bool) if decoded.nodata is None else nodata_mask(decoded.nodata, *size))
