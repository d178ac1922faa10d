"""Georeference outlines in pixels: geometry, covering box and area, for all objects of a scene at once.

pixels --affine transform--> the scene's CRS --PROJ--> the target CRS of the run (`--crs`), always x east
before y north, as GeoParquet requires.

Some objects get no geometry (null geometry, NaN box and area) and do not fail their scene:
- coordinates that PROJ cannot transform, scenes of another planet or of a local CRS;
- objects whose edge runs through a pole, if the target is geographic: longitude is undefined there;
- objects that the projected target CRS splits, for example across +-180 degrees in Web Mercator.
If the target is geographic, objects that cross +-180 degrees are cut there into a MultiPolygon (RFC 7946,
3.1.9), and an object with a pole inside extends to the pole and over all longitudes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.enums import TransformDirection

from segray.scenes.crs import Floats, can_place, half_turn, map_of, through, to_ground, transformer
from segray.schema import CRS84

Shapes = NDArray[np.object_]

STRAIGHT = 1 / 16
"""Pixels. Where the transform from pixels to the target CRS bends the box around an object by at most this,
it counts as affine: corners stay corners, edges straight lines, and valid geometries stay valid, as the parts
of a mask are at least a pixel apart. That holds for all but large or polar objects."""

LENGTHS = (64, 16, 4, 1, 0.25)
"""Pixels. Edges of the other objects are divided into pieces of at most the first of these lengths at which
their midpoints are within `STRAIGHT` of a straight line, because a line that is straight in one CRS is curved
in another: 64 pixels of 1 km at 50 degrees by 0.1 pixels, but an edge close to a pole by half a circle."""

POLE = 1e-3
"""Pixels: an edge at most this far from a pole counts as running through it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Georeference of a scene, with any rotation and order of rows.

    With a transform that has no inverse, no object gets a geometry.
    """

    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f) as in rasterio: x = a * col + b * row + c, y = d * col + e * row + f, corners of
    pixels at integers."""
    crs: str
    """CRS of the scene: WKT or any other form that PROJ reads."""
    target: str = CRS84
    """CRS of the output."""

    def on_map(self, pixels: Floats) -> Floats:
        """Transform pixels, float64 (n, 2) of col, row, to (n, 2) of x, y in the scene's CRS."""
        a, b, c, d, e, f = self.transform
        col, row = pixels[:, 0], pixels[:, 1]
        return np.stack([a * col + b * row + c, d * col + e * row + f], axis=1)

    def on_scene(self, points: Floats) -> Floats:
        """Transform float64 (n, 2) of x, y in the scene's CRS to pixels (n, 2) of col, row.

        NaN if the transform has no inverse.
        """
        a, b, c, d, e, f = self.transform
        x, y = points[:, 0] - c, points[:, 1] - f
        area = a * e - b * d or math.nan
        return np.stack([(e * x - b * y) / area, (a * y - d * x) / area], axis=1)


class Placed(NamedTuple):
    """Geometry, covering box and area of m objects."""

    geometry: list[bytes | None]
    """Polygon or MultiPolygon: valid 2D little-endian WKB, exteriors counter-clockwise, holes clockwise."""
    bbox: Floats
    """(m, 4) xmin, ymin, xmax, ymax in the target CRS. For an object cut at +-180 degrees they are -180 to
    180: readers filter by xmin <= x <= xmax, so they would miss a row whose xmin is above its xmax."""
    area_m2: Floats
    """(m,) on the ellipsoid, holes subtracted."""


