"""A vector file -> its polygons, each with the value of one attribute; local or in a bucket.

    GeoJSON      a feature collection, or a feature a line; longitude and latitude without a member `crs`
    GeoParquet   1.0 or 1.1, geometry as WKB; longitude and latitude unless its metadata say otherwise
    GeoPackage, Shapefile (with .shx, .dbf and .prj next to it), FlatGeobuf   by GDAL

The first bytes decide the format. Coordinates are x east before y north, in any axis order of the CRS.
"""

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from segray.data.pair_lists import look_up
from segray.errors import SettingsError
from segray.schema import CRS84
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.names import fault
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri, split_protocol

_BATCH = 16_384
"""Rows in memory at a time, except for GeoJSON."""
_SQLITE = b"SQLite format 3\0"
_CONVERT = "convert it with `ogr2ogr footprints.gpkg FILE`"
_OTHER_KINDS = (
    ("KML or GML", (".kml", ".gml"), b"<?xml", _CONVERT),
    ("a zip archive", (".zip", ".kmz"), b"PK\x03\x04", "unpack it"),
    ("a gzip archive", (".gz", ".tgz"), b"\x1f\x8b", "unpack it"),
    ("a part of a Shapefile", (".shx", ".dbf", ".prj"), b"PROJCS[", "use the .shp next to it"),
)
"""Kind, suffixes, first bytes, advice."""
_OGR = {_SQLITE: ".gpkg", b"fgb\x03fgb": ".fgb", b"\x00\x00\x27\x0a": ".shp"}
"""First bytes -> the suffix by which GDAL recognises the format."""
_SHAPEFILE = (".shp", ".shx", ".dbf", ".prj", ".cpg")
_JOURNAL, _IN_JOURNAL = "-wal", b"\2\2"
"""SQLite's write-ahead log next to a file, and bytes 18 and 19 of a file that may have one
(https://www.sqlite.org/fileformat.html)."""


@dataclass(frozen=True, slots=True)
class Features:
    """A batch of rows of the file."""

    shapes: NDArray[np.object_]
    """(n,) shapely geometries of any kind; None where the row has none."""
    values: list[Any]
    """(n,) values of the attribute; None without one."""
    unreadable: list[int]
    """Indices of rows with an invalid geometry, such as a ring that is not closed; they have no shape."""


@dataclass(frozen=True, slots=True)
class Named:
    """The settings that name an attribute and a layer, for error messages."""

    column: str = "class_column"
    layer: str | None = "footprints_layer"
    """None: there is no such setting, the file has one layer."""

    def no_column(self, column: str, names: list[str]) -> str:
        """Return the message for a missing attribute."""
        return f"{self.column}: it has no column {column}; there are {', '.join(names[:20]) or 'none'}"

    def no_layer(self, layers: list[str]) -> str:
        """Return the message for a file with none or several layers, of which none was chosen."""
        if not layers:
            return "it has no layer of features"
        advice = "write a file with one" if self.layer is None else "choose one with --footprints-layer"
        return f"it has {len(layers)} layers of features; {advice}: {', '.join(layers[:20])}"


_OF_FOOTPRINTS = Named()


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """The file, before its rows are read."""

    crs: str
    """CRS, as `pyproj.CRS` reads it."""
    batches: Iterator[Features]


def find_file(address: str, storage: StorageSettings) -> Source:
    """Return the file. Raises SettingsError if it does not exist."""
    (source,) = look_up([address], Source(canonical_uri(address), address, "file", "", -1), ".", storage)
    if source.error_type is not None:
        raise SettingsError(f"{source.uri}: {source.error}")
    return source


@contextmanager
def open_features(
    source: Source,
    column: str | None,
    storage: StorageSettings,
    layer: str | None = None,
    named: Named = _OF_FOOTPRINTS,
) -> Iterator[FeatureFile]:
    """Open a vector file; `column`: attribute to read, if any; `layer`: of a file with several.

    Raises SettingsError, also while the batches are read, for a file of another format, a damaged one, or one
    without that column or layer or without a known CRS. GeoJSON is read whole: Python takes about 10 bytes
    for each of the file.
    """
    from pyogrio.errors import DataLayerError, DataSourceError  # 0.1 s, which other jobs do not need

    try:
        with open_source(source, storage) as stream:
            start = stream.read(len(_SQLITE))
            stream.seek(0)
            _refuse_other_kinds(source, start)
            suffix = next((each for magic, each in _OGR.items() if start.startswith(magic)), None)
            if suffix is not None:
                with (
                    local_copy(source, stream, suffix, storage) as path,
                    _layer(path, column, layer, named) as file,
                ):
                    yield file
            elif layer is not None:
                raise SettingsError("footprints_layer: only a GeoPackage has layers")
            elif start.startswith(b"PAR1"):
                yield _parquet(pq.ParquetFile(stream), column, named)
            else:
                yield _geojson(stream.read(), column, named)
    except SettingsError as error:
        raise SettingsError(*(f"{source.uri}: {line}" for line in error.lines)) from error
    except (pa.ArrowException, DataSourceError, DataLayerError, shapely.GEOSException, CRSError) as error:
        raise SettingsError(f"{source.uri}: it cannot be read: {_untold(describe(error))}") from error
    except OSError as error:
        raise SettingsError(f"{source.uri}: it cannot be read: {describe(error)}") from error


