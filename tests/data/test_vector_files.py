"""Polygons of every kind of vector file: the same ones, and what is wrong with a file said."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from pyproj import CRS

from segray.data.vector_files import find_file, open_features
from segray.errors import SettingsError
from segray.storage import StorageSettings
from tests.servers import Server

LOCAL = StorageSettings()
UTM = "EPSG:32636"
SUFFIXES = (".geojson", ".geojsonl", ".parquet", ".gpkg", ".shp", ".fgb")
KINDS = ["roof", "shed", None]
SHAPES = [shapely.box(500_000 + 20 * place, 40_000, 500_010 + 20 * place, 40_010) for place in range(3)]


def frame(kinds: list[str | None] = KINDS) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame({"kind": kinds}, geometry=SHAPES[: len(kinds)], crs=UTM)


def write(path: Path) -> Path:
    """The three polygons; GeoJSON in longitude and latitude, as its specification wants it."""
    if path.suffix == ".parquet":
        frame().to_parquet(path)
    elif path.suffix == ".geojsonl":
        content = json.loads(frame().to_crs("OGC:CRS84").to_json())
        path.write_text("".join(json.dumps(each) + "\n" for each in content["features"]))
    else:
        options = {"SPATIAL_INDEX": "NO"} if path.suffix in (".gpkg", ".fgb") else {}
        frame().to_crs("OGC:CRS84" if path.suffix == ".geojson" else UTM).to_file(path, **options)
    return path


def read(
    address: object, column: str | None = "kind", layer: str | None = None, storage: StorageSettings = LOCAL
) -> tuple[list[Any], list[Any], list[int]]:
    """(Shapes in UTM to a millimetre, values, rows that cannot be read)."""
    shapes, values, unreadable = list[Any](), list[Any](), list[int]()
    with open_features(find_file(str(address), storage), column, storage, layer) as file:
        for some in file.batches:
            unreadable += [len(shapes) + row for row in some.unreadable]
            shapes += list(some.shapes)
            values += some.values
        placed = geopandas.GeoSeries(shapes, crs=CRS.from_user_input(file.crs)).to_crs(UTM)
    return [shapely.set_precision(shape, 1e-3) for shape in placed], values, unreadable


def assert_all(found: tuple[list[Any], list[Any], list[int]]) -> None:
    """In any order (FlatGeobuf sorts), with any start of a ring."""
    shapes, values, unreadable = found
    assert unreadable == []
    kinds = {round(shape.bounds[0]): value for shape, value in zip(shapes, values, strict=True)}
    assert kinds == {500_000: "roof", 500_020: "shed", 500_040: None}
    assert shapely.union_all(shapes).symmetric_difference(shapely.union_all(SHAPES)).area < 0.05


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["footprints", "häuser!neu?#%20", "town.zip"])
def test_every_kind_of_file(name: str, suffix: str, tmp_path: Path) -> None:
    """Also under names of which GDAL takes a part for an archive, a query or a layer."""
    write(tmp_path / f"plain{suffix}")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / f"{name}{path.suffix}")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    assert_all(read(tmp_path / f"{name}{suffix}"))
    assert read(tmp_path / f"{name}{suffix}", None)[1] == [None] * 3
    with pytest.raises(SettingsError, match=f"{suffix}: class_column: it has no column height; .*kind"):
        read(tmp_path / f"{name}{suffix}", "height")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_in_a_bucket(suffix: str, s3_server: Server, tmp_path: Path) -> None:
    write(tmp_path / f"all{suffix}")
    for path in tmp_path.iterdir():
        s3_server.put(f"features/{path.name}", path.read_bytes())
    assert_all(read(s3_server.url(f"features/all{suffix}"), storage=s3_server.storage))


@pytest.fixture
def edited(tmp_path: Path) -> Iterator[Path]:
    """A GeoPackage open elsewhere, as in QGIS: two of its three polygons lie in the file beside it."""
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in/wal.gpkg")
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT geom, kind FROM wal WHERE fid > 1").fetchall()
        database.execute("DELETE FROM wal WHERE fid > 1")
        database.commit()
        database.execute("VACUUM")
        assert database.execute("PRAGMA journal_mode = wal").fetchone() == ("wal",)
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.executemany("INSERT INTO wal (geom, kind) VALUES (?, ?)", rows)
        database.commit()
        yield path


def test_a_geopackage_that_is_open_elsewhere_is_read_with_its_last_edits(edited: Path) -> None:
    before = {path.name: path.read_bytes() for path in edited.parent.iterdir() if "shm" not in path.name}
    assert_all(read(edited))
    assert {
        path.name: path.read_bytes() for path in edited.parent.iterdir() if "shm" not in path.name
    } == before
    alone = edited.parent.parent / "copy.gpkg"
    shutil.copy(edited, alone)
    assert len(read(alone)[0]) == 1
    assert not list(alone.parent.glob("copy.gpkg-*"))


def test_a_geopackage_that_was_copied_while_it_was_open_is_refused(edited: Path, s3_server: Server) -> None:
    """Its journal is not there."""
    s3_server.put("features/wal.gpkg", edited.read_bytes())
    with pytest.raises(SettingsError, match=r"wal\.gpkg: it was open in a program"):
        read(s3_server.url("features/wal.gpkg"), storage=s3_server.storage)


def test_layers(tmp_path: Path) -> None:
    path = tmp_path / "town.gpkg"
    frame().to_file(path, layer="roofs")
    frame(["a"]).to_file(path, layer='one\'s "own"')
    pyogrio.write_dataframe(frame().drop(columns="geometry"), path, layer="table", append=True)
    with pytest.raises(
        SettingsError, match=r"2 layers of features; choose one with --footprints-layer: roofs, "
    ):
        read(path)
    assert_all(read(path, layer="roofs"))
    assert read(path, layer='one\'s "own"')[1] == ["a"]
    with pytest.raises(SettingsError, match="footprints_layer: it has no layer walls; there are roofs, "):
        read(path, layer="walls")
    with pytest.raises(SettingsError, match="only a GeoPackage has layers"):
        read(write(tmp_path / "some.geojson"), layer="roofs")


def test_a_geopackage_of_tables_alone(tmp_path: Path) -> None:
    pyogrio.write_dataframe(frame().drop(columns="geometry"), tmp_path / "t.gpkg", layer="table")
    with pytest.raises(SettingsError, match="it has no layer of features"):
        read(tmp_path / "t.gpkg")


@pytest.mark.parametrize("lost", [".prj", ".shx"])
def test_a_shapefile_that_lacks_a_part(lost: str, tmp_path: Path) -> None:
    write(tmp_path / "roofs.shp")
    (tmp_path / f"roofs{lost}").unlink()
    with pytest.raises(SettingsError, match=rf"roofs\.shp: the file roofs\{lost} next to it is missing"):
        read(tmp_path / "roofs.shp")
    with pytest.raises(SettingsError, match=r"a part of a Shapefile is not read: use the \.shp next to it"):
        read(tmp_path / "roofs.dbf")


def test_a_shapefile_in_capitals_and_without_attributes(tmp_path: Path) -> None:
    write(tmp_path / "roofs.shp")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.upper())
    assert_all(read(tmp_path / "ROOFS.SHP"))
    (tmp_path / "ROOFS.DBF").unlink()
    assert len(read(tmp_path / "ROOFS.SHP", None)[0]) == 3
    with pytest.raises(SettingsError, match="it has no column kind"):
        read(tmp_path / "ROOFS.SHP")


@pytest.mark.parametrize(
    "crs",
    [
        {"type": "name", "properties": {"name": UTM}},
        {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32636"}},
        {"type": "EPSG", "properties": {"code": 32636}},
    ],
)
def test_old_members_crs(crs: dict[str, object], tmp_path: Path) -> None:
    content = json.loads(frame().to_json())
    (tmp_path / "old.geojson").write_text(json.dumps(content | {"crs": crs}))
    assert_all(read(tmp_path / "old.geojson"))


def test_a_crs_that_is_a_link_is_told(tmp_path: Path) -> None:
    link = {"type": "link", "properties": {"href": "http://spatialreference.org/ref/epsg/32636/proj4/"}}
    (tmp_path / "old.geojson").write_text(json.dumps(json.loads(frame().to_json()) | {"crs": link}))
    with pytest.raises(SettingsError, match="its coordinate system is named by a link"):
        read(tmp_path / "old.geojson")


def test_one_feature_and_lines_with_marks(tmp_path: Path) -> None:
    """RFC 8142 puts a record separator before each."""
    features = json.loads(frame().to_crs("OGC:CRS84").to_json())["features"]
    (tmp_path / "one.geojson").write_text(json.dumps(features[0]))
    assert read(tmp_path / "one.geojson")[1] == ["roof"]
    (tmp_path / "marked.geojsons").write_text("".join(f"\x1e{json.dumps(each)}\n" for each in features))
    assert_all(read(tmp_path / "marked.geojsons"))
    (tmp_path / "torn.geojsonl").write_text(json.dumps(features[0]) + "\n" + json.dumps(features[1])[:-9])
    with pytest.raises(SettingsError, match=r"torn\.geojsonl: not GeoJSON"):
        read(tmp_path / "torn.geojsonl")


@pytest.mark.parametrize("blob", [None, b"", b"GP\0\1nonsense", b"no geometry at all"])
def test_a_row_of_a_geopackage_whose_geometry_cannot_be_read_costs_itself(
    blob: bytes | None, tmp_path: Path
) -> None:
    path = write(tmp_path / "some.gpkg")
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE some SET geom = ? WHERE fid = 2", [blob])
        database.commit()
    shapes, values, unreadable = read(path)
    assert (values, unreadable) == (KINDS, [1])
    assert np.array_equal([shape is None for shape in shapes], [False, True, False])


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".shp"])
def test_files_that_are_cut_off(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"torn{suffix}")
    data = path.read_bytes()
    for size in (40, len(data) // 2):
        path.write_bytes(data[:size])
        with pytest.raises(SettingsError, match=rf"torn\{suffix}: ") as caught:
            read(path)
        assert "/segray-" not in str(caught.value)


def test_a_layer_without_a_coordinate_system(tmp_path: Path) -> None:
    for suffix in (".gpkg", ".fgb"):
        path = tmp_path / f"nowhere{suffix}"
        geopandas.GeoDataFrame({"kind": KINDS}, geometry=SHAPES).to_file(path)
        with pytest.raises(SettingsError, match="its CRS is marked as unknown"):
            read(path)


def test_geoparquet_of_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segray.data.vector_files._BATCH", 2)
    for suffix in (".parquet", ".gpkg"):
        assert_all(read(write(tmp_path / f"all{suffix}")))
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 3
