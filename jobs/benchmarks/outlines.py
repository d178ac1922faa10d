"""Masks to polygons: segray's outlines from run lengths, against `rasterio.features.shapes`, a call a mask.

Masks are discs with a wavy edge and a hole, each in a raster of its own size for rasterio, which is the
friendliest case: nothing outside it is read. The gate: both have the areas of the masks.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from jobs.benchmarks.measure import Figure, Options, check, ratios, seconds_a_call, take_turns
from segray.masks.polygonize import outlines
from segray.masks.spans import Spans, counts_of, spans_of

RADII, NUMBER = (8, 30, 100), 300


def figures(options: Options) -> Iterator[Figure]:
    """One a radius."""
    at_least_s = 0.05 if options.quick else 1.0
    for radius in RADII:
        masks = [made(radius, seed) for seed in range(20 if options.quick else NUMBER)]
        spans = [spans_of_mask(mask) for mask in masks]
        wanted = [float(mask.sum()) for mask in masks]
        check(shapely.area(outlines(spans)).tolist() == wanted, f"outlines, {radius} px: other areas")
        theirs = [sum(shape.area for shape in by_rasterio(mask)) for mask in masks]
        check(theirs == wanted, f"outlines, {radius} px: rasterio has other areas")
        slow, fast = take_turns(
            [
                partial(seconds_a_call, partial(all_by_rasterio, masks), at_least_s),
                partial(seconds_a_call, partial(outlines, spans), at_least_s),
            ],
            options.rounds(5),
        )
        each = [median(arm) / len(masks) * 1e6 for arm in (slow, fast)]
        fact = f"{len(masks)} masks: {each[0]:,.0f} against {each[1]:,.0f} µs a mask"
        yield Figure(
            f"rasterio.features.shapes / outlines, radius {radius} px", "", ratios(slow, fast), [fact]
        )


def made(radius: int, seed: int) -> NDArray[np.uint8]:
    """One mask (h, w)."""
    random = np.random.default_rng(seed)
    side = 2 * radius + 5
    y, x = np.mgrid[:side, :side] - side / 2
    angle, distance = np.arctan2(y, x), np.hypot(x, y)
    edge = radius * (0.85 + 0.15 * np.sin(random.integers(3, 9) * angle + random.uniform(0, 6)))
    mask: NDArray[np.uint8] = ((distance < edge) & (distance > radius * 0.2)).astype(np.uint8)
    return mask


def spans_of_mask(mask: NDArray[np.uint8]) -> Spans:
    """What segray keeps of a mask."""
    encoded = coco.encode(np.asfortranarray(mask))
    return spans_of(counts_of([encoded["counts"].decode()])[0], len(mask))


def by_rasterio(mask: NDArray[np.uint8]) -> list[shapely.Geometry]:
    """Its polygons."""
    return [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(mask, mask == 1, 4)]


def all_by_rasterio(masks: Sequence[NDArray[np.uint8]]) -> None:
    """One call a mask."""
    for mask in masks:
        by_rasterio(mask)
