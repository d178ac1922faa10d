"""What follows the network, in the model step: order, windows, and what depends on it. No Ray."""

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin

from segray.errors import SettingsError
from segray.models.weights import load_weights
from segray.output.folder import Output
from segray.predict.blend import labels_of
from segray.predict.cleanup import CleanUp
from segray.predict.merge_windows import merged_map
from segray.predict.network import Network
from segray.predict.predictor import MapPredictor
from segray.predict.refine import Refinement
from segray.predict.settings import CrfSettings, PredictSettings
from segray.predict.superpixels import averaged, superpixels
from segray.predict.task import Predict
from segray.predict.windowed import slid
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings
from tests.predict.networks import NAMES, REACH, local
from tests.predict.test_network import model
from tests.scenes.steps import tiles

WEIGHTS = "python:tests.predict.networks:local"
CLASSES = tuple(NAMES.values())
CRF = CrfSettings(iterations=2, theta_alpha=20)
ALL: dict[str, Any] = {
    "sliding_window": 64, "crf": CRF, "superpixels": 6, "smallest_area": 30, "close_holes": 400,
}  # fmt: skip
CPU = torch.device("cpu")


def settings(output: Path, **more: Any) -> PredictSettings:
    given = {"tile": 128, "overlap": 64, "weights": WEIGHTS, **more}
    return PredictSettings(sources=["in"], output=str(output), precision="fp32", **given)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (25, 20, 3), np.uint8)
    large = Image.fromarray(coarse).resize((160, 200), Image.Resampling.BICUBIC)
    return np.asarray(large)


def predicted(path: Path, how: PredictSettings) -> tuple[NDArray[np.uint8], Output]:
    """The label map of one item, by reading, model step and merging, and the output."""
    (Path(how.output) / "_segray").mkdir(parents=True, exist_ok=True)
    store, sandbox = Output(how.output, StorageSettings()), DecodeSandbox(30.0)
    loaded = load_weights(WEIGHTS, StorageSettings(), "semantic")
    predictor = MapPredictor(loaded, how, "cpu", "fp32", 2, None, store)
    try:
        found = pa.concat_tables([predictor.predict(each) for each in tiles(path, how.tiling, sandbox)])
    finally:
        sandbox.close()
    assert set(found["status"].to_pylist()) == {"annotated"}, found["error"].to_pylist()
    if found["tile"][0].as_py() is not None:
        merged_map(found, how, CLASSES, store)
    (name,) = store.files("labels")
    with rasterio.open(Path(how.output) / name) as file:
        return file.read(1), store


