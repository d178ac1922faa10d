"""A large scene in a distant bucket: memory, and how often its bytes are asked for."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin
from rasterio.windows import Window

from jobs.benchmarks.commands import ENVIRONMENT
from jobs.benchmarks.processes import peak_bytes, started
from segray.sources.read_step import WHOLE_BYTES
from tests.bulk.runs import tables
from tests.faults import distant
from tests.scenes.made import METRES, town
from tests.scenes.steps import ORACLE
from tests.servers import Server, env_of

QUARTER = 600
"""Side of the town that is repeated, with other numbers."""
LATENCY_S = 0.08
MEMORY_AT_MOST = 2
"""Of the large scene over a small one, which fills neither the object store nor the decoders' caches."""
READ_AT_MOST = 1.5
"""Bytes asked for over bytes of the file."""


def cog(path: Path, side: int) -> int:
    """A cloud-optimised GeoTIFF of side x side; returns how many objects are in it.

    Noise in a fourth band gives it three quarters of a byte a pixel.
    """
    quarter, objects, random = town(QUARTER, QUARTER, houses=30_000), 0, np.random.default_rng(1)
    plain = path.with_suffix(".plain.tif")
    options = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "crs": "EPSG:32636",
        "photometric": "RGB",
        "ALPHA": "NO",
    }
    with rasterio.open(
        plain, "w", driver="GTiff", height=side, width=side, count=4, dtype="uint8",
        transform=from_origin(500_000, 40_000, METRES, METRES), **options,
    ) as file:  # fmt: skip
        for row in range(0, side, QUARTER):
            for col in range(0, side, QUARTER):
                part = quarter[: side - row, : side - col]
                numbers = np.where(part > 0, part + objects, 0)
                noise = random.integers(0, 64, part.shape)
                pixels = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255, noise]).astype(np.uint8)
                file.write(pixels, window=Window(col, row, part.shape[1], part.shape[0]))
                objects += int(quarter.max())
    rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=512, overviews="none")
    plain.unlink()
    assert path.stat().st_size > WHOLE_BYTES or side < 3_600
    return objects


def peak(server: Server, side: int, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, float]:
    """(most bytes of memory, bytes asked for over bytes of the file) of a job over one scene."""
    path = folder / f"{side}.tif"
    objects = cog(path, side)
    server.put(f"distant/{side}.tif", path.read_bytes())
    with distant(server, LATENCY_S) as proxy:
        for name, value in env_of(server.storage_at(proxy.endpoint)).items():
            patch.setitem(ENVIRONMENT, name, value)
        command = (
            server.url(f"distant/{side}.tif"),
            "--output",
            folder / str(side),
            "--ray.object-store-mib",
            256,
        )
        with started("-m", "segray.cli", "annotate", *command, "--weights", ORACLE + "exact") as job:
            most = peak_bytes(job)
        assert job.returncode == 0
        (image,), instances = tables(folder / str(side))
        assert image["instances"] == len(instances) == objects
        asked = sum(last - first + 1 for first, last in proxy.ranges) / path.stat().st_size
        return most, asked


@pytest.mark.timeout(3600)  # --scene-side 30000 takes half an hour
def test_a_large_scene_in_a_distant_bucket(
    s3_server: Server, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = int(request.config.getoption("--scene-side"))
    small, _ = peak(s3_server, 1_800, tmp_path, monkeypatch)
    large, asked = peak(s3_server, side, tmp_path, monkeypatch)
    print(f"peak {small >> 20:,} MiB, {large >> 20:,} MiB; {asked:.2f} times the file's bytes")
    assert large < MEMORY_AT_MOST * small
    assert asked < READ_AT_MOST