def _untold(message: str) -> str:
    """Return the message without the temporary path that only GDAL sees."""
    return re.sub(r"'?\S*/footprints\.(gpkg|fgb|shp)'?", "it", message)


def _refuse_other_kinds(source: Source, start: bytes) -> None:
    """Raise SettingsError that says what to do with a well-known format that is not supported."""
    name = source.uri.lower()
    for kind, suffixes, magic, advice in _OTHER_KINDS:
        if name.endswith(suffixes) or start.startswith(magic):
            raise SettingsError(f"{kind} is not read: {advice}")


def _geojson(data: bytes, column: str | None, named: Named) -> FeatureFile:
    try:
        content = _json(data)
        features, crs = content["features"], content.get("crs")
        name = _named_crs(crs) if crs else CRS84
        geometries = [_geometry(each) for each in features]
        rows = [each.get("properties") or {} for each in features]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            "not GeoJSON (features), GeoParquet, GeoPackage, Shapefile or FlatGeobuf: " + fault(error)
        ) from error
    if column is not None and not any(column in row for row in rows):
        raise SettingsError(named.no_column(column, sorted({name for row in rows[:100] for name in row})))
    values = [None if column is None else row.get(column) for row in rows]
    return FeatureFile(_checked(name), iter([_features(shapely.from_geojson, geometries, values)]))


def _json(data: bytes) -> Any:
    """Parse a feature collection, or a feature a line (GeoJSONL, RFC 8142)."""
    try:
        content = json.loads(data)
    except json.JSONDecodeError:
        lines = [line.strip(b" \t\r\x1e") for line in data.split(b"\n")]
        features = [json.loads(line) for line in lines if line]
        if not all(each.get("type") == "Feature" for each in features):
            raise
        return {"features": features}
    return {"features": [content]} if content.get("type") == "Feature" else content


def _named_crs(crs: Any) -> str:
    """Return the member `crs`: as in the specification of 2008, or in the drafts before it."""
    about = crs["properties"]
    if "name" not in about and "code" in about:
        return f"EPSG:{about['code']}"
    if "name" not in about and "href" in about:
        raise SettingsError("its coordinate system is named by a link: write the file again with its name")
    return str(about["name"])


def _features(read: Callable[..., Any], geometries: list[Any], values: list[Any]) -> Features:
    """Return the rows; a geometry that cannot be read is counted and costs only itself."""
    shapes = np.asarray(read(geometries, on_invalid="ignore"), object).reshape(len(geometries))
    pairs = enumerate(zip(geometries, shapes, strict=True))
    return Features(shapes, values, [row for row, (given, got) in pairs if given is not None and got is None])


def _geometry(feature: Any) -> str | None:
    geometry = feature.get("geometry")
    return None if geometry is None else json.dumps(geometry)


def _parquet(file: pq.ParquetFile, column: str | None, named: Named) -> FeatureFile:
    metadata = (file.schema_arrow.metadata or {}).get(b"geo")
    if metadata is None:
        raise SettingsError("Parquet without the metadata `geo`: not GeoParquet")
    try:
        geo = json.loads(metadata)
        name = geo["primary_column"]
        about = geo["columns"][name]
        encoding, crs = about["encoding"], about.get("crs", CRS84)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"its metadata `geo` are not valid GeoParquet: {fault(error)}") from error
    if encoding != "WKB":
        raise SettingsError(f"geometry is encoded as {encoding}; only WKB is read")
    if column is not None and column not in file.schema_arrow.names:
        raise SettingsError(
            named.no_column(column, [each for each in file.schema_arrow.names if each != name])
        )
    wanted = [name] if column is None else [name, column]

    def batches() -> Iterator[Features]:
        for batch in file.iter_batches(_BATCH, columns=wanted):
            values = [None] * len(batch) if column is None else batch.column(column).to_pylist()
            geometries = batch.column(name).cast(pa.large_binary()).to_pylist()
            yield _features(shapely.from_wkb, geometries, values)

    return FeatureFile(_checked(crs), batches())


