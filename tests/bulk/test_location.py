"""Where and when photos were taken, through whole jobs, as geopandas and DuckDB read it."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
from PIL import Image

from segray.bulk.identity import check_identity
from segray.errors import SettingsError
from segray.schema import TAKEN
from tests.bulk.runs import MODELS, annotate, make_images, tables
from tests.sources.exif_made import BERLIN, STREET

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("ray_session")
WEIGHTS = ("--weights", MODELS + "seeded")
NAMES = [field.name for field in TAKEN]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two without EXIF, one with, one with it that is processed in windows, one that is broken."""
    folder = make_images(tmp_path_factory.mktemp("photos") / "in", 2)
    for name, size in (("street.jpg", 64), ("large.jpg", 300)):
        pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, exif=STREET.tobytes())
    (folder / "broken.jpg").write_bytes((folder / "street.jpg").read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def output(photos: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    output = tmp_path_factory.mktemp("located") / "out"
    windows = ("--tile-above", "50000", "--tile", "256")
    assert annotate(photos, "--output", output, *WEIGHTS, *windows, "--max-rejects", "1") == 0
    return output


def test_geopandas_reads_the_images_as_points(output: Path) -> None:
    frame = geopandas.read_parquet(output / "images")
    assert frame.active_geometry_name == "location"
    assert frame.crs == "OGC:CRS84"
    frame.index = frame.uri.str.rpartition("/")[2].to_list()
    known = frame[frame.location.notna()]
    assert sorted(known.index) == ["large.jpg", "street.jpg"]
    assert known.loc["large.jpg", "tiles"] == 4
    for _, row in known.iterrows():
        assert (row.location.x, row.location.y) == pytest.approx(BERLIN, abs=1e-7)
        assert row.heading == pytest.approx(123.4)
        assert row.taken_at.to_pydatetime() == datetime(2024, 5, 6, 5, 8, 9, 250_000, tzinfo=UTC)
        assert row.taken_at_local.to_pydatetime() == datetime(2024, 5, 6, 7, 8, 9, 250_000)
    rest = frame[frame.location.isna()]
    assert rest.status.tolist().count("rejected") == 1
    assert rest[NAMES].isna().all().all()


def test_the_lines_of_the_docs(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/location.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").symlink_to(output)
    exec(lines, {})
    frame = geopandas.read_file("photos.gpkg")
    assert sorted(frame.geometry.x.round(6)) == [13.4, 13.4]
    assert set(frame.heading_ref) == {"true"}


@pytest.fixture
def spatial() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with its spatial extension, of a wheel."""
    with duckdb.connect() as connection:
        name = f"extensions/v{duckdb.__version__}/spatial.duckdb_extension"
        connection.execute(f"LOAD '{files('duckdb_extension_spatial') / name}'")
        yield connection


def test_duckdb_computes_with_them(output: Path, spatial: duckdb.DuckDBPyConnection) -> None:
    found = spatial.execute(
        "SELECT ST_X(location), ST_Y(location), taken_at_local FROM read_parquet(?)"
        " WHERE location IS NOT NULL",
        [f"{output}/images/*.parquet"],
    ).fetchall()
    assert len(found) == 2
    for x, y, clock in found:
        assert (x, y) == pytest.approx(BERLIN, abs=1e-7)
        assert clock == datetime(2024, 5, 6, 7, 8, 9, 250_000)


def test_without_location_nothing_is_written(photos: Path, tmp_path: Path, output: Path) -> None:
    given = (photos, "--output", tmp_path / "out", *WEIGHTS, "--max-rejects", "1", "--no-location")
    assert annotate(*given) == 0
    images, _ = tables(tmp_path / "out")
    assert len(images) == 5
    assert {row[name] for row in images for name in NAMES} == {None}
    there, here = (
        json.loads((each / "_segray/plan.json").read_text()) for each in (tmp_path / "out", output)
    )
    with pytest.raises(SettingsError) as caught:
        check_identity(there, here, "out")
    assert "  location: False there, None now" in caught.value.lines


def test_an_output_of_an_older_version_goes_on(photos: Path, tmp_path: Path) -> None:
    command = (photos, "--output", tmp_path / "out", *WEIGHTS, "--max-rejects", "1")
    assert annotate(*command, "--exclude", "street.jpg") == 0
    plan = json.loads((tmp_path / "out/_segray/plan.json").read_text()) | {"exclude": None}
    del plan["location"]
    (tmp_path / "out/_segray/plan.json").write_text(json.dumps(plan))
    (part,) = tmp_path.glob("out/images/*")
    before = pq.read_table(part)
    pq.write_table(before.drop(NAMES), part)
    assert annotate(*command) == 0
    found = {row["uri"].rpartition("/")[2]: row.get("heading_ref") for row in tables(tmp_path / "out")[0]}
    assert found.pop("street.jpg") == "true"
    assert set(found.values()) == {None}


def test_a_stac_item_tells_when(photos: Path, tmp_path: Path) -> None:
    """Before EXIF, also for a photo in windows; EXIF's place and heading stay."""
    for name in ("large.jpg", "street.jpg", "0000.png"):
        item = pystac.Item(name, None, None, datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), {})
        item.add_asset("image", pystac.Asset(str(photos / name), media_type="image/jpeg"))
        (tmp_path / "items").mkdir(exist_ok=True)
        (tmp_path / f"items/{name}.json").write_text(json.dumps(item.to_dict()))
    (tmp_path / "items/cut.json").write_text('{"type": "Feature"')
    windows = ("--tile-above", "50000", "--tile", "256", "--max-rejects", "1")
    command = (tmp_path / "items", "--output", tmp_path / "out", *WEIGHTS, *windows)
    assert annotate(*command) == 0
    rows = {row["uri"].rpartition("/")[2]: row for row in tables(tmp_path / "out")[0]}
    assert rows.pop("cut.json")["error_type"] == "corrupt"
    assert {row["taken_at"] for row in rows.values()} == {datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)}
    assert rows["large.jpg"]["tiles"] == 4
    assert {name: row["heading_ref"] for name, row in rows.items()} == {
        "large.jpg": "true", "street.jpg": "true", "0000.png": None
    }  # fmt: skip
    assert annotate(*command, "--no-location") == 2
    private = (tmp_path / "items", "--output", tmp_path / "private", *WEIGHTS, *windows, "--no-location")
    assert annotate(*private) == 0
    assert {row[name] for row in tables(tmp_path / "private")[0] for name in NAMES} == {None}
