"""Brightness and sharpness against Pillow and OpenCV, and what they see of an image."""

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from segray.annotate.merge_instances import merged_item
from segray.bulk.results import Outcome, results_table
from segray.errors import ItemError
from segray.predict.predictor import Labelled
from segray.scenes.scene import Tiling
from segray.schema import ANNOTATED
from segray.sources.decode_step import Decoder
from segray.sources.item import Source
from segray.sources.quality import MOST, RUN, Quality, measure
from segray.sources.rows import FetchedRows
from segray.sources.sandbox import DecodeSandbox
from tests.bulk.pictures import smooth
from tests.bulk.tables import VERB, table
from tests.bulk.test_kept_tiles import Job, Joining
from tests.scenes.made import town, write
from tests.scenes.steps import annotated, answered, tiles

Pixels = NDArray[np.uint8]


def both(found: Quality) -> list[float]:
    """As numbers, both of which are known."""
    assert found.brightness is not None
    assert found.sharpness is not None
    return [found.brightness, found.sharpness]


def oracle(pixels: Pixels) -> tuple[float, float]:
    """By Pillow's grey and OpenCV's Laplacian, inside the border."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    response = cv2.Laplacian(grey, cv2.CV_64F, ksize=1)[1:-1, 1:-1]
    return float(grey.mean()), float(response.var())


@pytest.mark.parametrize(("height", "width"), [(3, 3), (7, 300), (MOST, MOST), (200, 1), (2, 2)])
def test_a_small_image_is_measured_whole(height: int, width: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    found = measure(pixels)
    if min(height, width) < 3:  # the kernel does not fit
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        assert found == Quality(float(grey.mean()), None)
    else:
        assert both(found) == pytest.approx(oracle(pixels))


def test_a_large_image_is_measured_in_patches() -> None:
    """Those of the docstring, pooled; and near enough to the whole."""
    pixels = smooth(np.random.default_rng(5), 1500, 2000)
    starts = [[(side - RUN) * run // 7 for run in range(8)] for side in (1500, 2000)]
    patches = [pixels[row : row + RUN, col : col + RUN] for row in starts[0] for col in starts[1]]
    greys = [np.asarray(Image.fromarray(patch).convert("L")) for patch in patches]
    responses = [cv2.Laplacian(grey, cv2.CV_64F, ksize=1)[1:-1, 1:-1] for grey in greys]
    found = both(measure(pixels))
    assert found == pytest.approx([np.mean(greys), np.var(responses)])
    assert found == pytest.approx(oracle(pixels), rel=0.2)
    assert measure(np.ascontiguousarray(pixels[::-1, ::-1])) != measure(pixels)  # the patches, not the whole


def test_what_they_see() -> None:
    random = np.random.default_rng(6)
    pixels = smooth(random, 700, 900) // 2 + random.integers(0, 64, (700, 900, 1), np.uint8)
    dark, blurred = measure(pixels // 3), measure(cv2.GaussianBlur(pixels, (0, 0), 3).astype(np.uint8))
    plain = measure(pixels)
    assert plain.brightness is not None
    assert plain.sharpness is not None
    assert dark.brightness == pytest.approx(plain.brightness / 3, abs=1)
    assert blurred.sharpness is not None
    assert blurred.sharpness < plain.sharpness / 2
    assert measure(np.full((700, 900, 3), 255, np.uint8)) == Quality(255.0, 0.0)


def test_pixels_without_data_do_not_count() -> None:
    """Nor do those whose neighbours hold none."""
    pixels = np.random.default_rng(7).integers(0, 256, (60, 80, 3), np.uint8)
    nodata = np.zeros((60, 80), bool)
    nodata[:, 50:] = True
    assert measure(pixels, nodata) == measure(np.ascontiguousarray(pixels[:, :50]))
    assert measure(pixels, ~np.zeros((60, 80), bool)) == Quality(None, None)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    with DecodeSandbox() as one:
        yield one


def test_the_decoder_measures_and_rejected_rows_have_none(sandbox: DecodeSandbox) -> None:
    rows = FetchedRows()
    images = [smooth(np.random.default_rng(seed), 50, 70) for seed in range(3)]
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        rows.add_file(Source(f"file:///{number}", f"/{number}", "file", "1", 1), file.getvalue())
    rows.add_file(Source("file:///b", "/b", "file", "1", 1), b"no image")
    rows.add_end(Source("file:///t.tar", "/t.tar", "tar", "1", 1), 4, 0, broken=False)
    decoded = pa.concat_tables(Decoder(sandbox, 10_000).tables(rows.take()))
    expected = [*map(oracle, images), (None, None), (None, None)]
    found = list(zip(decoded["brightness"].to_pylist(), decoded["sharpness"].to_pylist(), strict=True))
    assert found[3:] == expected[3:]
    assert np.allclose(np.array(found[:3]), np.array(expected[:3]))
    outcomes: list[Outcome] = [Labelled(), ItemError("crashed", "the model failed"), Labelled(), None, None]
    rows_out = results_table(decoded, outcomes)
    assert rows_out["brightness"].is_valid().to_pylist() == [True, False, True, False, False]
    assert rows_out["sharpness"].is_valid().to_pylist() == [True, False, True, False, False]


def test_a_scene_has_the_mean_of_its_windows(tmp_path: Path, sandbox: DecodeSandbox) -> None:
    path, tiling = write(tmp_path / "town.tif", town(300, 410)), Tiling(256, 64)
    parts = pa.concat_tables(tiles(path, tiling, sandbox))
    row = annotated(path, tiling, sandbox, "exact")
    assert parts.num_rows == 4
    for name in ("brightness", "sharpness"):
        assert row[name] == pytest.approx(np.mean(parts[name].to_pylist()))


def test_windows_weigh_by_their_pixels_and_those_without_data_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, (3,))
    rows = [job.tile(number) for number in range(4)]
    rows[0] |= {"brightness": 10.0, "height": 10, "width": 30}
    rows[1] |= {"brightness": 20.0, "height": 10, "width": 10}
    rows[2] |= {"status": "skipped"}
    (row,) = Joining(VERB.settings).merge_tiles(table(*rows)).to_pylist()
    assert (row["status"], row["brightness"], row["sharpness"]) == ("annotated", 12.5, None)


def test_a_scene_that_is_rejected_has_none(tmp_path: Path, sandbox: DecodeSandbox) -> None:
    answers = answered(write(tmp_path / "town.tif", town(300, 300)), Tiling(256, 64), sandbox, "exact")
    rows = answers.to_pylist()
    rows[0]["found"][0]["segmentation"]["counts"] = ""
    (row,) = merged_item(pa.Table.from_pylist(rows, schema=ANNOTATED), "OGC:CRS84").to_pylist()
    assert (row["status"], row["brightness"], row["sharpness"]) == ("rejected", None, None)
