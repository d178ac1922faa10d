"""Places against geopandas, pyproj and its geodesics, and tables as their readers see them."""

import itertools
import json
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from shapely import affinity, box

from segray.masks.polygonize import outlines
from segray.scenes.crs import can_place
from segray.scenes.geoparquet import geoparquet_metadata, hilbert_order
from segray.scenes.georeference import Place, Placed, placed
from segray.schema import GEOMETRY_BBOX
from tests.masks.test_polygonize import random_masks, spans

MARS = (
    'PROJCS["Equirectangular MARS",GEOGCS["GCS_MARS",DATUM["D_MARS",SPHEROID["MARS_localRadius",'
    '3395582.0270805,0]],PRIMEM["Reference_Meridian",0],UNIT["degree",0.0174532925199433,'
    'AUTHORITY["EPSG","9122"]]],PROJECTION["Equirectangular"],PARAMETER["standard_parallel_1",-10],'
    'PARAMETER["central_meridian",180],PARAMETER["false_easting",0],PARAMETER["false_northing",0],'
    'UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
WGS84 = Geod(ellps="WGS84")


def some_outlines(seed: int = 0) -> NDArray[np.object_]:
    """Random ones with holes and parts, and a long one."""
    masks = [spans(mask) for mask in random_masks(seed, 6, 30) if mask.any()]
    col = np.arange(1500)
    return outlines([*masks, np.stack([col, col // 2, col // 2 + 9], axis=1)])


def shapes_of(there: Placed) -> NDArray[np.object_]:
    """The geometries as read back, after checks that hold for all."""
    shapes: NDArray[np.object_] = shapely.from_wkb(np.array(there.geometry, object))
    here = ~shapely.is_missing(shapes)
    assert shapely.is_valid(shapes[here]).all()
    assert set(shapely.get_type_id(shapes[here])) <= {3, 6}
    for part in shapely.get_parts(shapes[here]):
        assert part.exterior.is_ccw
        assert not any(hole.is_ccw for hole in part.interiors)
    assert all(wkb is None or wkb[0] == 1 for wkb in there.geometry)
    assert not shapely.has_z(shapes).any()
    assert np.array_equal(shapely.bounds(shapes), there.bbox, equal_nan=True)
    assert np.array_equal(np.isnan(there.bbox).all(axis=1), ~here)
    assert np.isnan(there.area_m2[~here]).all()
    return shapes


def lonlat(crs: str, *points: tuple[float, float]) -> NDArray[np.float64]:
    """Points in a CRS, by pyproj."""
    return np.array(list(Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).itransform(points)))


NORTH_UP = (0.5, 0.0, 0.0, 0.0, -0.5, 0.0)
ROTATED = (0.4, 0.3, 0.0, 0.3, -0.4, 0.0)
SOUTH_UP = (0.5, 0.0, 0.0, 0.0, 0.5, 0.0)
SKEWED_FEET = (0.31, 0.1, 0.0, -0.02, 0.6, 0.0)


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, SOUTH_UP, SKEWED_FEET])
@pytest.mark.parametrize(
    ("crs", "x", "y", "unit"),
    [
        ("EPSG:32616", 733_000.0, 3_725_000.0, 1),
        ("EPSG:3857", 3_629_000.0, 35_000.0, 1),
        ("EPSG:4326", 32.6, 0.3, 1e-5),
        ("EPSG:4326", -70.0, -55.0, 1e-5),
        ("EPSG:26914", 500_000.0, 4_200_000.0, 10),
        ("EPSG:3413", 400_000.0, -1_900_000.0, 30),
    ],
)
@pytest.mark.parametrize("target", ["OGC:CRS84", "EPSG:4326", "EPSG:3857", "EPSG:32616"])
def test_as_geopandas_and_geodesics(
    transform: tuple[float, ...], crs: str, x: float, y: float, unit: float, target: str
) -> None:
    a, b, _, d, e, _ = (unit * each for each in transform)
    shapes = some_outlines()
    there = placed(shapes, Place((a, b, x, d, e, y), crs, target))
    series = geopandas.GeoSeries([affinity.affine_transform(each, [a, b, d, e, x, y]) for each in shapes])
    series = series.set_crs(crs)
    wanted, here = series.to_crs(target).array, shapes_of(there)
    pixel = np.sqrt(shapely.area(wanted) / shapely.area(shapes))
    assert (shapely.hausdorff_distance(here, wanted) < 0.1 * pixel).all()
    assert np.allclose(there.bbox, shapely.bounds(wanted), rtol=0, atol=0.1 * pixel.max())
    ground = series.segmentize(64 * unit).to_crs("OGC:CRS84")
    areas = [abs(WGS84.geometry_area_perimeter(shapely.orient_polygons(each))[0]) for each in ground]
    assert np.allclose(there.area_m2, areas, rtol=1e-4)


def test_area_of_kilometres_with_a_hole() -> None:
    for lat in (0, 45, 80):
        crs = f"+proj=tmerc +lat_0={lat} +lon_0=10 +ellps=WGS84 +type=crs"
        shape = box(0, 0, 500, 400) - box(100, 100, 300, 200)
        (area,) = placed(np.array([shape]), Place((20, 0, 20_000, 0, -20, 0), crs)).area_m2
        edges = shapely.segmentize(affinity.affine_transform(shape, [20, 0, 0, -20, 20_000, 0]), 500)
        ground = shapely.transform(edges, lambda points, crs=crs: lonlat(crs, *map(tuple, points)))
        (wanted, _) = WGS84.geometry_area_perimeter(shapely.orient_polygons(ground))
        assert area == pytest.approx(wanted, rel=1e-4)


def test_long_straight_edges_are_bent() -> None:
    """A field of 200 km: its northern edge is a curve in longitude and latitude."""
    place = Place((100, 0, 300_000, 0, -100, 6_600_000), "EPSG:32616")
    (shape,) = shapes_of(placed(np.array([box(0, 0, 2000, 2000)]), place))
    points = lonlat("EPSG:32616", *((x, 6_600_000) for x in np.linspace(300_000, 500_000, 50)))
    off = shapely.distance(shapely.boundary(shape), shapely.points(points))
    assert off.max() < 0.1 * 100 / 111_000
    assert shapely.get_num_coordinates(shape) < 1000


def test_nothing_and_nothing_there() -> None:
    place = Place(NORTH_UP, "EPSG:32616")
    assert placed(np.array([], object), place).geometry == []
    there = placed(np.array([None, box(0, 0, 1, 1), shapely.Polygon()], object), place)
    assert [each is None for each in there.geometry] == [True, False, True]
    shapes_of(there)


@pytest.mark.parametrize(
    ("crs", "why"),
    [(MARS, "Mars"), (LOCAL, "Engineering"), ("", "Invalid"), ("EPSG:4978", "Geocentric"), ("x", "Invalid")],
)
def test_what_is_not_on_the_map(crs: str, why: str) -> None:
    assert why in (can_place(crs) or "")
    there = placed(some_outlines(), Place(NORTH_UP, crs))
    assert all(shapely.is_missing(shapes_of(there)))
    assert can_place("EPSG:32616") is None


def test_mars_on_mars() -> None:
    assert can_place(MARS, MARS) is None
    (area,) = placed(np.array([box(0, 0, 10, 10)]), Place((5, 0, 0, 0, -5, 0), MARS, MARS)).area_m2
    assert area == pytest.approx(2500 / np.cos(np.radians(10)), rel=1e-3)


def test_heights_are_left_out() -> None:
    flat, high = (
        placed(some_outlines(), Place(NORTH_UP, crs)).bbox for crs in ("EPSG:32616", "EPSG:32616+5773")
    )
    assert np.array_equal(flat, high)


@pytest.mark.parametrize(
    "transform", [(0.0,) * 6, (float("nan"), 0.0, 0.0, 0.0, 1.0, 0.0), (1e300, 0.0, 0.0, 0.0, 1e300, 0.0)]
)
@pytest.mark.parametrize("target", ["OGC:CRS84", "EPSG:3857"])
def test_broken_transforms(transform: tuple[float, ...], target: str) -> None:
    a, b, c, d, e, f = transform
    there = placed(some_outlines(), Place((a, b, c, d, e, f), "EPSG:32616", target))
    assert all(shapely.is_missing(shapes_of(there)))


def test_only_what_is_off_the_map_is_lost() -> None:
    place = Place((1e6, 0, 0, 0, -1e6, 0), "EPSG:3413")
    far = Place((1e6, 0, 0, 0, -1e6, 0), "EPSG:6933")  # the world is 34 * 15 million metres there
    assert shapes_of(placed(np.array([box(1, 1, 2, 2)]), place))[0] is not None
    near, beyond = shapes_of(placed(np.array([box(1, 1, 2, 2), box(1, 8, 2, 9)]), far))
    assert near is not None
    assert beyond is None


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660"])
def test_across_the_antimeridian(crs: str) -> None:
    ((x, y),) = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).itransform([(180.0, 60.0)])
    shapes = [
        box(0, 0, 100, 100),
        box(20, 20, 80, 80) - box(45, 45, 55, 55),
        box(0, 0, 9, 9),
        box(90, 0, 99, 9),
    ]
    there = placed(np.array(shapes), Place((10, 0, x - 500, 0, -10, y + 500), crs))
    here = shapes_of(there)
    assert shapely.get_type_id(here).tolist() == [6, 6, 3, 3]
    assert there.bbox[:2, 0::2].tolist() == [[-180, 180]] * 2
    assert there.bbox[2, 0] > 179.98
    assert there.bbox[3, 2] < -179.98
    again = shapely.transform(here, lambda points: np.stack([points[:, 0] % 360, points[:, 1]], axis=1))
    series = geopandas.GeoSeries(
        [
            affinity.affine_transform(shapely.segmentize(each, 8), [10, 0, 0, -10, x - 500, y + 500])
            for each in shapes
        ]
    )
    wanted = shapely.transform(
        series.set_crs(crs).to_crs("OGC:CRS84").array,
        lambda points: np.stack([points[:, 0] % 360, points[:, 1]], axis=1),
    )
    joined = [shapely.union_all(shapely.get_parts(each), grid_size=1e-12) for each in again]
    assert (shapely.area(shapely.symmetric_difference(joined, wanted)) < 1e-3 * shapely.area(wanted)).all()
    flat = [shapely.area(each) * 100 for each in shapes]
    assert np.allclose(there.area_m2, flat, rtol=2e-3)  # scale of UTM at its border
    torn = shapes_of(placed(np.array(shapes), Place((10, 0, x - 500, 0, -10, y + 500), crs, "EPSG:3857")))
    assert shapely.is_missing(torn).tolist() == [True, True, False, False]
    other = "EPSG:32601" if crs == "EPSG:32660" else "EPSG:32660"
    whole = shapes_of(placed(np.array(shapes), Place((10, 0, x - 500, 0, -10, y + 500), crs, other)))
    assert shapely.get_type_id(whole).tolist() == [3] * 4


def test_longitudes_from_0_to_360_and_whole_globes() -> None:
    shapes = [box(0, 0, 720, 360), box(300, 100, 400, 200), box(400, 100, 410, 110), box(0, 0, 1, 1)]
    there = shapes_of(placed(np.array(shapes), Place((0.5, 0, 0, 0, -0.5, 90), "EPSG:4326")))
    wanted = [box(-180, -90, 180, 90), box(-180, -10, -160, 40) | box(150, -10, 180, 40)]
    wanted += [box(-160, 35, -155, 40), box(0, 89.5, 0.5, 90)]
    assert shapely.equals(there, wanted).all()
    beyond = Place((0.5, 0, -180.25, 0, 0.5, -90.25), "EPSG:4326")
    globe, cell = shapes_of(placed(np.array([shapes[0], box(100, 0, 101, 1)]), beyond))
    assert globe.equals(box(-180, -90, 180, 89.75))
    assert cell.equals(box(-130.25, -90, -129.75, -89.75))
    (coarse,) = shapes_of(placed(np.array([box(0, 0, 4, 2)]), Place((90, 0, -180, 0, -90, 90), "EPSG:4326")))
    assert coarse.equals(box(-180, -90, 180, 90))


POLAR = [
    ("EPSG:3413", 90.0, (25_000.0, 0.0, -2_500_000.0, 0.0, -25_000.0, 2_500_000.0)),
    ("EPSG:3031", -90.0, (25_000.0, 0.0, -2_500_000.0, 0.0, -25_000.0, 2_500_000.0)),
    ("EPSG:3413", 90.0, (800.0, 600.0, -140_000.0, 600.0, -800.0, 20_000.0)),
]


@pytest.mark.parametrize(("crs", "pole", "transform"), POLAR)
def test_around_a_pole(crs: str, pole: float, transform: tuple[float, ...]) -> None:
    """The pole is the corner (100, 100) of pixels. What is inside in the scene is inside on Earth."""
    a, b, c, d, e, f = transform
    cap, ring = box(90, 91, 110, 112), box(80, 80, 120, 125) - box(92, 93, 110, 112)
    beside, slice_ = box(101, 99, 115, 102), box(90, 97, 110, 99)
    shapes = np.array([cap, ring, beside, slice_])
    there = placed(shapes, Place((a, b, c, d, e, f), crs))
    here = shapes_of(there)
    assert there.bbox[0, [0, 2]].tolist() == [-180, 180]
    assert (there.bbox[0, 1], there.bbox[0, 3])[pole > 0] == pole
    pixels = np.random.default_rng(0).uniform(75, 130, (4000, 2))
    points = shapely.points(lonlat(crs, *((a * x + b * y + c, d * x + e * y + f) for x, y in pixels)))
    for shape, on_earth in zip(shapes, here, strict=True):
        clear = shapely.distance(shapely.boundary(shape), shapely.points(pixels)) > 0.15
        inside = shapely.contains(shape, shapely.points(pixels))
        assert np.array_equal(shapely.contains(on_earth, points)[clear], inside[clear])
    exact = [_polar_area(crs, shape, transform) for shape in shapes]
    assert np.allclose(there.area_m2, exact, rtol=2e-3)
    touching = np.array(
        [box(100, 100, 101, 101), box(95, 98, 100, 102), box(90, 90, 110, 110) - box(100, 100, 101, 101)]
    )
    assert shapely.is_missing(shapes_of(placed(touching, Place((a, b, c, d, e, f), crs)))).all()
    assert not shapely.is_missing(shapes_of(placed(touching, Place((a, b, c, d, e, f), crs, crs)))).any()
    mercator = shapes_of(placed(shapes, Place((a, b, c, d, e, f), crs, "EPSG:3857")))
    assert shapely.is_missing(mercator)[:2].all()


def _polar_area(crs: str, shape: shapely.Geometry, transform: tuple[float, ...]) -> float:
    """In PROJ's own equal-area projection around the pole."""
    a, b, c, d, e, f = transform
    pole = 90 if crs == "EPSG:3413" else -90
    laea = Transformer.from_crs(crs, f"+proj=laea +lat_0={pole} +ellps=WGS84", always_xy=True)
    edges = affinity.affine_transform(shapely.segmentize(shape, 0.1), [a, b, d, e, c, f])
    return float(shapely.transform(edges, lambda points: np.stack(laea.transform(*points.T), axis=1)).area)


def write(path: Path, there: Placed, crs: str) -> None:
    """A table as the job writes it."""
    boxes = pa.StructArray.from_arrays(
        [pa.array(side, from_pandas=True) for side in there.bbox.T], fields=list(GEOMETRY_BBOX)
    )
    columns: dict[str, Any] = {
        "id": np.arange(len(there.bbox)),
        "geometry": pa.array(there.geometry, pa.binary()),
    }
    table = pa.table({**columns, "geometry_bbox": boxes})
    metadata = geoparquet_metadata(crs, ["Polygon", "MultiPolygon"])
    pq.write_table(table.replace_schema_metadata({b"geo": metadata}), path)


@pytest.mark.parametrize("crs", ["OGC:CRS84", "EPSG:4326", "EPSG:32616", "EPSG:3857"])
def test_readers(tmp_path: Path, crs: str) -> None:
    path = tmp_path / "rows.parquet"
    shapes = np.r_[[affinity.translate(each, 300 * i, 0) for i, each in enumerate(some_outlines())], [None]]
    there = placed(shapes, Place((0.5, 0, 733_000, 0, -0.5, 3_725_000), "EPSG:32616", crs))
    write(path, there, crs)
    frame = geopandas.read_parquet(path)
    assert frame.crs == CRS.from_user_input(crs)
    assert frame.geometry.to_wkb().tolist() == there.geometry
    xmin, ymin, xmax, ymax = there.bbox[3]
    some = geopandas.read_parquet(path, bbox=(xmin, ymin, xmax, ymax))
    wanted = [
        i
        for i, each in enumerate(frame.geometry)
        if each and box(*there.bbox[3]).intersects(box(*each.bounds))
    ]
    assert some["id"].tolist() == wanted
    assert 3 in wanted
    assert len(wanted) < len(frame) / 2
    ids = (
        duckdb.connect()
        .execute(
            f"select id from '{path}' where geometry_bbox.xmin <= {xmax} and geometry_bbox.xmax >= {xmin}"
            f" and geometry_bbox.ymin <= {ymax} and geometry_bbox.ymax >= {ymin} order by id"
        )
        .fetchall()
    )
    assert [each for (each,) in ids] == wanted


def test_metadata() -> None:
    geo = json.loads(geoparquet_metadata("OGC:CRS84", ["Polygon", "MultiPolygon", "Polygon"]))
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert "crs" not in column
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert (column["edges"], column["orientation"]) == ("planar", "counterclockwise")
    other = json.loads(geoparquet_metadata("EPSG:32616", []))["columns"]["geometry"]
    assert other["crs"]["id"] == {"authority": "EPSG", "code": 32616}
    assert other["geometry_types"] == []


def test_hilbert_curve_goes_to_neighbours() -> None:
    """It visits each cell of 64 x 64 once, next to the one before, from one corner to the one beside it."""
    cells = np.array(list(itertools.product(range(64), range(64))), np.float64)
    cells = np.random.default_rng(0).permutation(cells)
    walk = cells[hilbert_order(np.hstack([cells - 0.3, cells + 0.3]))]
    assert (np.abs(np.diff(walk, axis=0)).sum(axis=1) == 1).all()
    assert walk[[0, -1]].tolist() == [[0, 0], [63, 0]]


def test_hilbert_order_of_odd_rows() -> None:
    nowhere = [np.nan] * 4
    assert hilbert_order(np.zeros((0, 4))).tolist() == []
    assert hilbert_order(np.array([nowhere, nowhere])).tolist() == [0, 1]
    same = [1.0, 1.0, 2.0, 2.0]
    assert hilbert_order(np.array([nowhere, same, nowhere, same])).tolist() == [1, 3, 0, 2]
