"""Scenes: windows from a distant bucket against rasterio's defaults, and memory against the scene's size."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

from jobs.benchmarks.commands import answered
from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import ROOT, tiled
from jobs.benchmarks.processes import peak_bytes, started
from segray.tile_overlap import OVERLAP, TILE, Grid
from tests.faults import distant
from tests.servers import s3_server

REAL = ROOT / "tests/data/scenes/kampala.tif"
METRES = 0.3
LATENCY_S = 0.08
SIDE, SMALL, LARGE = 5_000, 1_000, 10_000
"""Pixels a side: of the scene that windows are read of, and of those whose peaks are compared."""


def figures(options: Options) -> Iterator[Figure]:
    """A cloud-optimised GeoTIFF of real pixels at 0.3 m."""
    yield from _windows(options)
    yield from _memory(options)


def _windows(options: Options) -> Iterator[Figure]:
    side = 3_000 if options.quick else SIDE
    path = cog(options.scratch, side)
    with s3_server() as server, distant(server, LATENCY_S) as proxy:
        server.put("scene.tif", path.read_bytes())
        ask = [partial(answered, "windows", name, server.url("scene.tif"), proxy.endpoint, TILE, OVERLAP)
               for name in ("segray", "rasterio", "tuned")]  # fmt: skip
        first = [each()["pixels"] for each in ask]
        check(first[0] == first[1] == first[2], "scenes: segray and rasterio read other pixels")
        arms = take_turns([lambda way=way: way()["seconds"] for way in ask], options.rounds(3))  # type: ignore[misc]
    seconds = [min(arm) for arm in arms]
    rates = ", ".join(f"{(side * METRES / 1000) ** 2 / each * 3600:,.0f}" for each in seconds)
    size = f"{len(first[0])} windows of {TILE} pixels, {path.stat().st_size >> 20} MiB"
    facts = [
        f"{size}: {', '.join(f'{each:.1f} s' for each in seconds)} (segray, defaults, tuned)",
        f"{rates} km2/h at {METRES} m, one process, no model",
    ]
    latency = f"S3 with {LATENCY_S * 1000:.0f} ms"
    ours, theirs, tuned = arms
    yield Figure(f"rasterio opened per window / segray, {latency}", ">= 5", ratios(theirs, ours), facts)
    yield Figure(f"rasterio tuned, opened once / segray, {latency}", ">= 1", ratios(tuned, ours))


def _memory(options: Options) -> Iterator[Figure]:
    sides = (SMALL, 2_000 if options.quick else LARGE)
    peaks = take_turns([partial(peak, options.scratch, side) for side in sides], options.rounds(2))
    words = ", ".join(f"{each[0] / 2**20:,.0f} MiB" for each in peaks)
    record = json.loads((options.scratch / f"out-{sides[1]}/run.json").read_text())
    rate = (sides[1] * METRES / 1000) ** 2 / record["rates"]["seconds"] * 3600
    facts = [f"{words}; {rate:,.1f} km2/h with buildings-small at {METRES} m, start of Ray left out"]
    yield Figure("peak memory, scene of 100 MP / 1 MP", "<= 2", ratios(peaks[1], peaks[0]), facts)


def peak(scratch: Path, side: int) -> float:
    """Bytes of a job with the bundled model; it must have done every tile."""
    output = scratch / f"out-{side}"
    shutil.rmtree(output, ignore_errors=True)
    scene = ("annotate", cog(scratch, side), "--output", output, "--weights", "buildings-small")
    with started("-m", "segray.cli", *scene) as job:
        most = peak_bytes(job)
    (row,) = pq.read_table(output / "images").to_pylist()
    check(row["status"] == "annotated", f"scenes: a scene of {side} was rejected")
    check((row["tiles"] or 1) == len(Grid(side, side)), f"scenes: tiles of {side} are missing")
    return float(most)


def cog(folder: Path, side: int) -> Path:
    """A scene of side x side, made once: pieces of the bundled one, turned and mirrored."""
    path = folder / f"scene-{side}.tif"
    if path.exists():
        return path
    with rasterio.open(REAL) as real:
        pixels = tiled([real.read().transpose(1, 2, 0)], (side, side), seed=side)
    plain = folder / "plain.tif"
    with rasterio.open(
        plain, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:32636",
        transform=from_origin(500_000, 40_000, METRES, METRES), photometric="RGB",
    ) as file:  # fmt: skip
        file.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=512)
    plain.unlink()
    return path
