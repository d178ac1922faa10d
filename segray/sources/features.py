"""A vector file -> its polygons, each with the value of one attribute; local or in a bucket.

    GeoJSON      a feature collection; longitude and latitude unless it has a member `crs`
    GeoParquet   1.0 or 1.1, geometry as WKB; longitude and latitude unless its metadata say otherwise
    GeoPackage   with one layer of features

What a file is, its first bytes say. Coordinates are x east before y north, whatever the system's own order.
"""

import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from segray.errors import SettingsError
from segray.scenes.crs import CRS84
from segray.sources.item import Source
from segray.sources.names import fault
from segray.sources.pair_lists import look_up
from segray.sources.reader import open_source
from segray.sources.roundtrips import describe
from segray.storage import StorageSettings, canonical_uri, split_protocol

_BATCH = 16_384
"""Rows of GeoParquet and GeoPackage in memory at a time."""
_SQLITE = b"SQLite format 3\0"
_CONVERT = "convert it with `ogr2ogr footprints.gpkg FILE`"
_OTHER_KINDS = (
    ("a Shapefile", (".shp", ".shx", ".dbf"), b"\x00\x00\x27\x0a", _CONVERT),
    ("a FlatGeobuf", (".fgb",), b"fgb\x03fgb", _CONVERT),
    ("KML or GML", (".kml", ".gml"), b"<?xml", _CONVERT),
    ("a zip archive", (".zip", ".kmz"), b"PK\x03\x04", "unpack it"),
    ("a gzip archive", (".gz", ".tgz"), b"\x1f\x8b", "unpack it"),
)
"""Kind, suffixes, first bytes, advice."""
_ENVELOPES = (0, 32, 48, 48, 64)
"""Bytes of the box in a GeoPackage geometry's header, by its indicator (OGC 12-128r19, table 5)."""


@dataclass(frozen=True, slots=True)
class Features:
    """Some rows of the file."""

    shapes: NDArray[np.object_]
    """(n,) shapely geometries of any kind; None where the row has none."""
    values: list[Any]
    """(n,) of the attribute; None without one."""
    unreadable: list[int]
    """Rows whose geometry is none, such as a ring that is not closed; they have no shape."""


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """The file, before its rows are read."""

    crs: str
    """What `pyproj.CRS` reads."""
    batches: Iterator[Features]


def find_file(address: str, storage: StorageSettings) -> Source:
    """Raises SettingsError if it is not there."""
    (source,) = look_up([address], Source(canonical_uri(address), address, "file", "", -1), ".", storage)
    if source.error_type is not None:
        raise SettingsError(f"{source.uri}: {source.error}")
    return source


@contextmanager
def open_features(source: Source, column: str | None, storage: StorageSettings) -> Iterator[FeatureFile]:
    """`column`: the attribute that is wanted, if one is.

    Raises SettingsError, also while the batches are read, for a file that is none of the three, is damaged,
    has no such column or no known coordinate system. GeoJSON is read whole: Python takes about 10 bytes for
    one of the file.
    """
    try:
        with open_source(source, storage) as stream:
            start = stream.read(len(_SQLITE))
            stream.seek(0)
            _refuse_other_kinds(source, start)
            if start.startswith(b"PAR1"):
                yield _parquet(pq.ParquetFile(stream), column)
            elif start == _SQLITE:
                with _local(source, stream) as path, closing(_connection(path)) as database:
                    yield _geopackage(database, column)
            else:
                yield _geojson(stream.read(), column)
    except SettingsError as error:
        raise SettingsError(*(f"{source.uri}: {line}" for line in error.lines)) from error
    except (pa.ArrowException, sqlite3.Error, shapely.GEOSException, CRSError, struct.error) as error:
        raise SettingsError(f"{source.uri}: it cannot be read: {describe(error)}") from error
    except OSError as error:
        raise SettingsError(f"{source.uri}: it cannot be read: {describe(error)}") from error


def _refuse_other_kinds(source: Source, start: bytes) -> None:
    """Raise SettingsError that says what to do with a well-known kind of file that is not read."""
    name = source.uri.lower()
    for kind, suffixes, magic, advice in _OTHER_KINDS:
        if name.endswith(suffixes) or start.startswith(magic):
            raise SettingsError(f"{kind} is not read: {advice}")


def _geojson(data: bytes, column: str | None) -> FeatureFile:
    try:
        content = json.loads(data)
        features, crs = content["features"], content.get("crs")
        name = crs["properties"]["name"] if crs else CRS84
        geometries = [_geometry(each) for each in features]
        rows = [each.get("properties") or {} for each in features]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"neither GeoParquet nor GeoPackage nor a GeoJSON feature collection: {fault(error)}"
        ) from error
    if column is not None and not any(column in row for row in rows):
        raise SettingsError(_no_column(column, sorted({name for row in rows[:100] for name in row})))
    values = [None if column is None else row.get(column) for row in rows]
    return FeatureFile(_checked(name), iter([_features(shapely.from_geojson, geometries, values)]))