@contextmanager
def local_copy(source: Source, stream: IO[bytes], suffix: str, storage: StorageSettings) -> Iterator[str]:
    """Yield a path under which GDAL finds the file and its parts: some characters are special to GDAL."""
    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        path = f"{folder}/footprints{suffix}"
        is_local = split_protocol(source.uri)[0] == "file"
        if suffix == ".shp":
            _shapefile(source, folder, storage)
        elif suffix == ".gpkg" and _has_journal(stream):
            if not is_local:
                raise SettingsError(
                    "it was open in a program (QGIS, say) when it was copied, and may lack the last edits: "
                    "close it there, or write it again with `ogr2ogr`, and copy it again"
                )
            _copy_with_journal(source.address, path)
        elif is_local:
            Path(path).symlink_to(source.address)
        else:
            with Path(path).open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        yield path


def _has_journal(stream: IO[bytes]) -> bool:
    start = stream.read(20)
    stream.seek(0)
    return start[18:20] == _IN_JOURNAL


def _copy_with_journal(file: str, path: str) -> None:
    """Copy a file with its journal: reading it directly would write next to it, or merge its journal."""

    def state() -> list[tuple[int, int]]:
        found = [Path(file + end).stat() for end in ("", _JOURNAL)]
        return [(each.st_mtime_ns, each.st_size) for each in found]

    if not Path(file + _JOURNAL).exists():
        shutil.copyfile(file, path)
        return
    before = state()
    for end in ("", _JOURNAL):
        shutil.copyfile(file + end, path + end)
    if state() != before:
        raise SettingsError("a program writes into it (QGIS, say): save it there, and run again")


def _shapefile(source: Source, folder: str, storage: StorageSettings) -> None:
    """Copy the files of a Shapefile into `folder`. Raises SettingsError where its index or CRS is missing."""
    stem, _, suffix = source.address.rpartition(".")
    cases = [str.upper, str.lower] if suffix.isupper() else [str.lower, str.upper]
    for part in _SHAPEFILE:
        names = [stem + case(part) for case in cases]
        base = Source(source.uri, source.address, "file", "", -1)
        there = [each for each in look_up(names, base, ".", storage) if each.error_type != "missing"]
        if not there and part in (".shx", ".prj"):
            raise SettingsError(
                f"the file {Path(stem).name}{part} next to it is missing; a Shapefile needs it"
            )
        for found in there[:1]:
            if found.error_type is not None:
                raise SettingsError(f"{found.uri}: {found.error}")
            with open_source(found, storage) as stream, Path(folder, f"footprints{part}").open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
    data = Path(folder, "footprints.shp")
    with data.open("rb") as file:
        words = int.from_bytes(file.read(28)[24:], "big")  # of 16 bits (ESRI's description of 1998, p. 4)
    if data.stat().st_size < max(100, 2 * words):
        raise SettingsError(f"it ends early: {data.stat().st_size:,} bytes of {max(100, 2 * words):,}")


@contextmanager
def _layer(path: str, column: str | None, layer: str | None, named: Named) -> Iterator[FeatureFile]:
    """Yield the polygons of a file that GDAL reads; a row without a geometry counts as unreadable."""
    import pyogrio

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="pyogrio")
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if layer is None and len(layers) != 1:
            raise SettingsError(named.no_layer(layers))
        if layer is not None and layer not in layers:
            raise SettingsError(
                f"footprints_layer: it has no layer {layer}; there are {', '.join(layers[:20])}"
            )
        name = layer or layers[0]
        fields = [str(field) for field in pyogrio.read_info(path, layer=name)["fields"]]
        if column is not None and column not in fields:
            raise SettingsError(named.no_column(column, fields))
        wanted = [] if column is None else [column]
        with pyogrio.open_arrow(path, layer=name, columns=wanted, batch_size=_BATCH, use_pyarrow=True) as (
            about,
            reader,
        ):
            yield FeatureFile(_checked(about["crs"]), _rows(reader, about["geometry_name"], column))


def _rows(reader: pa.RecordBatchReader, geometry: str, column: str | None) -> Iterator[Features]:
    for batch in reader:
        values = [None] * len(batch) if column is None else batch.column(column).to_pylist()
        found = _features(shapely.from_wkb, batch.column(geometry or "wkb_geometry").to_pylist(), values)
        empty = [row for row, shape in enumerate(found.shapes) if shape is None]
        yield Features(found.shapes, values, empty)


def _checked(crs: Any) -> str:
    if not crs:
        raise SettingsError("its CRS is marked as unknown: write the file with one")
    return CRS.from_user_input(crs).to_wkt() if crs != CRS84 else CRS84
