"""The segment ids of a scene as a cloud-optimised GeoTIFF, uint32, written window by window."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.windows import Window as RasterWindow

from segray.output.panoptic import VOID_ID
from segray.panoptic.fusion import Fusion

_BLOCK = 512


def write_cog(fusion: Fusion, like: Any, folder: Path, put: Callable[[Path], None]) -> int:
    """Write the ids on the grid of the raster `like`, and hand the file to `put`.

    folder: for temporary files. Returns the number of void pixels. Raises what `put` raises.
    """
    plain, path, void = folder / "ids.tif", folder / "ids.cog.tif", 0
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": 1, "dtype": "uint32", "height": like.height, "width": like.width,
        "nodata": VOID_ID, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
        "zlevel": 1, "bigtiff": "if_safer",
    }  # fmt: skip
    if like.crs is not None:
        profile |= {"crs": like.crs, "transform": like.transform}
    with rasterio.open(plain, "w", **profile) as file:
        for window, ids in fusion.ids():
            place = RasterWindow(window.col_start, window.row_start, window.width, window.height)
            file.write(ids, 1, window=place)
            void += int(np.count_nonzero(ids == VOID_ID))
    rasterio.shutil.copy(
        plain, path, driver="COG", compress="DEFLATE", blocksize=_BLOCK, overview_resampling="nearest",
        bigtiff="IF_SAFER",
    )  # fmt: skip
    put(path)
    return void
