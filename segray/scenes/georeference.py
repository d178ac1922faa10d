"""Outlines in pixels -> geometry, covering box and area on Earth, for all objects of a scene at once.

pixels --affine map--> the scene's CRS --PROJ--> the target CRS of the run (`--crs`), x east before y north
whatever the CRS's own order of axes, as GeoParquet wants it.

What has no sensible place stays without one (null geometry, NaN box and area), and never stops its scene:
- coordinates that PROJ cannot transform, scenes of another planet or of a local CRS;
- objects whose edge runs through a pole, if the target is geographic: there a longitude means nothing;
- objects that the target map tears apart, if it is projected: across +-180 degrees in Web Mercator, say.
If the target is geographic, what crosses +-180 degrees is cut there into a MultiPolygon (RFC 7946, 3.1.9),
and what holds a pole inside reaches up to it and has the whole width of the map.
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
"""Pixels. The map from pixels to the target CRS may bend the box around an object by so much and still count
as affine there: then corners stay corners, edges straight lines, and what was valid is valid, as nothing in a
mask is nearer to anything else than a pixel. That holds for all but large or polar objects."""

LENGTHS = (64, 16, 4, 1, 0.25)
"""Pixels. Edges of the other objects are divided into pieces of at most the first of these lengths with which
their middles keep within `STRAIGHT` of a straight line, as what is straight in one CRS is curved in another:
64 pixels of 1 km at 50 degrees by 0.1 pixels, but those that pass a pole next to it by half a circle."""

POLE = 1e-3
"""Pixels: an edge as near to a pole as this runs through it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scene lies. Any rotation, any order of rows; a transform without an inverse places nothing."""

    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f) as rasterio has them: x = a * col + b * row + c, y = d * col + e * row + f, corners
    of pixels at integers."""
    crs: str
    """Of the scene: WKT or anything else that PROJ reads."""
    target: str = CRS84
    """Of the output."""

    def on_map(self, pixels: Floats) -> Floats:
        """(n, 2) of (col, row) -> (n, 2) of (x, y) in the scene's CRS."""
        a, b, c, d, e, f = self.transform
        col, row = pixels[:, 0], pixels[:, 1]
        return np.stack([a * col + b * row + c, d * col + e * row + f], axis=1)

    def on_scene(self, points: Floats) -> Floats:
        """(n, 2) of (x, y) in the scene's CRS -> (n, 2) of (col, row); NaN if there is no inverse."""
        a, b, c, d, e, f = self.transform
        x, y = points[:, 0] - c, points[:, 1] - f
        area = a * e - b * d or math.nan
        return np.stack([(e * x - b * y) / area, (a * y - d * x) / area], axis=1)


class Placed(NamedTuple):
    """One row an object."""

    geometry: list[bytes | None]
    """Polygon or MultiPolygon: valid 2D little-endian WKB, exteriors counter-clockwise, holes clockwise."""
    bbox: Floats
    """(m, 4) xmin, ymin, xmax, ymax in the target CRS. Of an object cut at +-180 degrees they reach from -180
    to 180: readers compare with xmin <= x <= xmax, so they would lose a row whose xmin is above its xmax."""
    area_m2: Floats
    """(m,) on the ellipsoid, holes subtracted."""


def placed(outlines: Shapes, place: Place) -> Placed:
    """(m,) valid polygons in pixels, empty or None where there is none -> their place; see `Placed`."""
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
    """Around which outlines, in pixels, the map to the target CRS is not affine, or has no values.

    Three corners of each box say what an affine map would be; the fourth, the middles of the sides and of the
    box say how far it is from that. A cut of the map that runs through a box parts its corners. What is
    wider than half a turn counts as bent, so that no edge stays so long.
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
    """Outlines, in pixels, with their edges divided; None for those through a pole or torn apart.

    Torn apart by a projected target CRS is an edge whose middle lies far off, however short the edge: by half
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
    """(m, 2) of outlines in pixels: how far middles of edges come to lie from the middles between their ends.

    The most in pixels, and the most in lengths of the edge; infinite where PROJ has no answer.
    """
    pixels, owner = shapely.get_coordinates(shapes, return_index=True)
    to_target = transformer(place.crs, place.target)
    points = through(to_target, place.on_map(pixels))
    middles = through(to_target, place.on_map((pixels[1:] + pixels[:-1]) / 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        edges, halves = np.diff(points, axis=0), middles - points[:-1]
        if half is not None:  # the shorter way round, and a degree of longitude is as long as it is there
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
    """Polygons in pixels -> polygons in the target CRS, None where PROJ has no answer, and their areas."""
    half = half_turn(place.target)
    pixels, owner = shapely.get_coordinates(shapes, return_index=True)
    points = through(transformer(place.crs, place.target), place.on_map(pixels))
    if half is None:
        lonlat = through(to_ground(place.crs), place.on_map(pixels)) * (math.pi / 180)
    else:
        points[:, 1] = np.clip(points[:, 1], -half / 2, half / 2)  # global grids reach half a pixel beyond
        lonlat = points * (math.pi / half)
    lost = np.zeros(len(shapes), bool)
    lost[owner[~(np.isfinite(points) & np.isfinite(lonlat)).all(axis=1)]] = True
    kept = ~lost[owner]
    shapes, points, owner = _without(shapes, lost), points[kept], owner[kept]
    area = _areas(shapes, lonlat[kept], owner, map_of(place.crs if half is None else place.target))
    shapes = shapely.set_coordinates(shapes, points)
    return shapes if half is None else _within_half_turns(shapes, points[:, 0], owner, half), area


def _within_half_turns(shapes: Shapes, lon: Floats, owner: NDArray[np.int64], half: float) -> Shapes:
    """Polygons in longitude and latitude, each brought to -half..half, those that cross its ends cut.

    An edge of more than half a turn is one that goes the other way round: true of edges that are straight on
    any map, once divided, and do not run through a pole.
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
    """One polygon or multipolygon that crosses +-half, in pieces within."""
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
    """(n, 2) of a closed ring -> the polygon inside it, within -half..half.

    A ring that is a turn away from its beginning when it comes back has gone round a pole: it is led there.
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
    """Which outlines, in pixels, have an edge through a pole of a geographic target CRS.

    Only where the pole is a point of the scene's map: on a map of longitudes it is a line, and no trouble.
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
    """Square metres of polygons whose coordinates are (n, 2) radians; NaN for None.

    Lambert's azimuthal equal-area projection of the authalic sphere, around each object's first vertex (J. P.
    Snyder, Map Projections - A Working Manual, 1987, equations 3-11 to 3-13, 24-2 to 24-4): equal-area
    everywhere, and next to its centre its straight lines are the shortest ones. Not for continents: edges are
    not divided for it (1 % at 2,000 km), and NaN is what reaches a quarter of the globe away from there.
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
    """Radius of the sphere with the area of the CRS's ellipsoid, and sines of the latitudes of equal area."""
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
    """A copy, None where `gone`."""
    kept = shapes.copy()
    kept[gone] = None
    return kept


def _polygonal(shape: shapely.Geometry) -> shapely.Geometry:
    """The valid polygons of a geometry, without the lines and points to which some of it shrank."""
    valid = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return shapely.union_all([part for part in shapely.get_parts(valid) if shapely.get_dimensions(part) == 2])
