"""The model step of the second pass against the plain one, and its measures against plain arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from segray.annotate.detector import MaskRCNNDetector
from segray.annotate.predictor import Predictor
from segray.models.weights import LoadedModel
from segray.output.folder import Output
from segray.selection.disagreement import disagreement, mirrored
from segray.selection.measures import MEASURES, WIDTH, MeasuresWriter, projected
from segray.selection.measuring import MapMeasurer, MeasuringPredictor, entropy
from segray.selection.read_measures import add_measures, features_of, measure_files
from segray.selection.reading import Pool
from segray.storage import StorageSettings
from tests.bulk.pictures import decoded, failed_row, picture_row, smooth
from tests.selection.models import columns, compact

STORAGE = StorageSettings()
CATEGORIES = {1: "one", 2: "two"}


class Writer(MeasuresWriter):
    """Of an output that no lease is held of."""

    def __init__(self, folder: Path) -> None:
        self._store = Output(str(folder), STORAGE)


def loaded(module: Any, task: Any = "instance") -> LoadedModel:
    return LoadedModel("test", "python", module, CATEGORIES, None, "0" * 64, task=task)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    found = pq.read_table(folder / "measures", schema=MEASURES).to_pylist()
    return {row["image_id"]: row for row in found}


@pytest.fixture(scope="module")
def pictures() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return {name: smooth(rng, 64, side) for name, side in (("a", 64), ("b", 64), ("c", 80), ("d", 64))}


def predictor(folder: Path, flips_above: float | None = None) -> MeasuringPredictor:
    arguments = (loaded(compact()), "cpu", "fp32", 0.05, 2, 1, None)
    made = MeasuringPredictor(*arguments, Writer(folder))  # type: ignore[arg-type]
    made.flips_above = flips_above
    return made


def test_instances_are_those_of_annotate(pictures: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    table = decoded(
        *(picture_row(*each) for each in pictures.items()), failed_row("bad", "corrupt", "no image")
    )
    plain = Predictor(loaded(compact()), "cpu", "fp32", 0.05, 2, 1).predict(table)
    found = predictor(tmp_path, 0.3).predict(table)
    assert found.equals(plain)
    assert pc.sum(plain["instances"]).as_py() > 10
    assert set(rows_of(tmp_path)) == set(pictures)


def test_features_are_means_of_the_backbones_maps(
    pictures: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    made = predictor(tmp_path)
    made.predict(decoded(*(picture_row(*each) for each in pictures.items())))
    detector = MaskRCNNDetector(compact(), torch.device("cpu"), "fp32", 0.05)
    for name, row in rows_of(tmp_path).items():
        with torch.inference_mode():
            maps = detector.model.backbone(detector._batch([pictures[name]]).tensors)
        levels = [each[0].mean((1, 2)).numpy() for each in maps.values()]
        vector = np.concatenate([each / np.linalg.norm(each) for each in levels])
        np.testing.assert_allclose(row["features"], projected(vector[None])[0], rtol=1e-4, atol=1e-5)


def test_flips_compare_with_the_mirror_image(pictures: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    images = dict(pictures)
    half = images["a"][:, :32]
    images["even"] = np.concatenate([half, half[:, ::-1]], axis=1)  # its own mirror image
    predictor(tmp_path, 0.3).predict(decoded(*(picture_row(*each) for each in images.items())))
    found = {name: row["flips"] for name, row in rows_of(tmp_path).items()}
    detector = Predictor(loaded(compact()), "cpu", "fp32", 0.05, 1, 1).detector
    for name, image in images.items():
        sides = [detector.detect([each])[0] for each in (image, np.ascontiguousarray(image[:, ::-1]))]
        kept = [each.scores > 0.3 for each in sides]
        boxes = [each.boxes[keep] for each, keep in zip(sides, kept, strict=True)]
        labels = [each.labels[keep].astype(np.int32) for each, keep in zip(sides, kept, strict=True)]
        wanted = disagreement(boxes[0], mirrored(boxes[1], image.shape[1]), *labels)
        assert found[name] == pytest.approx(wanted)
    assert max(found.values()) > 0


def test_projection_keeps_distances() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(200, 1280)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = projected(features)
    assert found.shape == (200, WIDTH)
    ratios = np.linalg.norm(found[1:] - found[:-1], axis=1) / np.linalg.norm(unit[1:] - unit[:-1], axis=1)
    assert abs(ratios.mean() - 1) < 0.05
    assert ratios.std() < 1.5 / np.sqrt(WIDTH)
    assert not projected(np.zeros((1, 9), np.float32)).any()
    assert not projected(np.full((1, 9), np.nan, np.float32)).any()


def test_entropy_is_shannons_over_its_maximum() -> None:
    shares = np.random.default_rng(3).dirichlet(np.ones(5), (6, 7)).transpose(2, 0, 1)
    plain = -(shares * np.log(shares)).sum(0).mean() / np.log(5)
    assert entropy(np.rint(shares * 65_535).astype(np.uint16)) == pytest.approx(plain, abs=1e-3)
    sure = np.zeros((3, 2, 2), np.uint16)
    sure[1] = 65_535
    assert entropy(sure) == 0
    assert entropy(np.full((2, 3, 3), 32_768, np.uint16)) == pytest.approx(1, abs=1e-4)


def test_label_maps_are_measured(tmp_path: Path) -> None:
    """The left half of every image is never sure, the right half is certain; red is on the right."""
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 6:, 0] = 255
    made = MapMeasurer(loaded(columns(), "semantic"), "cpu", "fp32", 1, 1, Writer(tmp_path), True)
    found = made.predict(decoded(picture_row("x", image)))
    assert found["status"].to_pylist() == ["annotated"]
    row = rows_of(tmp_path)["x"]
    assert row["unsure"] == pytest.approx(0.5, abs=1e-3)
    assert row["flips"] == pytest.approx(0.25)  # two of eight columns
    assert np.linalg.norm(row["features"]) > 0.1


def test_tiles_are_averaged_by_pixels_and_each_counts_once(tmp_path: Path) -> None:
    """A resumed pass may have measured a tile twice, in files of other tiles."""
    from segray.selection.measures import Measured

    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(3, WIDTH)).astype(np.float32)
    found = [Measured(vector, 0.1 * (n + 1), None) for n, vector in enumerate(vectors)]
    writer = Writer(tmp_path)
    writer.write(["s", "s"], [0, 1], [100, 300], found[:2])
    writer.write(["s"], [1], [300], found[1:2])
    writer.write(["other"], [None], [50], found[2:])
    writer.write(["s"], [None], [0], [Measured(windows=0.25)])
    pool = Pool(np.array([b"none", b"other", b"s"]), np.zeros(3, np.int32), [None])
    files = measure_files(str(tmp_path), STORAGE)
    assert len(files) == 4
    add_measures(pool, files, STORAGE)
    np.testing.assert_allclose(pool.measures["unsure"], [np.nan, 0.3, (0.1 + 0.2 * 3) / 4], rtol=1e-6)
    np.testing.assert_allclose(pool.measures["windows"], [np.nan, np.nan, 0.25])
    assert "flips" not in pool.measures
    features = features_of(pool, np.array([2, 0]), files, STORAGE)
    np.testing.assert_allclose(features[0], (vectors[0] + 3 * vectors[1]) / 4, rtol=1e-5)
    assert np.isnan(features[1]).all()
    assert isinstance(pq.read_table(files[0].address.removeprefix("file://")), pa.Table)
