"""`segray predict` on a real Ray: pictures, scenes, resume, replaced items, storage."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.features
import shapely
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin
from rio_cogeo.cogeo import cog_validate

from segray.cli import main
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, build_model, model_bytes
from segray.storage import open_filesystem
from segray.tile_overlap import Grid
from tests.bulk.runs import FEW, REAL, kill_tree, running, tables, tiles, wait_for
from tests.predict.networks import NAMES, REACH, local
from tests.servers import Server, env_of

pytestmark = pytest.mark.usefixtures("ray_session")

NETWORKS = "python:tests.predict.networks:"
SCENE = Path(__file__).parents[1] / "data/scenes/kampala.tif"
TILING = ("--tile", "256", "--overlap", "64")


def predict(*arguments: object) -> int:
    return main(["predict", *FEW, *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Iterator[None]:
    """Not bf16, which `auto` takes where the CPU multiplies it: maps equal `logits` to the last digit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGRAY_PRECISION", "fp32")
        yield


def logits(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(3, h, w) of one picture, by `local`."""
    with torch.inference_mode():
        found: torch.Tensor = local()(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255)
    return found[0].numpy()


def maps(output: Path, kind: str = "labels") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / kind).iterdir()}


def labels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, and one that is none; not to be changed."""
    folder = tmp_path_factory.mktemp("pictures") / "in"
    folder.mkdir()
    for path in REAL[:5]:
        shutil.copyfile(path, folder / path.name)
    coarse = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    large = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    Image.fromarray(large).save(folder / "large.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_pictures_become_label_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones at once, the large one in windows: what the network says of the whole."""
    output = tmp_path / "out"
    run = (pictures, "--output", output, "--weights", NETWORKS + "local", "--tile-above", "300000", *TILING)
    assert predict(*run) == 3
    images, instances = tables(output)
    assert instances == []
    assert not (output / "instances").exists()
    status = {Path(row["uri"]).name: row for row in images}
    assert status["broken.png"]["status"] == "rejected"
    assert status["large.png"]["tiles"] > 4
    assert sum(row["tiles"] or 0 for row in images) == len(tiles(output))
    assert len(maps(output)) == 6
    for name, row in status.items():
        if name == "broken.png":
            continue
        pixels = np.asarray(Image.open(pictures / name).convert("RGB"))
        margin = REACH if row["tiles"] else 0  # else the border is mirrored
        inside = np.s_[margin : pixels.shape[0] - margin, margin : pixels.shape[1] - margin]
        found, expected = labels(output / f"labels/{row['image_id']}.png"), logits(pixels)
        first, second = np.sort(expected, axis=0)[:-3:-1]
        sure = first - second > 3e-4  # windows are kept in 65,535 steps
        assert sure.mean() > 0.98
        assert np.array_equal(found[inside][sure[inside]], expected.argmax(0)[inside][sure[inside]])
        assert len(np.unique(found)) == 3 or name != "large.png"
    record = json.loads((output / "run.json").read_text())
    assert record["identity"]["classes"] == list(NAMES.values())
    before = maps(output)
    assert predict(*run, "--max-rejects", "1") == 0  # nothing to do
    assert predict(*run, "--tta", "flip") == 2
    assert maps(output) == before


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coarse noise at 0.5 m with a strip and a hole without data, above the size that is fetched whole."""
    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(1, 256, (3, 59, 53), np.uint8), np.ones((1, 32, 32), np.uint8))
    pixels[:, :, :100] = pixels[:, 700:800, 900:1000] = 0
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=pixels.shape[1], width=pixels.shape[2], dtype="uint8",
        crs="EPSG:32636", transform=from_origin(500_000, 40_000, 0.5, 0.5), nodata=0, tiled=True,
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


@pytest.fixture(scope="module")
def mapped(scene: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """Its maps, undisturbed; not to be changed."""
    output = tmp_path_factory.mktemp("mapped") / "out"
    more = ("--probabilities", "--polygons", "--crs", "EPSG:32636")
    assert predict(scene, "--output", output, "--weights", NETWORKS + "local", *TILING, *more) == 0
    return output


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def read(path: Path) -> Any:
    with rasterio.open(path) as file:
        return file.read()


def test_a_scene_has_no_seams(scene: Path, mapped: Path) -> None:
    """Windows blended = the whole at once, the border of the scene mirrored by half the overlap."""
    pixels = read(scene)
    valid = (pixels != 0).any(0)
    whole = np.pad(pixels.transpose(1, 2, 0), ((32, 32), (32, 32), (0, 0)), mode="reflect")
    expected = logits(whole)[:, 32:-32, 32:-32]
    shares = torch.from_numpy(expected).softmax(0).numpy() * valid
    probabilities = read(only(mapped / "probabilities")) / 255
    assert np.allclose(probabilities, shares, atol=1.01 / 255)
    first, second = np.sort(shares, axis=0)[:-3:-1]
    sure = (first - second > 1e-4) | ~valid
    assert sure.mean() > 0.98
    found = read(only(mapped / "labels"))[0]
    assert np.array_equal(found[sure], np.where(valid, expected.argmax(0), 255)[sure])
    assert (found == 255).sum() == (~valid).sum()


def test_a_map_lies_where_its_scene_lies(scene: Path, mapped: Path) -> None:
    for kind in ("labels", "probabilities"):
        path = only(mapped / kind)
        assert path.name == f"{tables(mapped)[0][0]['image_id']}.tif"
        assert cog_validate(path, strict=True)[0]
        with rasterio.open(path) as found, rasterio.open(scene) as source:
            assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
    (row,), _ = tables(mapped)
    assert (row["crs"], row["tiles"], row["tiles_rejected"]) == (
        "EPSG:32636",
        len(Grid(1888, 1696, 256, 64)),
        0,
    )
    assert not (mapped / "_segray/windows").exists()


def test_polygons_are_the_regions_of_the_map(scene: Path, mapped: Path) -> None:
    rows = pq.read_table(only(mapped / "polygons")).to_pylist()
    found = read(only(mapped / "labels"))[0]
    with rasterio.open(scene) as file:
        transform = file.transform
    shapes = shapely.from_wkb([row["geometry"] for row in rows])
    assert shapely.is_valid(shapes).all()
    burnt = rasterio.features.rasterize(
        ((shape, row["category_id"]) for shape, row in zip(shapes, rows, strict=True)),
        found.shape, fill=0, transform=transform, dtype="uint8",
    )  # fmt: skip
    assert np.array_equal(burnt, np.where(found == 255, 0, found))
    assert sum(row["area"] for row in rows) == np.isin(found, (1, 2)).sum()
    assert {row["category"] for row in rows} == {"road", "house"}
    assert np.allclose(shapely.area(shapes), [0.25 * row["area"] for row in rows])
    assert np.allclose([row["area_m2"] / row["area"] for row in rows], 0.25, rtol=0.002)  # on the ellipsoid


def watch(written: dict[Path, int], output: Path) -> None:
    """Keep the last times of change of files, until the labels are there."""
    while not (output / "labels").exists():
        with suppress(FileNotFoundError):
            written |= {path: path.stat().st_mtime_ns for path in written}
        time.sleep(0.005)


def test_killed_in_the_middle_of_a_scene(scene: Path, mapped: Path, tmp_path: Path) -> None:
    """The same command goes on: the same maps, and no window is done twice that was safe."""
    output = tmp_path / "out"
    run: tuple[object, ...] = (scene, "--output", output, *TILING, "--commit-every-s", "0.2")
    run += ("--probabilities", "--polygons", "--crs", "EPSG:32636", "--weights", NETWORKS + "slow")
    with running(*run, verb="predict") as driver:
        wait_for(lambda: len(list(output.glob("_segray/tiles/*.parquet"))) > 1, 240, "tiles")
        kill_tree(driver.pid)
    assert not (output / "labels").exists()
    safe = {
        row["tile"]
        for path in output.glob("_segray/tiles/*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    windows = {path: path.stat().st_mtime_ns for path in output.glob("_segray/windows/*/*")}
    assert 0 < len(safe) <= len(windows) < len(Grid(1888, 1696, 256, 64))
    latest, watcher = dict(windows), threading.Thread(target=lambda: watch(latest, output), daemon=True)
    watcher.start()
    assert predict(*run) == 0
    watcher.join()
    assert not safe & {int(path.name) for path, when in windows.items() if latest[path] != when}
    for kind in ("labels", "probabilities", "polygons"):
        assert only(output / kind).name == only(mapped / kind).name
    assert np.array_equal(read(only(output / "labels")), read(only(mapped / "labels")))
    assert np.array_equal(read(only(output / "probabilities")), read(only(mapped / "probabilities")))
    polygons = [pq.read_table(only(each / "polygons")) for each in (output, mapped)]
    assert polygons[0].equals(polygons[1])
    assert not (output / "_segray/windows").exists()
    assert tiles(output) == tiles(mapped)


def test_replaced_pictures_leave_no_map(pictures: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for path in REAL[:2]:
        shutil.copyfile(path, folder / path.name)
    run = (folder, "--output", output, "--weights", NETWORKS + "local")
    assert predict(*run) == 0
    before = maps(output)
    shutil.copyfile(REAL[2], folder / REAL[1].name)
    assert predict(*run) == 0
    after = maps(output)
    assert len(after) == 2
    assert len(before.keys() & after.keys()) == 1
    assert set(after) == {f"{row['image_id']}.png" for row in tables(output)[0]}


def test_a_model_file_from_and_into_a_bucket(
    s3_server: Server, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env_of(s3_server.storage).items():
        monkeypatch.setenv(name, value)
    card = SemanticCard(
        "unet", complete_settings("unet", {"width": 4, "depth": 1}), 2, ("a", "b"),
        (0.5,) * 3, (0.2,) * 3, 64, "resize",
    )  # fmt: skip
    torch.manual_seed(0)
    s3_server.put("maps/model.pt", model_bytes(card, build_model(card).state_dict()))
    s3_server.put("maps/in/one.png", REAL[0].read_bytes())
    s3_server.put("maps/in/scene.tif", SCENE.read_bytes())
    url = s3_server.url("maps")
    assert (
        predict(f"{url}/in", "--output", f"{url}/out", "--weights", f"{url}/model.pt", "--batch-size", 4) == 0
    )
    filesystem, root = open_filesystem(f"{url}/out", s3_server.storage)
    images, _ = tables(root, filesystem)
    names = {row["uri"].rpartition("/")[2]: row["image_id"] for row in images}
    found = {path.rpartition("/")[2] for path in filesystem.ls(f"{root}/labels", detail=False)}
    assert found == {f"{names['one.png']}.png", f"{names['scene.tif']}.tif"}
    assert not filesystem.exists(f"{root}/_segray/windows")


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("nuclei-small", "use it with `segray annotate`"),
        ("nowhere.pt", "no such file"),
        (NETWORKS + "NAMES", "has no function NAMES"),
        ("python:tests.bulk.models:seeded", "names of its classes from 0"),
    ],
)
def test_weights_that_make_no_maps(
    weights: str, told: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(pictures, "--output", tmp_path / "out", "--weights", weights) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