@pytest.fixture(scope="module")
def picture(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "one.png"
    Image.fromarray(pixels).save(path)
    return path


def test_the_steps_follow_each_other(pixels: NDArray[np.uint8], picture: Path, tmp_path: Path) -> None:
    """Sliding window, CRF, superpixels, class, small regions, holes: each changes the map."""
    how = settings(tmp_path / "all", tile=256, probabilities=True, **ALL)
    found, store = predicted(picture, how)
    network = Network(load_weights(WEIGHTS, StorageSettings(), "semantic"), "cpu", "fp32")
    shares = slid(pixels, 64, lambda some: list(network.labels_and_probabilities(some)[1]), 3, 2)
    maps = [labels_of(shares)]
    for names in (("crf",), ("crf", "superpixels")):
        step = Refinement(settings(tmp_path, tile=256, **{name: ALL[name] for name in names}), CPU)
        refined = step.image(pixels, shares)
        maps.append(labels_of(refined))
    maps.append(CleanUp(30, 0, CLASSES).array(maps[-1]))
    maps.append(CleanUp(30, 400, CLASSES).array(maps[-2]))
    assert np.array_equal(found, maps[-1])
    assert all((before != after).any() for before, after in pairwise(maps))
    with rasterio.open(Path(how.output) / next(iter(store.files("probabilities")))) as file:
        written = file.read()  # those that the class was chosen from
    assert np.abs(written - refined / 257).max() <= 0.51


def test_a_sliding_window_sees_what_the_whole_is(pixels: NDArray[np.uint8]) -> None:
    """But for the pixels whose surroundings a window's border cuts off."""
    network = Network(load_weights(WEIGHTS, StorageSettings(), "semantic"), "cpu", "fp32")
    sizes = list[tuple[int, ...]]()

    def seen(images: Any) -> list[NDArray[np.uint16]]:
        sizes.extend(each.shape[:2] for each in images)
        assert len(images) <= 2
        return list(network.labels_and_probabilities(images)[1])

    whole = network.labels_and_probabilities([pixels])[1][0].astype(int)
    found = slid(pixels, 64, seen, 3, 2)
    assert set(sizes) == {(64, 64)}
    assert len(sizes) == 6 * 4
    assert REACH < 64 / 8  # less than what a window has no weight in
    assert np.abs(found - whole).max() <= 2
    assert np.array_equal(slid(pixels[:50, :60], 64, seen, 3, 2), seen([pixels[:50, :60]])[0])


@pytest.fixture(scope="module")
def scene(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    holed = np.clip(pixels, 1, 255)
    holed[40:90, 30:60] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=200, width=160, dtype="uint8", nodata=0, tiled=True,
        blockxsize=64, blockysize=64, crs="EPSG:32636", transform=from_origin(500_000, 40_000, 0.5, 0.5),
    ) as file:  # fmt: skip
        file.write(holed.transpose(2, 0, 1))
    return path


def test_clean_up_of_a_scene_is_that_of_its_whole_map(scene: Path, tmp_path: Path) -> None:
    """Its windows of 128 pixels cut regions; its polygons are those of the map that is written."""
    import pyarrow.parquet as pq

    plain, _ = predicted(scene, settings(tmp_path / "plain"))
    more = {"smallest_area": 80, "close_holes": 200, "polygons": True}
    found, store = predicted(scene, settings(tmp_path / "clean", **more))
    assert (plain == 255).sum() == 50 * 30
    assert np.array_equal(found, CleanUp(80, 200, CLASSES).array(plain))
    assert (found != plain).sum() > 100
    (name,) = store.files("polygons")
    rows = pq.read_table(tmp_path / "clean" / name)
    assert sum(rows["area"].to_pylist()) == np.isin(found, (1, 2)).sum()


def test_a_scene_and_a_large_image_take_all_steps(scene: Path, picture: Path, tmp_path: Path) -> None:
    """Windows are refined before they are blended; what `--blur` keeps in memory is the same."""
    found, _ = predicted(scene, settings(tmp_path / "scene", **ALL))
    assert (found == 255).sum() == 50 * 30
    assert np.array_equal(found, CleanUp(30, 400, CLASSES).array(found))
    tiled, _ = predicted(picture, settings(tmp_path / "tiled", tile_above=10_000, **ALL))
    blurred, _ = predicted(picture, settings(tmp_path / "blurred", tile_above=10_000, blur=["road"], **ALL))
    assert np.array_equal(tiled, blurred)
    whole, _ = predicted(picture, settings(tmp_path / "whole", **ALL))
    assert (whole == tiled).mean() > 0.9  # not the same: mirrored border, other superpixels at seams


def test_superpixels_are_averaged_and_follow_edges() -> None:
    pixels = np.full((40, 60, 3), 60, np.uint8)
    pixels[:, 31:] = 180
    shares = np.zeros((2, 40, 60), np.float32)
    shares[0, :, :28] = shares[1, :, 28:] = 1  # three pixels off
    regions = superpixels(pixels, 10, 10.0)
    assert 12 <= len(np.unique(regions)) <= 40
    valid = np.random.default_rng(0).random((40, 60)) < 0.9
    found = averaged(shares, regions, valid)
    for number in np.unique(regions):
        there = regions == number
        expected = shares[:, there & valid].mean(1)
        assert np.allclose(found[:, there], expected[:, None], atol=1e-6)
    labels = averaged(shares, regions, None).argmax(0)
    assert np.array_equal(labels, np.broadcast_to(np.arange(60) >= 31, (40, 60)))


def test_they_are_part_of_a_runs_identity(tmp_path: Path) -> None:
    loaded = model(local())
    plain = Predict(settings(tmp_path)).identity(loaded, "fp32")
    for name in ALL:
        other = Predict(settings(tmp_path, **{name: ALL[name]})).identity(loaded, "fp32")
        assert plain[name] is None
        assert {key for key in plain if plain[key] != other[key]} <= {name, "compactness"}
        assert other[name] is not None
    unused = settings(tmp_path, compactness=3.0, crf=replace_crf(w1=3.0))
    assert Predict(unused).identity(loaded, "fp32") == plain


def replace_crf(**values: float) -> CrfSettings:
    return CrfSettings(**values)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resizing = replace(model(local(), resized_to=64))
    with pytest.raises(SettingsError, match="sliding_window: test was trained on whole images"):
        Predict(settings(tmp_path, sliding_window=64)).identity(resizing, "fp32")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    with pytest.raises(SettingsError, match="install the extra `superpixels`"):
        Predict(settings(tmp_path, superpixels=8)).check()
