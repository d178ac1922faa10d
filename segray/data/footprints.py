"""Polygons on the map -> the class of each pixel of a window of a scene.

One table serves all processes of a machine: polygons as WKB in the file's own CRS, along a Hilbert curve,
each with its box. A window is compared with the boxes of runs of `RUN` rows, then with those of the rows in
the runs it touches, and only then are the few polygons read and transformed to the scene's CRS; so a process
holds 32 bytes a run and nothing per polygon.

Edges are straight in the scene's CRS. Where they were straight in longitude and latitude they should be
curved there: negligible for a building; 2 m for an edge of 10 km along the 45th parallel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from segray.scenes.crs import Floats, half_turn, through, transformer
from segray.scenes.geoparquet import hilbert_order
from segray.scenes.georeference import Place
from segray.scenes.scene import Scene
from segray.tile_overlap import Window

RUN = 256
"""Rows that share a bounding box."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")
FOOTPRINTS = pa.schema(
    [("shape", pa.large_binary()), ("class", pa.uint8()), ("rank", pa.int64())]
    + [(side, pa.float64()) for side in _SIDES]
)
"""`rank`: a polygon of a higher one covers those of lower ones."""
_STEPS = np.linspace(0, 1, 17)
_WIDER = 0.01
"""Share of its side by which the box around a window is enlarged, for the curvature between sample points."""


def footprint_table(shapes: NDArray[np.object_], classes: Sequence[int], crs: str) -> pa.Table:
    """Return the table (schema FOOTPRINTS) of polygons (n,) that are not empty, with a class each.

    Smaller ones cover larger ones, in whatever order they come.
    """
    order = hilbert_order(shapely.bounds(shapes)) if len(shapes) else np.zeros(0, np.int64)
    shapes, numbers = shapes[order], np.asarray(classes, np.uint8)[order]
    wkb = shapely.to_wkb(shapes, output_dimension=2, byte_order=1)
    rank = np.empty(len(shapes), np.int64)
    rank[np.lexsort((wkb, numbers, -shapely.area(shapes)))] = np.arange(len(shapes))
    columns = [pa.array(wkb, pa.large_binary()), pa.array(numbers), pa.array(rank)]
    columns += [pa.array(side) for side in shapely.bounds(shapes).reshape(-1, 4).T]
    return pa.table(columns, schema=FOOTPRINTS.with_metadata({"crs": crs}))


class Footprints:
    """Rasterises the polygons of a table of schema FOOTPRINTS."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self._crs = table.combine_chunks(), table.schema.metadata[b"crs"].decode()
        self._boxes = [self._table[side].to_numpy() for side in _SIDES]
        starts = np.arange(0, table.num_rows, RUN)
        least = (np.minimum, np.minimum, np.maximum, np.maximum)
        self._runs = [
            each.reduceat(side, starts) if len(starts) else side
            for each, side in zip(least, self._boxes, strict=True)
        ]

    def classes(self, scene: Scene, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) uint8: the class of the polygon that covers the pixel's centre, else 0."""
        shape = window.height, window.width
        drawn = self.shapes(scene, window)
        if not drawn:
            return np.zeros(shape, np.uint8)
        place = Affine.translation(window.col_start, window.row_start)
        pixels: NDArray[np.uint8] = rasterize(drawn, out_shape=shape, transform=place, dtype="uint8")
        return pixels

    def shapes(self, scene: Scene, window: Window) -> list[tuple[MultiPolygon, int]]:
        """Return the polygons near a window, in pixels of the scene, with their classes, in order of rank."""
        found = self._table.take(pa.array(self.near(scene, window)))
        polygons = on_scene(shapely.from_wkb(found["shape"].to_numpy()), self._crs, scene)
        pairs = zip(polygons, found["class"].to_pylist(), strict=True)
        return [(polygon, number) for polygon, number in pairs if not polygon.is_empty]

    def near(self, scene: Scene, window: Window) -> NDArray[np.int64]:
        """Return (n,) int64: rows whose boxes touch a box around the window, those of lower rank first."""
        found = [np.zeros(0, np.int64)]
        for box in boxes_around(scene, window, self._crs):
            runs = np.flatnonzero(_touching(self._runs, box))
            rows = (runs[:, None] * RUN + np.arange(RUN)).ravel()
            rows = rows[rows < self._table.num_rows]
            found.append(rows[_touching([side[rows] for side in self._boxes], box)])
        rows = np.unique(np.concatenate(found))
        rank = pc.take(self._table["rank"], pa.array(rows)).to_numpy()
        return rows[np.argsort(rank)]


def boxes_around(scene: Scene, window: Window, crs: str) -> Floats:
    """Return the window's xmin, ymin, xmax, ymax in another CRS: (1, 4), or (2, 4) across +-180 degrees.

    (0, 4) where it is outside that CRS's domain.
    """
    rows = window.row_start + _STEPS * window.height
    cols = window.col_start + _STEPS * window.width
    pixels = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2)
    points = through(transformer(_crs_of(scene), crs), _place(scene).on_map(pixels))
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.zeros((0, 4))
    half = half_turn(crs)
    if half is None or np.ptp(points[:, 0]) <= half:
        return _box(points)[None]
    east = points[:, 0] > 0
    boxes = np.stack([_box(points[east]), _box(points[~east])])
    boxes[0, 2], boxes[1, 0] = half, -half
    return boxes


def on_scene(shapes: NDArray[np.object_], crs: str, scene: Scene) -> list[MultiPolygon]:
    """Return the geometries (n,) of the CRS `crs` in pixels of the scene; empty outside its domain."""
    to_scene, place = transformer(crs, _crs_of(scene)), _place(scene)

    def moved(points: Floats) -> Floats:
        return place.on_scene(through(to_scene, points))

    placed = shapely.transform(shapely.force_2d(shapes), moved)
    return [areas_of(each) if np.isfinite(each.bounds).all() else MultiPolygon() for each in placed]


def areas_of(geometry: BaseGeometry) -> MultiPolygon:
    """Return the areas of a geometry, made valid; empty for points and lines."""
    parts = shapely.get_parts(shapely.make_valid(geometry)).tolist()
    nested = [part for each in parts for part in shapely.get_parts(each).tolist()]
    return MultiPolygon([part for part in nested if part.geom_type == "Polygon"])


def _box(points: Floats) -> Floats:
    low, high = points.min(axis=0), points.max(axis=0)
    more = _WIDER * (high - low)
    return np.concatenate([low - more, high + more])


def _touching(boxes: Sequence[NDArray[Any]], box: Floats) -> NDArray[np.bool_]:
    xmin, ymin, xmax, ymax = boxes
    touching: NDArray[np.bool_] = (xmin <= box[2]) & (box[0] <= xmax) & (ymin <= box[3]) & (box[1] <= ymax)
    return touching


def _place(scene: Scene) -> Place:
    assert scene.transform is not None
    return Place(scene.transform, _crs_of(scene))


def _crs_of(scene: Scene) -> str:
    assert scene.crs is not None
    return scene.crs
