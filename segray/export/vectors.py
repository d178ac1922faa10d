"""GeoJSON, GeoPackage, FlatGeobuf and PMTiles by GDAL's own writers, a batch of rows at a time.

In the run's CRS; PMTiles are Web Mercator, to which GDAL transforms: vector tiles of the zooms `_ZOOMS`.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyogrio
import shapely

from segray.export.table import Instance, LabelTable
from segray.scenes.crs import map_of
from segray.schema import CRS84

LAYER = "instances"
_ROWS = 2_000
_DRIVERS = {"geojson": "GeoJSON", "gpkg": "GPKG", "flatgeobuf": "FlatGeobuf", "pmtiles": "PMTiles"}
_ZOOMS = {"pmtiles": {"MINZOOM": 8, "MAXZOOM": 16}}
"""A tile of zoom 16 has steps of 15 cm at the equator; viewers enlarge it further."""
_SCHEMA = pa.schema(
    [
        pa.field("instance_id", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("category_id", pa.int32()),
        pa.field("category", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("area_m2", pa.float64()),
        pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"}),
    ]
)


def write_vectors(table: LabelTable, path: Path, split: str | None, kind: str, crs: str) -> None:
    """Write the instances of a split that have a place on Earth to a local file.

    kind: a format of `_DRIVERS`. All are MultiPolygons in all but GeoJSON, whose layers have one
    type; QGIS opens such a layer without a question. Raises OSError where GDAL cannot write.
    """
    one_type = kind != "geojson"
    placed = (each for _, each in table.instances(split) if each.geometry is not None)
    batches = _batches(placed, one_type=one_type)
    try:
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(_SCHEMA, batches),
            path,
            layer=LAYER,
            driver=_DRIVERS[kind],
            geometry_name="geometry",
            geometry_type="MultiPolygon" if one_type else "Unknown",
            crs=_crs(crs, kind),
            **_ZOOMS.get(kind, {}),
        )
    except RuntimeError as error:  # of all of pyogrio's
        raise OSError(str(error)) from error


def _crs(crs: str, kind: str) -> str:
    """Return the CRS as GDAL takes it.

    A GeoPackage has x before y in any CRS, so that its EPSG:4326 is OGC:CRS84; the latter it holds only under
    a number of its own, which other programs do not know.
    """
    if kind == "gpkg" and map_of(crs) == map_of(CRS84):
        return "EPSG:4326"
    text: str = map_of(crs).to_wkt()
    return text


def _batches(instances: Iterator[Instance], *, one_type: bool) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(instances, _ROWS)):
        geometry: list[bytes | None] = [each.geometry for each in rows]
        if one_type:
            geometry = _as_multipolygons(geometry)
        columns = [
            *([getattr(each, name) for each in rows] for name in ("instance_id", "image_id", "category_id")),
            [each.category for each in rows],
            [each.plain_score for each in rows],
            [each.area_m2 for each in rows],
            geometry,
        ]
        arrays = [pa.array(column, each.type) for column, each in zip(columns, _SCHEMA, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _as_multipolygons(geometry: list[bytes | None]) -> list[bytes | None]:
    shapes = shapely.from_wkb(np.array(geometry, object))
    single = shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON
    shapes[single] = [shapely.MultiPolygon([each]) for each in shapes[single]]
    found: list[bytes | None] = shapely.to_wkb(shapes).tolist()
    return found
