"""A scene's outlines in DuckDB's spatial extension, geopandas and OGR: the same CRS, place and shapes."""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import _duckdb
import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from pycocotools import mask
from pyproj import CRS
from rasterio.warp import transform

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "tests/data/scenes/kampala.tif"


@pytest.fixture(params=["OGC:CRS84", "EPSG:32636"])  # the default, and what is not the scene's own either
def crs(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def output(crs: str, kampala: Callable[..., Path]) -> Path:
    return kampala() if crs == "OGC:CRS84" else kampala("--crs", crs)


@pytest.fixture
def rows(output: Path, crs: str) -> dict[str, Any]:
    """Columns of all instances by id: the stored WKB in shapely, and from the masks (m, 2) centres in `crs`.

    A mask lies in the scene as its pixels do, and rasterio takes the middle of the mask to `crs`.
    """
    (image,) = pq.read_table(output / "images").to_pylist()
    table = pq.read_table(output / "instances").sort_by("instance_id")
    masks = [mask.decode(dict(each)) for each in table["segmentation"].to_pylist()]
    middle = np.array([np.argwhere(each).mean(axis=0) + 0.5 for each in masks])
    with rasterio.open(SCENE) as file:
        row, column = (middle * file.shape / [image["height"], image["width"]]).T  # in the file's own pixels
        x, y = rasterio.transform.xy(file.transform, row, column, offset="ul")
        centres = np.stack(transform(file.crs, crs, x, y), axis=1)
    columns = {name: table[name].to_numpy() for name in ("instance_id", "area_m2")}
    return columns | {"geometry": shapely.from_wkb(table["geometry"].to_numpy()), "centres": centres}


@pytest.fixture(scope="module")
def spatial() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with the spatial extension of a wheel: `INSTALL spatial` wants the network."""
    name = f"extensions/v{duckdb.__version__}/spatial.duckdb_extension"
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{files('duckdb_extension_spatial') / name}'")
        connection.execute("SET geometry_always_xy = true")
        yield connection


@pytest.fixture
def ogr_with_duckdb() -> Iterator[None]:
    """pyogrio's GDAL has no Parquet driver; its ADBC driver reads GeoParquet through DuckDB."""
    pyogrio.set_gdal_config_options({"OGR_ADBC_LIBDUCKDB": _duckdb.__file__})
    yield
    pyogrio.set_gdal_config_options({"OGR_ADBC_LIBDUCKDB": None})


def docs(language: str, word: str) -> str:
    """Return the one block of `docs/scenes.md` of that language with that word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/scenes.md").read_text(), re.DOTALL)
    (block,) = (each for each in blocks if word in each)
    return str(block)


def as_the_docs_have_it(output: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes to a folder where the output lies at the address of the docs."""
    (folder / "out").mkdir()
    (folder / "out/kampala").symlink_to(output)
    monkeypatch.chdir(folder)


def assert_same(frame: geopandas.GeoDataFrame, crs: str, rows: dict[str, Any]) -> None:
    """The layer that a reader gives has the CRS, rows, values, shapes and place of what `annotate` found.

    OGR calls OGC:CRS84 EPSG:4326 and keeps x = longitude; a GeoPackage holds multipolygons alone.
    """
    frame = frame.sort_values("instance_id", ignore_index=True)
    assert frame.crs is not None
    assert frame.crs.equals(CRS.from_user_input(crs), ignore_axis_order=True)
    assert frame.instance_id.tolist() == rows["instance_id"].tolist()
    assert frame.area_m2.tolist() == rows["area_m2"].tolist()
    shapes = frame.geometry.to_numpy()
    assert shapely.equals(shapes, rows["geometry"]).all()
    assert_centred(shapely.get_coordinates(shapely.centroid(shapes)), crs, rows)


def assert_centred(centres: Any, crs: str, rows: dict[str, Any]) -> None:
    """(m, 2) centres are those of the masks, to a hundredth of a pixel or so."""
    millimetre = 1e-8 if crs == "OGC:CRS84" else 1e-3
    np.testing.assert_allclose(centres, rows["centres"], rtol=0, atol=millimetre)


def test_duckdb_spatial(
    output: Path, crs: str, rows: dict[str, Any], spatial: duckdb.DuckDBPyConnection
) -> None:
    table = spatial.sql(f"SELECT * FROM '{output}/instances/*.parquet' ORDER BY instance_id")
    assert str(table.select("geometry").types[0]) == f"GEOMETRY('{crs}')"
    area, rtol = ("ST_Area_Spheroid", 1e-6) if crs == "OGC:CRS84" else ("ST_Area", 1e-3)  # UTM's own scale
    found = table.project(
        f"ST_CRS(geometry) AS crs, {area}(geometry) AS area, ST_IsValid(geometry) AS valid,"
        "ST_AsWKB(geometry) AS wkb, ST_X(ST_Centroid(geometry)) AS x, ST_Y(ST_Centroid(geometry)) AS y,"
        "ST_Centroid(ST_Transform(geometry, 'OGC:CRS84')) AS on_earth,"
        "ST_X(on_earth) AS east, ST_Y(on_earth) AS north"
    ).fetchnumpy()
    assert set(found["crs"]) == {crs}
    assert found["valid"].all()
    np.testing.assert_allclose(found["area"], rows["area_m2"], rtol=rtol)
    shapes = shapely.from_wkb([bytes(each) for each in found["wkb"]])
    assert shapely.equals_exact(shapes, rows["geometry"], tolerance=0).all()
    assert_centred(np.stack([found["x"], found["y"]], axis=1), crs, rows)
    np.testing.assert_allclose(found["east"], 32.595, atol=0.001)  # Kampala
    np.testing.assert_allclose(found["north"], 0.351, atol=0.001)


def test_geopandas(output: Path, crs: str, rows: dict[str, Any]) -> None:
    frame = geopandas.read_parquet(output / "instances")
    assert frame.crs == crs
    assert_same(frame, crs, rows)


@pytest.mark.usefixtures("ogr_with_duckdb")
def test_ogr_reads_the_parquet_files(output: Path, crs: str, rows: dict[str, Any]) -> None:
    (part,) = (output / "instances").glob("*.parquet")
    information = pyogrio.read_info(f"ADBC:{part}")
    assert (information["driver"], information["geometry_name"]) == ("ADBC", "geometry")
    assert_same(pyogrio.read_dataframe(f"ADBC:{part}", use_arrow=True), crs, rows)


def test_geopackage_of_the_docs(
    output: Path, crs: str, rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_the_docs_have_it(output, tmp_path, monkeypatch)
    exec(docs("python", "houses.gpkg"), {})
    assert pyogrio.read_info("houses.gpkg")["driver"] == "GPKG"
    assert_same(pyogrio.read_dataframe("houses.gpkg"), crs, rows)


def test_query_of_the_docs(
    kampala: Callable[..., Path],
    spatial: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_the_docs_have_it(kampala(), tmp_path, monkeypatch)
    query = docs("sql", "spatial").replace("INSTALL spatial; LOAD spatial;", "")
    ((category, crs, number, area, theirs),) = spatial.sql(query).fetchall()
    stored = pq.read_table(kampala() / "instances")["area_m2"].to_numpy()
    assert (category, crs, number) == ("building", "OGC:CRS84", len(stored))
    assert area == pytest.approx(stored.sum())
    assert theirs == pytest.approx(stored.sum(), rel=1e-6)