def placed(outlines: Shapes, place: Place) -> Placed:
    """Georeference m outlines, object (m,) of valid polygons in pixels, empty or None where there is none."""
    shapes = _without(np.asarray(outlines, object), shapely.is_empty(outlines))
    area = np.full(len(shapes), np.nan)
    if can_place(place.crs, place.target):
        shapes[:] = None
    elif len(shapes):
        bent = np.flatnonzero(_bent(shapes, place))
        shapes[bent] = _unbroken(shapes[bent], place)
        shapes, area = _carried(shapes, place)
        shapes[bent] = [shape and _polygonal(shape) for shape in shapes[bent]]
    shapes = shapely.orient_polygons(_without(shapes, shapely.is_empty(shapes)))
    wkb = shapely.to_wkb(shapes, output_dimension=2, byte_order=1)
    return Placed(wkb.tolist(), shapely.bounds(shapes), np.where(shapely.is_missing(shapes), np.nan, area))


def _bent(shapes: Shapes, place: Place) -> NDArray[np.bool_]:
    """Return around which outlines, bool (m,), the transform to the target CRS is not affine or undefined.

    Three corners of each box define an affine transform; the fourth, the midpoints of the sides and of the
    box measure the difference. A discontinuity of the map in a box separates its corners. An outline wider
    than 180 degrees counts as bent, so that none of its edges stays that long.
    """
    half = half_turn(place.target) or np.inf
    low, size = np.split(shapely.bounds(shapes), 2, axis=1)
    size = size - low
    steps = np.array([[col, row] for col in (0, 0.5, 1) for row in (0, 0.5, 1)])
    grid = low[:, None] + steps * size[:, None]
    points = through(transformer(place.crs, place.target), place.on_map(grid.reshape(-1, 2)))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (points.reshape(-1, 9, 2) - points[0::9, None]).transpose(2, 0, 1)
        (col_x, row_x), (col_y, row_y) = ((each[:, 6:7], each[:, 2:3]) for each in (x, y))
        area = col_x * row_y - row_x * col_y
        across, along = (x * row_y - y * row_x) / area, (y * col_x - x * col_y) / area
        off = np.abs(np.stack([across, along], axis=2) - steps) * size[:, None]
    bent: NDArray[np.bool_] = ~(off <= STRAIGHT).all(axis=(1, 2)) | (np.abs(x) > half).any(axis=1)
    return bent


def _unbroken(shapes: Shapes, place: Place) -> Shapes:
    """Divide the edges of outlines, in pixels; None for those through a pole or split by the target CRS.

    A projected target CRS splits an edge if its midpoint is far off the line even for a short edge: by half
    its length if its ends are at opposite sides of the map.
    """
    half = half_turn(place.target)
    if half is not None:
        shapes = _without(shapes, _on_pole(shapes, place, half))
    rows, off = np.arange(len(shapes)), np.zeros((len(shapes), 2))
    for length in LENGTHS:
        shapes[rows] = shapely.segmentize(shapes[rows], length)
        off[rows] = _off_straight(shapes[rows], place, half)
        rows = np.flatnonzero(~(off[:, 0] <= STRAIGHT))
    return shapes if half is not None else _without(shapes, ~(off[:, 1] <= 0.25))


