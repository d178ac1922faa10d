"""`segray annotate` over scenes on a real Ray: workers, kills, storage, damage, places."""

import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from PIL import Image

from segray.sources.read_step import WHOLE_BYTES
from segray.storage import open_filesystem
from tests.bulk.runs import TILING, annotate, kill_tree, running, tables, tiles, wait_for
from tests.scenes.made import METRES, Numbers, masks, town, write
from tests.scenes.steps import ORACLE, encoded, ious
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("ray_session")

ROOT = Path(__file__).parents[2]
TILED = (*TILING, "--weights", ORACLE + "exact")
SLOW = (*TILING, "--weights", ORACLE + "slow", "--commit-every-s", 0.2)


@pytest.fixture(scope="module")
def scene() -> Numbers:
    return town(1700, 1800)


@pytest.fixture(scope="module")
def path(scene: Numbers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Too large to be fetched whole; not to be changed."""
    file = write(tmp_path_factory.mktemp("scene") / "town.tif", scene, compress=None)
    assert file.stat().st_size > WHOLE_BYTES
    return file


@pytest.fixture(scope="module")
def expected(path: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The output of an undisturbed run; not to be changed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert annotate(path, "--output", output, *TILED, "--actors", 1) == 0
    return output


def test_every_object_once(expected: Path, scene: Numbers) -> None:
    (image,), instances = tables(expected)
    assert (image["height"], image["width"], image["crs"]) == (*scene.shape, "EPSG:32636")
    assert (image["tiles"], image["tiles_rejected"], image["tiles_skipped"]) == (16, 0, 0)
    assert image["instances"] == len(instances) == scene.max()
    same = ious({"found": instances}, encoded(masks(scene))) == 1
    assert (same.sum(0) == 1).all()
    assert len(tiles(expected)) == 16
    left = sorted(file.name for file in (expected / "_segray").rglob("*") if file.is_file())
    assert left == [".lease.json.guard", "lease.json", "plan.json"]


@pytest.mark.parametrize("actors", [2, 3])
def test_any_number_of_workers_gives_the_same(
    actors: int, path: Path, expected: Path, tmp_path: Path
) -> None:
    workers = ("--actors", actors, "--min-actors", actors, "--cpus-per-actor", 0.5, "--decoders", actors)
    assert annotate(path, "--output", tmp_path / "out", *TILED, *workers) == 0
    assert tables(tmp_path / "out") == tables(expected)
    assert tiles(tmp_path / "out") == tiles(expected)


def test_killed_in_the_middle_of_a_scene(path: Path, expected: Path, tmp_path: Path) -> None:
    command = (path, "--output", tmp_path / "out", *SLOW)
    with running(*command) as process:
        wait_for(
            lambda: len(list((tmp_path / "out/_segray").glob("tiles/[0-9]*.parquet"))) >= 2,
            120,
            "two commits",
        )
        kill_tree(process.pid)
    held = sum(
        pq.read_table(file).num_rows for file in (tmp_path / "out/_segray/tiles").glob("[0-9]*.parquet")
    )
    assert 0 < held < 16
    assert not list((tmp_path / "out").glob("instances/*"))
    assert annotate(*command) == 0
    done = json.loads((tmp_path / "out/run.json").read_text())
    assert done["counts"]["tiles"] == 16
    assert tables(tmp_path / "out") == tables(expected)  # which the same model made, without a break
    assert tiles(tmp_path / "out") == tiles(expected)
    assert not list((tmp_path / "out/_segray").rglob("*.parquet"))


def test_from_and_to_a_bucket(
    s3_server: Server, path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.put("scenes/in/town.tif", path.read_bytes())
    target = s3_server.url("scenes/out")
    assert annotate(s3_server.url("scenes/in"), "--output", target, *TILED) == 0
    filesystem, root = open_filesystem(target, s3_server.storage)
    (image,), instances = tables(root, filesystem)
    assert image["uri"] == s3_server.url("scenes/in/town.tif")
    assert [row["segmentation"] for row in instances] == [row["segmentation"] for row in tables(expected)[1]]


def test_an_unreadable_block_costs_its_tiles_which_alone_are_tried_again(
    scene: Numbers, expected: Path, tmp_path: Path
) -> None:
    """Beside others that are not read again: at the last try, a block of theirs cannot be."""
    path, out = write(tmp_path / "damaged.tif", scene), tmp_path / "out"
    data, status = path.read_bytes() + bytes(WHOLE_BYTES), path.stat()
    with rasterio.open(path) as file:
        places = [
            [int(file.get_tag_item(f"BLOCK_{what}_{n}_{n}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
            for n in (2, 6)
        ]

    def damage(offset: int, size: int) -> None:
        """So that the file is the same by its size and time."""
        path.write_bytes(data[:offset] + bytes(size) + data[offset + size :])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    damage(*places[0])
    command = (path, "--output", out, *TILED)
    assert annotate(*command) == 3
    rejected = [row for row in tiles(out) if row["status"] == "rejected"]
    assert {(row["tile_row"], row["tile_col"]) for row in rejected} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {row["error_type"] for row in rejected} == {"corrupt"}
    first = tables(out)
    (image,), instances = first
    assert (image["status"], image["tiles_rejected"]) == ("annotated", 4)
    assert 0 < len(instances) < scene.max()
    assert annotate(*command, "--max-rejects", 0.3) == 0
    assert annotate(*command, "--retry-rejected") == 3
    assert tables(out) == first
    damage(*places[1])
    assert annotate(*command, "--retry-rejected") == 0
    (image,), instances = tables(out)
    assert (image["tiles"], image["tiles_rejected"]) == (16, 0)
    assert [row["segmentation"] for row in instances] == [row["segmentation"] for row in tables(expected)[1]]
    assert [row["status"] for row in tiles(out)] == ["annotated"] * 16
    assert not list((out / "_segray").rglob("*.parquet"))


def test_windows_without_data_are_skipped(scene: Numbers, tmp_path: Path) -> None:
    empty = scene.copy()
    empty[:, 900:] = 0
    file = write(tmp_path / "half.tif", empty, nodata=0)
    assert annotate(file, "--output", tmp_path / "out", *TILED) == 0
    (image,), _ = tables(tmp_path / "out")
    assert image["tiles_skipped"] == 8
    assert {row["tile_col"] for row in tiles(tmp_path / "out") if row["status"] == "skipped"} == {2, 3}


def test_large_pictures_are_tiled_too(scene: Numbers, expected: Path, tmp_path: Path) -> None:
    pixels = np.stack([scene >> 16, scene >> 8 & 255, scene & 255], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "town.png")
    assert (
        annotate(tmp_path / "town.png", "--output", tmp_path / "out", *TILED, "--tile-above", 1_000_000) == 0
    )
    (image,), instances = tables(tmp_path / "out")
    assert (image["tiles"], image["crs"]) == (16, None)
    assert all(row["geometry"] is None for row in instances)
    assert [row["segmentation"] for row in instances] == [row["segmentation"] for row in tables(expected)[1]]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_scenes_in_archives(kind: str, scene: Numbers, tmp_path: Path) -> None:
    """One is done in tiles, one is damaged, and both are members like any other."""
    good, bad = write(tmp_path / "good.tif", scene), tmp_path / "bad.tif"
    bad.write_bytes(good.read_bytes()[:20_000])
    archive = tmp_path / f"scenes.{kind}"
    if kind == "tar":
        with tarfile.open(archive, "w") as tar:
            tar.add(good, "a/good.tif")
            tar.add(bad, "a/bad.tif")
    else:
        with zipfile.ZipFile(archive, "w") as pack:
            pack.write(good, "a/good.tif")
            pack.write(bad, "a/bad.tif")
    command = (archive, "--output", tmp_path / "out", *TILED)
    assert annotate(*command) == 3
    images, instances = tables(tmp_path / "out")
    found = {row["member"]: row for row in images}
    assert found.keys() == {"a/good.tif", "a/bad.tif"}
    assert (found["a/good.tif"]["tiles"], found["a/good.tif"]["tiles_rejected"]) == (16, 0)
    assert found["a/bad.tif"]["status"] == "rejected" or found["a/bad.tif"]["tiles_rejected"] > 0
    own = [row for row in instances if row["image_id"] == found["a/good.tif"]["image_id"]]
    assert (ious({"found": own}, encoded(masks(scene))) == 1).sum() == scene.max() == len(own)
    assert all(row["geometry"] is not None for row in own)
    assert annotate(*command, "--max-rejects", 1.0) == 0


def test_values_that_the_model_file_ranges_over(scene: Numbers, tmp_path: Path) -> None:
    small = scene[:500, :600]
    plain = write(tmp_path / "bytes.tif", small)
    with rasterio.open(plain) as file:
        pixels, profile = file.read(), file.profile | {"dtype": "uint16"}
    with rasterio.open(tmp_path / "ten.tif", "w", **profile) as file:
        file.write(pixels.astype(np.uint16) * 10)
    command = (tmp_path / "ten.tif", "--output", tmp_path / "out", *TILING)
    assert annotate(*command, "--weights", ORACLE + "ranged") == 0
    (image,), instances = tables(tmp_path / "out")
    assert json.loads(image["scene"])["scaling"] == [[0, 2550]] * 3
    assert (ious({"found": instances}, encoded(masks(small))) == 1).any(0).sum() == len(np.unique(small)) - 1


@pytest.mark.parametrize("crs", ["OGC:CRS84", "EPSG:32636"])
def test_outlines_lie_where_the_scene_lies(crs: str, path: Path, expected: Path, tmp_path: Path) -> None:
    """By default in degrees, as in `expected`."""
    output = expected if crs == "OGC:CRS84" else tmp_path / "out"
    if output != expected:
        assert annotate(path, "--output", output, *TILED, "--crs", crs) == 0
    found = geopandas.read_parquet(output / "instances")
    assert found.crs == crs
    assert found.geometry.is_valid.all()
    square = found.to_crs("EPSG:32636").area
    assert np.allclose(square, found["area"] * METRES**2, rtol=1e-4)
    assert np.allclose(found["area_m2"], square, rtol=2e-3)
    with rasterio.open(path) as file:
        box = found.to_crs("EPSG:32636").total_bounds
        assert box[0] >= file.bounds.left - 1e-3
        assert box[3] <= file.bounds.top + 1e-3


def test_the_scene_of_the_readme(kampala: Callable[..., Path]) -> None:
    """A dozen buildings of 40 to 230 square metres, on land that the model never saw."""
    found = geopandas.read_parquet(kampala() / "instances")
    assert 8 <= len(found) <= 18
    assert 600 < found.area_m2.sum() < 950
    with rasterio.open(ROOT / "tests/data/scenes/kampala.tif") as file:
        inside = shapely.box(*file.bounds).buffer(0.2)
    assert found.to_crs("EPSG:3857").within(inside).all()
