"""Two ways to get all windows of a scene out of a bucket, each a program of its own.

    python -m jobs.benchmarks.windows segray|rasterio|tuned URL ENDPOINT TILE OVERLAP

segray: as the job's decoder does it, one process; rasterio: opened for each window, with its defaults; tuned:
opened once, with what GDAL's page on /vsicurl and rasterio's on options advise for a COG in a bucket.
Prints one JSON object: `pixels`, a digest of each window, and `seconds`, from the first window to the last:
what is loaded, and where the blocks lie, is had once a worker or a scene.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.scenes.scene import Tiling
from segray.tile_overlap import Grid

Window = tuple[int, NDArray[np.uint8]]
"""Number of the tile, and (height, width, 3)."""


def by_segray(url: str, endpoint: str, tiling: Tiling) -> Iterator[Window]:
    """Squares of neighbouring windows; blocks are fetched together and kept."""
    from segray.arrow_rows import byte_views
    from segray.sources.decode_step import Decoder
    from segray.sources.listing import Listing
    from segray.sources.read_step import read_files
    from segray.sources.sandbox import DecodeSandbox
    from segray.storage import S3Settings, StorageSettings

    storage = StorageSettings(s3=S3Settings(endpoint_url=endpoint))
    sources = list(Listing([url], storage))
    with DecodeSandbox() as sandbox, DecodeSandbox() as reader:
        decoder = Decoder(sandbox, max_pixels=1, tiling=tiling, storage=storage)
        for fetched in read_files(sources, {}, storage, reader, tiling, max_bytes=1 << 40):
            for table in decoder.tables(fetched):
                columns = [table[name].to_pylist() for name in ("tile", "height", "width")]
                for tile, height, width, pixels in zip(*columns, byte_views(table["pixels"]), strict=True):
                    yield tile, pixels.reshape(height, width, 3)


def by_rasterio(url: str, endpoint: str, tiling: Tiling) -> Iterator[Window]:
    """As its documentation teaches it."""
    import rasterio
    from rasterio.windows import Window as Part

    _to(endpoint)
    with rasterio.open(url) as scene:
        grid = Grid(scene.height, scene.width, tiling.tile, tiling.overlap)
    for tile, window in enumerate(grid):
        with rasterio.open(url) as scene:
            part = Part(window.col_start, window.row_start, window.width, window.height)
            yield tile, np.ascontiguousarray(scene.read(window=part).transpose(1, 2, 0))


def by_tuned_rasterio(url: str, endpoint: str, tiling: Tiling) -> Iterator[Window]:
    """With a cache, merged ranges, threads, and no look at neighbouring files."""
    import rasterio
    from rasterio.windows import Window as Part

    _to(endpoint)
    with rasterio.Env(**TUNED), rasterio.open(url, num_threads="all_cpus") as scene:
        for tile, window in enumerate(Grid(scene.height, scene.width, tiling.tile, tiling.overlap)):
            part = Part(window.col_start, window.row_start, window.width, window.height)
            yield tile, np.ascontiguousarray(scene.read(window=part).transpose(1, 2, 0))


def _to(endpoint: str) -> None:
    os.environ |= {"AWS_S3_ENDPOINT": endpoint.removeprefix("http://"), "AWS_HTTPS": "NO"}
    os.environ["AWS_VIRTUAL_HOSTING"] = "FALSE"


TUNED = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES", "GDAL_NUM_THREADS": "ALL_CPUS", "GDAL_CACHEMAX": 512,
    "VSI_CACHE": True, "VSI_CACHE_SIZE": 64 << 20, "CPL_VSIL_CURL_CACHE_SIZE": 128 << 20,
    "GDAL_INGESTED_BYTES_AT_OPEN": 32 << 10,
}  # fmt: skip
os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}  # the server on loopback takes any
WAYS: dict[str, Any] = {"segray": by_segray, "rasterio": by_rasterio, "tuned": by_tuned_rasterio}

if __name__ == "__main__":
    way, url, endpoint, tile, overlap = sys.argv[1:]
    found: dict[int, str] = {}
    times = []
    for number, pixels in WAYS[way](url, endpoint, Tiling(int(tile), int(overlap))):
        times.append(time.perf_counter())
        found[number] = hashlib.sha256(pixels.tobytes()).hexdigest()
    print(json.dumps({"pixels": found, "seconds": times[-1] - times[0]}))
