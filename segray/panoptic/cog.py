"""The segment ids of a scene as a cloud-optimised GeoTIFF, uint32, written window by window."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.windows import Window as RasterWindow

from segray.errors import ItemError, JobFailedError
from segray.output.panoptic import VOID_ID
from segray.panoptic.fusion import Fusion
from segray.sources.concurrent_requests import describe

_BLOCK = 512


def write_cog(fusion: Fusion, like: Any, folder: Path, put: Callable[[Path], None]) -> int:
    """Write the ids on the grid of the raster `like`, and hand the file to `put`.

    folder: for temporary files. Returns the number of void pixels. Raises JobFailedError where the
    temporary folder cannot be written, and what `put` raises.
    """
    plain, path, void = folder / "ids.tif", folder / "ids.cog.tif", 0
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": 1, "dtype": "uint32", "height": like.height, "width": like.width,
        "nodata": VOID_ID, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
        "zlevel": 1, "bigtiff": "if_safer",
    }  # fmt: skip
    if like.crs is not None:
        profile |= {"crs": like.crs, "transform": like.transform}
    try:
        with rasterio.open(plain, "w", **profile) as file:
            for window, ids in fusion.ids():
                place = RasterWindow(window.col_start, window.row_start, window.width, window.height)
                file.write(ids, 1, window=place)
                void += int(np.count_nonzero(ids == VOID_ID))
        rasterio.shutil.copy(
            plain, path, driver="COG", compress="DEFLATE", blocksize=_BLOCK, overview_resampling="nearest",
            bigtiff="IF_SAFER",
        )  # fmt: skip
    except (ItemError, MemoryError):  # of reading the map
        raise
    except Exception as error:  # GDAL's have types of a private module
        raise JobFailedError(
            f"cannot write a scene of {like.width} x {like.height} pixels to {folder}: {describe(error)}; "
            "make room there, or set TMPDIR, and run again to continue"
        ) from error
    put(path)
    return void