def _off_straight(shapes: Shapes, place: Place, half: float | None) -> Floats:
    """Return, float64 (m, 2), how far the transformed midpoints of edges are from the middle of their ends.

    Per outline: the maximum in pixels, and the maximum in lengths of the edge; infinite where PROJ cannot
    transform them.
    """
    pixels, owner = shapely.get_coordinates(shapes, return_index=True)
    to_target = transformer(place.crs, place.target)
    points = through(to_target, place.on_map(pixels))
    middles = through(to_target, place.on_map((pixels[1:] + pixels[:-1]) / 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        edges, halves = np.diff(points, axis=0), middles - points[:-1]
        if half is not None:  # the shorter way round, and a degree of longitude scaled by the latitude
            edges[:, 0], halves[:, 0] = ((each[:, 0] + half) % (2 * half) - half for each in (edges, halves))
            narrow = np.cos(middles[:, 1] * (math.pi / half))
            edges[:, 0], halves[:, 0] = edges[:, 0] * narrow, halves[:, 0] * narrow
        share = np.linalg.norm(halves - edges / 2, axis=1) / np.linalg.norm(edges, axis=1)
    share[np.isnan(share)] = np.inf
    share[owner[1:] != owner[:-1]] = 0
    off = np.zeros((len(shapes), 2))
    both = np.stack([share * np.linalg.norm(np.diff(pixels, axis=0), axis=1), share], axis=1)
    np.maximum.at(off, owner[1:], both)
    return off


def _carried(shapes: Shapes, place: Place) -> tuple[Shapes, Floats]:
    """Transform polygons in pixels to the target CRS, None where PROJ cannot; return them and their areas."""
    half = half_turn(place.target)
    pixels, owner = shapely.get_coordinates(shapes, return_index=True)
    points = through(transformer(place.crs, place.target), place.on_map(pixels))
    if half is None:
        lonlat = through(to_ground(place.crs), place.on_map(pixels)) * (math.pi / 180)
    else:
        points[:, 1] = np.clip(points[:, 1], -half / 2, half / 2)  # global grids reach beyond the poles
        lonlat = points * (math.pi / half)
    lost = np.zeros(len(shapes), bool)
    lost[owner[~(np.isfinite(points) & np.isfinite(lonlat)).all(axis=1)]] = True
    kept = ~lost[owner]
    shapes, points, owner = _without(shapes, lost), points[kept], owner[kept]
    area = _areas(shapes, lonlat[kept], owner, map_of(place.crs if half is None else place.target))
    shapes = shapely.set_coordinates(shapes, points)
    return shapes if half is None else _within_half_turns(shapes, points[:, 0], owner, half), area


def _within_half_turns(shapes: Shapes, lon: Floats, owner: NDArray[np.int64], half: float) -> Shapes:
    """Wrap polygons in longitude and latitude to -half..half; cut those that cross its ends.

    An edge of more than 180 degrees goes the other way round: this holds for edges that are straight on any
    map, once divided, and do not run through a pole.
    """
    cut = np.zeros(len(shapes), bool)
    cut[owner[1:][(owner[1:] == owner[:-1]) & (np.abs(np.diff(lon)) > half)]] = True
    west, _, east, _ = shapely.bounds(shapes).T
    turns = np.floor((west + half) / (2 * half))
    cut |= east - turns * 2 * half > half
    for row in np.flatnonzero(cut):
        shapes[row] = _cut(shapes[row], half)
    far = ~cut & (np.nan_to_num(turns) != 0)
    shift = 2 * half * turns[owner[far[owner]]]
    points = shapely.get_coordinates(shapes[far])
    shapes[far] = shapely.set_coordinates(shapes[far], points - np.stack([shift, 0 * shift], axis=1))
    return shapes


def _cut(shape: shapely.Geometry, half: float) -> shapely.Geometry:
    """Cut a polygon or multipolygon that crosses +-half into pieces within -half..half."""
    return shapely.union_all(
        [
            shapely.difference(
                _ring_cut(shapely.get_coordinates(part.exterior), half),
                shapely.union_all(
                    [_ring_cut(shapely.get_coordinates(hole), half) for hole in part.interiors]
                ),
            )
            for part in shapely.get_parts(shape)
        ]
    )


def _ring_cut(ring: Floats, half: float) -> shapely.Geometry:
    """Return the polygon inside a closed ring, float64 (n, 2), cut to -half..half.

    A ring whose last longitude is 360 degrees from its first goes round a pole: it is extended to the pole.
    """
    ring = np.stack([np.unwrap(ring[:, 0], period=2 * half), ring[:, 1]], axis=1)
    if abs(ring[-1, 0] - ring[0, 0]) > half:
        pole = math.copysign(half / 2, ring[:, 1].mean())
        ring = np.concatenate([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    inside = _polygonal(shapely.Polygon(ring))
    first, last = np.floor((np.array([ring[:, 0].min(), ring[:, 0].max()]) + half) / (2 * half)).astype(int)
    pieces = []
    for middle in 2 * half * np.arange(first, last + 1):
        window = shapely.box(middle - half, -half / 2, middle + half, half / 2)
        piece = _polygonal(shapely.intersection(inside, window))
        pieces.append(shapely.transform(piece, lambda points, middle=middle: points - [middle, 0]))
    return shapely.union_all(pieces)


def _on_pole(shapes: Shapes, place: Place, half: float) -> NDArray[np.bool_]:
    """Return, bool (m,), which outlines in pixels have an edge through a pole of a geographic target CRS.

    Only where the pole is a point in the scene's CRS: in a geographic CRS it is a line and needs no care.
    """
    to_target, hit = transformer(place.crs, place.target), np.zeros(len(shapes), bool)
    for pole in (-half / 2, half / 2):
        here = np.array([[lon, pole] for lon in (-half / 1.5, 0, half / 1.5)])
        pixels = place.on_scene(through(to_target, here, TransformDirection.INVERSE))
        if np.isfinite(pixels).all() and (np.ptp(pixels, axis=0) < POLE).all():
            point = shapely.Point(pixels[0])
            near = np.flatnonzero(shapely.dwithin(shapes, point, POLE))
            hit[near] |= shapely.dwithin(shapely.boundary(shapes[near]), point, POLE)
    return hit


def _areas(shapes: Shapes, lonlat: Floats, owner: NDArray[np.int64], ground: CRS) -> Floats:
    """Return the areas in square metres of polygons whose coordinates are (n, 2) radians; NaN for None.

    Lambert's azimuthal equal-area projection of the authalic sphere, around each object's first vertex (J. P.
    Snyder, Map Projections - A Working Manual, 1987, equations 3-11 to 3-13, 24-2 to 24-4): equal-area
    everywhere, and close to its centre its straight lines are the shortest ones. Not for continents: edges
    are not divided for it (1 % at 2,000 km), and an object that extends a quarter of the globe away is NaN.
    """
    sphere_radius, sine = _authalic(lonlat[:, 1], ground)
    cosine = np.sqrt(np.maximum(1 - sine * sine, 0))
    centre = np.searchsorted(owner, owner)
    lon = lonlat[:, 0] - lonlat[centre, 0]
    forward = cosine * np.cos(lon)
    near = sine[centre] * sine + cosine[centre] * forward
    scale = sphere_radius * np.sqrt(2 / (1 + np.where(near > 0, near, np.nan)))
    x = scale * cosine * np.sin(lon)
    y = scale * (cosine[centre] * sine - sine[centre] * forward)
    areas: Floats = shapely.area(shapely.set_coordinates(shapes.copy(), np.stack([x, y], axis=1)))
    return areas


def _authalic(lat: Floats, ground: CRS) -> tuple[float, Floats]:
    """Return the radius of the authalic sphere of the CRS's ellipsoid, and the sines of authalic latitudes.

    Raises ValueError for a CRS without an ellipsoid.
    """
    ellipsoid = ground.get_geod()
    if ellipsoid is None:
        raise ValueError(f"{ground.name}: no ellipsoid")
    e = math.sqrt(ellipsoid.es)

    def q(sine: Floats) -> Floats:
        if not e:
            return 2 * sine
        return (1 - e * e) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)

    most = float(q(np.ones(1))[0])
    return ellipsoid.a * math.sqrt(most / 2), q(np.sin(lat)) / most


def _without(shapes: Shapes, gone: NDArray[np.bool_]) -> Shapes:
    """Return a copy of the outlines with None where `gone`, bool (m,)."""
    kept = shapes.copy()
    kept[gone] = None
    return kept


def _polygonal(shape: shapely.Geometry) -> shapely.Geometry:
    """Return the valid polygons of a geometry, without the parts that collapsed to lines and points."""
    valid = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return shapely.union_all([part for part in shapely.get_parts(valid) if shapely.get_dimensions(part) == 2])
