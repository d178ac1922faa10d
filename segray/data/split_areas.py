"""Areas on the map, each in train, val or test -> the parts of a scene that lie in them.

A vector file of polygons, in any of the formats and coordinate systems of footprints, with an attribute
`split`. Areas must not overlap, or nobody knew what was held out. In memory: about 1 KB an area.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry import Polygon

from segray.data.footprints import areas_of, boxes_around, on_scene
from segray.data.pair_folders import SPLIT_NAMES
from segray.data.vector_files import Features, Named, find_file, open_features
from segray.errors import SettingsError
from segray.scenes.crs import can_place
from segray.scenes.scene import Scene
from segray.storage import StorageSettings, canonical_uri
from segray.tile_overlap import Window

COLUMN = "split"
_NAMED = Named("split_areas", None)
_ROUNDING = 0.01
"""Pixels by which an area may miss a pixel's edge that was meant: rounded and transformed coordinates."""
_OVERLAP = 0.1
"""Pixels by which neighbouring areas may overlap, for the same reason."""
_FULL = 0.8
"""Least share of a four-sided area that an upright rectangle in it must fill to be cut in its place."""


@dataclass(frozen=True, slots=True)
class AreaPart:
    """A polygon of an area, on a scene."""

    split: str
    frame: Window
    """Rectangle that is cut into windows."""
    polygon: Polygon
    """In pixels of the scene, a little grown for rounding."""

    @property
    def is_upright(self) -> bool:
        """Return whether the whole frame lies in the polygon."""
        return self.holds([self.frame]) == [True]

    def holds(self, windows: Sequence[Window]) -> list[bool]:
        """Return whether all pixels of each window lie in the polygon."""
        shapely.prepare(self.polygon)
        return [bool(each) for each in shapely.covers(self.polygon, [_box(window) for window in windows])]


class SplitAreas:
    """The areas of a file."""

    def __init__(self, address: str, storage: StorageSettings) -> None:
        """Read them. Raises SettingsError that names the first feature that cannot be used."""
        self.uri = canonical_uri(address)
        self._shapes, self._splits, self._numbers = list[Any](), list[str](), list[int]()
        with open_features(find_file(address, storage), COLUMN, storage, None, _NAMED) as file:
            self._crs, seen = file.crs, 0
            for some in file.batches:
                self._add(some, seen)
                seen += len(some.values)
        self._tree = shapely.STRtree(self._shapes)

    def _add(self, some: Features, seen: int) -> None:
        for row, (shape, value) in enumerate(zip(some.shapes, some.values, strict=True)):
            number = seen + row + 1
            split = SPLIT_NAMES.get(str(value).strip().lower())
            if split is None:
                names = ", ".join(dict.fromkeys(SPLIT_NAMES.values()))
                raise _wrong(number, f"its {COLUMN} is {str(value)[:40]!r}, not one of {names}")
            area = None if shape is None else areas_of(shape)
            if area is None or area.is_empty:
                raise _wrong(number, "it is no polygon that can be read")
            self._shapes.append(area)
            self._splits.append(split)
            self._numbers.append(number)

    def on(self, scene: Scene) -> list[AreaPart]:
        """Return the parts of a scene that lie in areas, in the order of the file.

        Raises SettingsError where two of them overlap.
        """
        if can_place(scene.crs or "", self._crs) is not None:
            return []
        boxes = shapely.box(*boxes_around(scene, _whole(scene), self._crs).T)
        rows = np.unique(self._tree.query(boxes)[1]).tolist()
        shapes = np.array([*(self._shapes[row] for row in rows), None], object)[:-1]
        edges = _box(_whole(scene))
        placed = [
            (row, part)
            for row, shape in zip(rows, on_scene(shapes, self._crs, scene), strict=True)
            for part in shape.geoms
            if part.intersection(edges).area > 0
        ]
        self._check([row for row, _ in placed], [part for _, part in placed])
        return list(self._parts(placed, scene))

    def _check(self, rows: list[int], parts: list[Polygon]) -> None:
        tree = shapely.STRtree(parts)
        for one, other in tree.query(parts, predicate="intersects").T.tolist():
            if one < other and parts[one].buffer(-_OVERLAP).intersects(parts[other]):
                first, second = (
                    f"{self._numbers[rows[n]]:,} ({self._splits[rows[n]]})" for n in (one, other)
                )
                raise SettingsError(f"split_areas: {self.uri}: features {first} and {second} overlap")

    def _parts(self, placed: list[tuple[int, Polygon]], scene: Scene) -> Iterator[AreaPart]:
        for row, polygon in placed:
            frame = _frame(polygon, scene)
            if frame.height > 0 and frame.width > 0:
                yield AreaPart(self._splits[row], frame, polygon.buffer(_ROUNDING, join_style="mitre"))


def _wrong(number: int, why: str) -> SettingsError:
    return SettingsError(f"split_areas: feature {number:,}: {why}")  # `open_features` adds the address


def _frame(polygon: Polygon, scene: Scene) -> Window:
    """Return an upright rectangle of pixels: the bounds, or what is inside of a slightly turned one."""
    bounds = polygon.bounds
    corners = np.array(polygon.simplify(_ROUNDING).exterior.coords)[:-1]
    if len(corners) == 4:  # drawn upright in another CRS, it is turned by the convergence of the meridians
        inner = np.sort(corners, axis=0)[1:3].ravel()
        found = shapely.box(*inner)
        if found.area > _FULL * polygon.area and polygon.buffer(_ROUNDING).covers(found):
            bounds = tuple(inner)
    left, top = np.ceil(np.maximum(bounds[:2], 0) - _ROUNDING).astype(int).tolist()
    right, bottom = (
        np.floor(np.minimum(bounds[2:], (scene.width, scene.height)) + _ROUNDING).astype(int).tolist()
    )
    return Window(top, bottom, left, right)


def _whole(scene: Scene) -> Window:
    return Window(0, scene.height, 0, scene.width)


def _box(window: Window) -> Polygon:
    return shapely.box(window.col_start, window.row_start, window.col_stop, window.row_stop)
