"""Scenes made in code: objects painted in colours of their own, so that a model can tell what it sees.

The colour of an object is its number from 1; the ground is 0.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

Numbers = NDArray[np.int32]
"""(height, width): the object's number at each pixel."""

METRES = 0.3


def town(height: int, width: int, seed: int = 0, houses: int = 3000) -> Numbers:
    """Houses, L-shapes, rings, touching terraces and long roads, on seams, corners and the border.

    houses: pixels a try of a house.
    """
    random = np.random.default_rng(seed)
    scene = np.zeros((height, width), np.int32)
    for way in (_road_down, _road_across):
        _paint(scene, way(height, width, random))
    for _ in range(4):
        _terraces(scene, random)
    for _ in range(height * width // houses):
        shape = (_house, _house, _angle, _ring)[random.integers(4)](random)
        row, col = int(random.integers(-10, height)), int(random.integers(-10, width))
        _paint(scene, _placed(shape, row, col, height, width))
    return scene


def _paint(scene: Numbers, mask: NDArray[np.bool_]) -> None:
    """A new object, unless it would touch another, or the border leaves less than 8 pixels of a side."""
    grown = np.zeros(np.add(mask.shape, 2), bool)
    for row in range(3):
        for col in range(3):
            grown[row : row + mask.shape[0], col : col + mask.shape[1]] |= mask
    if min(mask.any(0).sum(), mask.any(1).sum()) >= 8 and not scene[grown[1:-1, 1:-1]].any():
        scene[mask] = scene.max() + 1


def _placed(shape: NDArray[np.bool_], row: int, col: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height + 300, width + 300), bool)
    mask[row + 100 : row + 100 + shape.shape[0], col + 100 : col + 100 + shape.shape[1]] = shape
    return mask[100 : 100 + height, 100 : 100 + width]


def _house(random: np.random.Generator) -> NDArray[np.bool_]:
    return np.ones(random.integers(8, 30, 2), bool)


def _angle(random: np.random.Generator) -> NDArray[np.bool_]:
    height, width = random.integers(16, 30, 2).tolist()
    shape = np.ones((height, width), bool)
    shape[: height // 2, width // 2 :] = False
    return shape


def _ring(random: np.random.Generator) -> NDArray[np.bool_]:
    shape = np.ones(random.integers(20, 30, 2), bool)
    shape[6:-6, 6:-6] = False
    return shape


def _road_down(height: int, width: int, random: np.random.Generator) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    for row in range(height):
        col = width // 4 + row * width // (4 * height)
        mask[row, col : col + 8] = True
    return mask


def _road_across(height: int, width: int, random: np.random.Generator) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    mask[height * 2 // 3 : height * 2 // 3 + 8, width * 2 // 3 :] = True
    return mask


def _terraces(scene: Numbers, random: np.random.Generator) -> None:
    """Ten houses wall to wall."""
    height, width = scene.shape
    row, col = random.integers(0, height - 24), random.integers(0, max(width - 160, 1))
    if scene[max(row - 1, 0) : row + 25, max(col - 1, 0) : col + 161].any():
        return
    for number in range(10):
        scene[row : row + 24, col + 16 * number : col + 16 * number + 16] = scene.max() + 1


def write(
    path: Path, scene: Numbers, crs: str | None = "EPSG:32636", blocks: int = 256, **more: object
) -> Path:
    """As a tiled GeoTIFF of three bytes a pixel: number = 65536 red + 256 green + blue."""
    pixels = np.stack([scene >> 16, scene >> 8 & 255, scene & 255]).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=scene.shape[0], width=scene.shape[1], count=3, dtype="uint8",
        crs=crs, transform=from_origin(500_000, 40_000, METRES, METRES),
        tiled=True, blockxsize=blocks, blockysize=blocks, **{"compress": "deflate", **more},
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def masks(scene: Numbers) -> Sequence[NDArray[np.bool_]]:
    """Of each object."""
    return [scene == number for number in range(1, int(scene.max()) + 1)]
