"""A made scene in UTM with bright rectangles, and these as footprints in longitude and latitude."""

import json
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.transform import from_origin

CRS, METRES = "EPSG:32636", 0.5
TO_MAP = from_origin(500_000, 40_000, METRES, METRES)
HEIGHT, WIDTH = 300, 420
"""Of windows of 64 pixels: 5 rows, the last moved back by 20 pixels, and 7 columns, the last by 28."""
EMPTY = (slice(0, 64), slice(0, 64))
"""The first window holds no data."""
HALF_EMPTY = (slice(64, 128), slice(0, 32))
"""Nor does the left half of the one below."""


def rectangles(number: int = 60, seed: int = 0) -> list[shapely.Polygon]:
    """In pixels of the scene, corners at no pixel's centre; some overlap, some leave the scene."""
    random = np.random.default_rng(seed)
    corners = np.stack([random.integers(-10, WIDTH, number), random.integers(-10, HEIGHT, number)], 1)
    sides = random.integers(6, 30, (number, 2))
    pairs = zip(corners + 0.23, sides, strict=True)
    return [shapely.box(*corner, *(corner + side)) for corner, side in pairs]


def truth(shapes: list[shapely.Polygon], classes: list[int] | None = None) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH), the whole scene at once: smaller ones above."""
    pairs = zip(shapes, classes or [1] * len(shapes), strict=True)
    drawn = sorted(pairs, key=lambda pair: -pair[0].area)
    found: NDArray[np.uint8] = rasterize(drawn, out_shape=(HEIGHT, WIDTH), dtype="uint8")
    return found


def write_scene(path: Path, shapes: list[shapely.Polygon]) -> Path:
    """Noise, brighter where a shape is; tiled, with nodata 0."""
    random = np.random.default_rng(1)
    pixels = random.integers(1, 90, (3, HEIGHT, WIDTH), np.uint8)
    pixels[:, truth(shapes) > 0] += 120
    for part in (EMPTY, HALF_EMPTY):
        pixels[:, *part] = 0
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=3, dtype="uint8", crs=CRS,
        transform=TO_MAP, nodata=0, tiled=True, blockxsize=64, blockysize=64, compress="deflate",
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def on_earth(shapes: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """From pixels to longitude and latitude."""
    way = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(way.transform(*(TO_MAP @ tuple(points.T))), axis=1)

    return [shapely.transform(shape, moved) for shape in shapes]


def write_geojson(path: Path, shapes: list[shapely.Polygon], kinds: list[str] | None = None) -> Path:
    """In longitude and latitude."""
    features = [
        {
            "type": "Feature",
            "properties": {} if kinds is None else {"kind": kinds[number]},
            "geometry": shapely.geometry.mapping(shape),
        }
        for number, shape in enumerate(on_earth(shapes))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def whole(parts: list[tuple[tuple[int, int], NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Windows at (row, column) joined: 255 where none has a class. Asserts that no two have one."""
    joined = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for (row, col), classes in parts:
        place = joined[row : row + classes.shape[0], col : col + classes.shape[1]]
        assert not ((classes != 255) & (place != 255)).any()
        place[classes != 255] = classes[classes != 255]
    return joined