def _features(read: Callable[..., Any], geometries: list[Any], values: list[Any]) -> Features:
    """A geometry that cannot be read costs itself alone."""
    shapes = np.asarray(read(geometries, on_invalid="ignore"), object).reshape(len(geometries))
    pairs = enumerate(zip(geometries, shapes, strict=True))
    return Features(shapes, values, [row for row, (given, got) in pairs if given is not None and got is None])


def _geometry(feature: Any) -> str | None:
    geometry = feature.get("geometry")
    return None if geometry is None else json.dumps(geometry)


def _parquet(file: pq.ParquetFile, column: str | None) -> FeatureFile:
    told = (file.schema_arrow.metadata or {}).get(b"geo")
    if told is None:
        raise SettingsError("Parquet without the metadata `geo`: no GeoParquet")
    try:
        geo = json.loads(told)
        name = geo["primary_column"]
        about = geo["columns"][name]
        encoding, crs = about["encoding"], about.get("crs", CRS84)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"its metadata `geo` are none of GeoParquet: {fault(error)}") from error
    if encoding != "WKB":
        raise SettingsError(f"geometry is encoded as {encoding}; only WKB is read")
    if column is not None and column not in file.schema_arrow.names:
        raise SettingsError(_no_column(column, [each for each in file.schema_arrow.names if each != name]))
    wanted = [name] if column is None else [name, column]

    def batches() -> Iterator[Features]:
        for batch in file.iter_batches(_BATCH, columns=wanted):
            values = [None] * len(batch) if column is None else batch.column(column).to_pylist()
            geometries = batch.column(name).cast(pa.large_binary()).to_pylist()
            yield _features(shapely.from_wkb, geometries, values)

    return FeatureFile(_checked(crs), batches())


@contextmanager
def _local(source: Source, stream: IO[bytes]) -> Iterator[str]:
    """SQLite reads files, not streams."""
    if split_protocol(source.uri)[0] == "file":
        yield source.address
        return
    with tempfile.NamedTemporaryFile(prefix="segray-", suffix=".gpkg") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        yield file.name


def _connection(path: str) -> sqlite3.Connection:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(f"file:{quoted}?mode=ro&immutable=1", uri=True)


def _geopackage(database: sqlite3.Connection, column: str | None) -> FeatureFile:
    layers = database.execute(
        "SELECT table_name, column_name, organization, organization_coordsys_id, definition"
        " FROM gpkg_geometry_columns JOIN gpkg_contents USING (table_name)"
        " JOIN gpkg_spatial_ref_sys ON gpkg_geometry_columns.srs_id = gpkg_spatial_ref_sys.srs_id"
        " WHERE data_type = 'features'"
    ).fetchall()
    if len(layers) != 1:
        found = ", ".join(sorted(str(layer[0]) for layer in layers)) or "none"
        raise SettingsError(f"a GeoPackage with one layer of features is wanted, it has {found}")
    table, geometry, organisation, number, definition = layers[0]
    names: list[str] = [row[1] for row in database.execute(f"PRAGMA table_info({_quoted(table)})")]
    if column is not None and column not in names:
        raise SettingsError(_no_column(column, [name for name in names if name != geometry]))
    wanted = f"{_quoted(geometry)}, {'NULL' if column is None else _quoted(column)}"

    def batches() -> Iterator[Features]:
        found = database.execute(f"SELECT {wanted} FROM {_quoted(table)} ORDER BY rowid")
        while batch := found.fetchmany(_BATCH):
            geometries, values = [_wkb(blob) for blob, _ in batch], [value for _, value in batch]
            yield _features(shapely.from_wkb, geometries, values)

    known = str(organisation).upper() == "EPSG"
    return FeatureFile(_checked(f"EPSG:{number}" if known else definition), batches())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _wkb(blob: Any) -> bytes | None:
    """What follows the header of a GeoPackage geometry (OGC 12-128r19, 2.1.3)."""
    if blob is None:
        return None
    if (
        not isinstance(blob, bytes)
        or blob[:2] != b"GP"
        or len(blob) < 8
        or (envelope := blob[3] >> 1 & 7) > 4
    ):
        raise SettingsError("a geometry is none of GeoPackage")
    return blob[8 + _ENVELOPES[envelope] :]


def _checked(crs: Any) -> str:
    if not crs:
        raise SettingsError("it says that its coordinate system is unknown: write the file with one")
    return CRS.from_user_input(crs).to_wkt() if crs != CRS84 else CRS84


def _no_column(column: str, names: list[str]) -> str:
    return f"class_column: it has no column {column}; there are {', '.join(names[:20]) or 'none'}"
