"""A scene done in tiles gives what the whole scene gives, object for object."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from segray.annotate.merge_instances import merged_item
from segray.scenes.scene import Tiling
from segray.schema import ANNOTATED
from segray.sources.sandbox import DecodeSandbox
from tests.scenes.made import masks, town, write
from tests.scenes.steps import annotated, answered, encoded, ious

TILINGS = [(256, 64), (320, 96), (200, 64)]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    with DecodeSandbox() as one:
        yield one


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
@pytest.mark.parametrize("seed", range(3))
def test_exact_masks_come_back_whole(
    tile: int, overlap: int, seed: int, tmp_path: Path, sandbox: DecodeSandbox
) -> None:
    scene = town(700, 610, seed)
    row = annotated(write(tmp_path / "town.tif", scene), Tiling(tile, overlap), sandbox, "exact")
    assert row["tiles"] > 6
    assert row["instances"] == scene.max() > 60
    same = ious(row, encoded(masks(scene))) == 1
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) == 1).all()


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
def test_roi_masks_are_those_of_the_untiled_scene(
    tile: int, overlap: int, tmp_path: Path, sandbox: DecodeSandbox
) -> None:
    path = write(tmp_path / "town.tif", town(700, 610))
    tiled = annotated(path, Tiling(tile, overlap), sandbox, "roi")
    whole = annotated(path, Tiling(1024, 0), sandbox, "roi")
    assert (whole["tiles"], tiled["instances"]) == (1, whole["instances"])
    alike = ious(tiled, [each["segmentation"] for each in whole["found"]])
    best = alike.max(0)
    assert sorted(alike.argmax(0)) == list(range(len(best)))
    fits = np.array([max(each["bbox"][2:]) <= overlap // 2 for each in whole["found"]])
    assert fits.sum() > 40
    assert (best[fits] >= 0.99).all()
    assert (best > 0.5).all()


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
@pytest.mark.parametrize("seed", range(3))
def test_jitter_neither_doubles_nor_loses(
    tile: int, overlap: int, seed: int, tmp_path: Path, sandbox: DecodeSandbox
) -> None:
    scene = town(700, 610, seed)
    row = annotated(write(tmp_path / "town.tif", scene), Tiling(tile, overlap), sandbox, "jittered")
    best = ious(row, encoded(masks(scene))).argmax(1)
    assert sorted(best) == list(range(int(scene.max())))


def test_what_is_to_be_said_of_a_picture_stands_in_its_row(tmp_path: Path, sandbox: DecodeSandbox) -> None:
    """Nearly black, whole and cut into tiles."""
    path = tmp_path / "dark.png"
    cv2.imwrite(str(path), np.full((200, 300), 4095, np.uint16))
    whole = answered(path, Tiling(), sandbox, "exact").to_pylist()
    cut = annotated(path, Tiling(128, 16, picture_pixels=10_000), sandbox, "exact")
    assert (len(whole), whole[0]["tile"], cut["tiles"]) == (1, None, 6)
    for row in (whole[0], cut):
        assert "nearly black" in row["note"]


def test_a_scene_that_cannot_be_joined_is_rejected_alone(tmp_path: Path, sandbox: DecodeSandbox) -> None:
    answers = answered(write(tmp_path / "town.tif", town(300, 300)), Tiling(256, 64), sandbox, "exact")
    rows = answers.to_pylist()
    rows[0]["found"][0]["segmentation"]["counts"] = ""  # no pixel, which nothing that we write holds
    (row,) = merged_item(pa.Table.from_pylist(rows, schema=ANNOTATED), "OGC:CRS84").to_pylist()
    assert (row["status"], row["error_type"], row["found"]) == ("rejected", "crashed", [])
    assert "its tiles cannot be merged" in row["error"]
    assert row["tiles"] == row["tiles_rejected"] == 4
