"""Outlines against pixels, and against GDAL's own polygons."""

import numpy as np
import pytest
import rasterio.features
import shapely
from numpy.typing import NDArray

from segray.masks import polygonize
from segray.masks.polygonize import outlines
from segray.masks.spans import Spans, moved

Mask = NDArray[np.bool_]


def spans(mask: Mask) -> Spans:
    """The spans of a picture."""
    steps = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    col, top = np.nonzero(steps == 1)
    return np.stack([col, top, np.nonzero(steps == -1)[1]], axis=1)


def drawn(*rows: str) -> Mask:
    """`#` is a pixel of the mask."""
    return np.array([[character == "#" for character in row] for row in rows])


def random_masks(seed: int, count: int, side: int) -> list[Mask]:
    """Noise of all densities, and blocks with noise cut out: holes that touch each other and the outside."""
    random = np.random.default_rng(seed)
    masks = [random.random(random.integers(1, side, 2)) < random.random() for _ in range(count)]
    blocks = [np.pad(mask, random.integers(0, 3), constant_values=True) for mask in masks]
    return masks + [np.kron(mask, np.ones(random.integers(1, 4, 2))) > 0 for mask in blocks]


AWKWARD = {
    "pixel": drawn("#"),
    "nothing": drawn("..", ".."),
    "checkerboard": np.indices((6, 7)).sum(axis=0) % 2 == 0,
    "other checkerboard": np.indices((7, 6)).sum(axis=0) % 2 == 1,
    "ring": drawn("###", "#.#", "###"),
    "ring in ring": drawn("#####", "#...#", "#.#.#", "#...#", "#####"),
    "ring in ring, at a corner": drawn("####.", "#..#.", "#.#.#", "##.##", ".####"),
    "parts at a corner": drawn("##..", "##..", "..##", "..##"),
    "hole at the outside's corner": drawn(".###", "#.##", "####"),
    "holes at a corner": drawn("####", "#.##", "##.#", "####"),
    "holes in a row of corners": drawn("#####", "#.###", "##.##", "###.#", "#####"),
    "holes around a pixel": drawn("#####", "##.##", "#.#.#", "##.##", "#####"),
    "comb": drawn("#.#.#", "#####", "#.#.#"),
}


def check(mask: Mask, shape: shapely.Geometry) -> None:
    """Same pixels, same area, as GDAL has it, valid, exteriors positive, no point on a straight line."""
    assert shape.is_valid, shapely.is_valid_reason(shape)
    assert shape.area == mask.sum()
    if not mask.any():
        assert shape.is_empty
        return
    assert np.array_equal(rasterio.features.rasterize([shape], mask.shape), mask)
    theirs = rasterio.features.shapes(mask.astype(np.uint8), mask, connectivity=4)
    polygons = [shapely.geometry.shape(each) for each, _ in theirs]
    parts = shapely.get_parts(shape)
    assert len(parts) == len(polygons)
    assert shape.equals(shapely.MultiPolygon(polygons))
    assert shape.geom_type == ("Polygon" if len(parts) == 1 else "MultiPolygon")
    assert all(part.exterior.is_ccw and not any(hole.is_ccw for hole in part.interiors) for part in parts)
    assert shapely.get_num_coordinates(shape) == sum(map(corners, shapely.get_rings(parts)))


def corners(ring: shapely.LinearRing) -> int:
    """Vertices of a ring at which it turns, and the first again."""
    steps = np.sign(np.diff(shapely.get_coordinates(ring), axis=0))
    return 1 + int((steps != np.roll(steps, 1, axis=0)).any(axis=1).sum())


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_masks(name: str) -> None:
    (shape,) = outlines([spans(AWKWARD[name])])
    check(AWKWARD[name], shape)


@pytest.mark.parametrize("seed", range(10))
def test_random_masks(seed: int) -> None:
    masks = [*random_masks(seed, 60, 9), *random_masks(seed, 5, 60), *AWKWARD.values()]
    for mask, shape in zip(masks, outlines([spans(mask) for mask in masks]), strict=True):
        check(mask, shape)


def test_all_small_masks() -> None:
    """Every picture of 3 x 4 pixels."""
    masks = [(number >> np.arange(12) & 1).reshape(3, 4) == 1 for number in range(4096)]
    for mask, shape in zip(masks, outlines([spans(mask) for mask in masks]), strict=True):
        check(mask, shape)


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [spans(mask) for mask in random_masks(3, 40, 20)]
    whole = outlines(masks)
    monkeypatch.setattr(polygonize, "BATCH", 7)
    assert shapely.equals_exact(outlines(masks), whole).all()
    assert shapely.equals_exact([outlines([mask])[0] for mask in masks], whole).all()


def test_far_from_the_origin() -> None:
    masks = random_masks(4, 20, 12)
    near = outlines([spans(mask) for mask in masks])
    far = outlines([moved(spans(mask), 3_000_000_000, -70_000) for mask in masks])
    there = shapely.transform(near, lambda points: points + np.array([-70_000, 3_000_000_000]))
    assert shapely.equals_exact(far, there).all()


def test_nothing() -> None:
    assert len(outlines([])) == 0
    empty, pixel = outlines([np.zeros((0, 3), np.int64), np.array([[4, 5, 6]])])
    assert empty.is_empty
    assert pixel.equals(shapely.box(4, 5, 5, 6))


def test_a_road_across_the_scene_is_never_drawn() -> None:
    """Its box has 10**10 pixels."""
    col = np.arange(100_000)
    (road,) = outlines([np.stack([col, col, col + 9], axis=1)])
    assert road.geom_type == "Polygon"
    assert road.area == 900_000
    assert shapely.get_num_coordinates(road) == 400_001
    (dots,) = outlines([np.stack([col, col, col + 1], axis=1)])
    assert len(dots.geoms) == 100_000
