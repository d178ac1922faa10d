"""Panels of validation pictures: what stands at which pixel, and where the files lie."""

import random
import re
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segray.palette import palette
from segray.storage import open_filesystem
from segray.train.reporting.canvas import MARGIN, TITLE, scaled_size
from segray.train.reporting.samples import (
    WRONG,
    Sample,
    chosen,
    file_name,
    panels,
    write_panels,
)
from tests.servers import Server

CLASSES = ["background", "road", "tree"]
VOID = [[150] * 3, [190] * 3]
BACKGROUND, ROAD, TREE = [0, 0, 0], [128, 0, 0], [0, 128, 0]


def sample(height: int = 200, width: int = 300, name: str = "a.png", level: int = 100) -> Sample:
    """Truth: a square of road at rows and columns 50 to 99, void from column 200 on. Prediction: 20 to the
    right, and tree at the void's top."""
    truth, prediction = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    truth[50:100, 50:100] = prediction[50:100, 70:120] = 1
    truth[:, 200:], prediction[:50, 200:] = 255, 2
    return Sample(name, np.full((height, width, 3), level, np.uint8), truth, prediction)


def cut(pixels: NDArray[np.uint8], number: int, height: int, width: int) -> NDArray[np.uint8]:
    """A panel: of wide pictures, with 10 pixels between two."""
    left = MARGIN + number * (max(width, 150) + 10)
    return pixels[TITLE : TITLE + height, left : left + width]


def test_each_panel_shows_what_it_should() -> None:
    pixels = panels(sample(), CLASSES)
    picture, truth, prediction, error = (cut(pixels, number, 200, 300) for number in range(4))
    assert (picture == 100).all()
    assert truth[75, 60].tolist() == truth[75, 80].tolist() == ROAD
    assert truth[75, 110].tolist() == truth[10, 199].tolist() == BACKGROUND
    assert (truth[50:100, 50:100] == ROAD).all()
    assert prediction[75, 110].tolist() == prediction[75, 80].tolist() == ROAD
    assert (
        prediction[75, 60].tolist()
        == prediction[100, 100].tolist()
        == prediction[60, 250].tolist()
        == BACKGROUND
    )
    assert prediction[20, 250].tolist() == TREE
    wrong = (error == WRONG).all(axis=2)
    assert np.count_nonzero(wrong) == 2 * 20 * 50  # and nothing where the truth is void
    assert wrong[50:100, 50:70].all()
    assert wrong[50:100, 100:120].all()
    right = ~wrong
    right[:, 200:] = False
    assert (error[right] == 50).all()  # half as bright as the picture


def test_void_is_striped_in_the_truth_and_in_the_error() -> None:
    pixels = panels(sample(), CLASSES)
    for number in (1, 3):
        void = cut(pixels, number, 200, 300)[:, 200:]
        found, counts = np.unique(void.reshape(-1, 3), axis=0, return_counts=True)
        assert found.tolist() == VOID
        assert counts.min() > 9000
    colours = palette(255).tolist()
    assert not any(level in colours for level in VOID)


def test_a_prediction_of_no_class_is_wrong_and_striped() -> None:
    given = sample()
    given.prediction[150:, :100] = 255
    pixels = panels(given, CLASSES)
    assert (cut(pixels, 3, 200, 300)[150:, :100] == WRONG).all()
    assert np.unique(cut(pixels, 2, 200, 300)[150:, :100].reshape(-1, 3), axis=0).tolist() == VOID


def legend(pixels: NDArray[np.uint8], height: int) -> list[list[int]]:
    """Colours of the legend's squares, two pixels inside their outlines."""
    row = pixels[TITLE + height + MARGIN + 2]
    edges = np.flatnonzero((row == 110).all(axis=1))
    starts = [edge for edge in edges if edge + 15 in edges]
    return [row[start + 2].tolist() for start in starts]


def test_the_legend_has_the_classes_that_occur() -> None:
    given = sample()
    assert legend(panels(given, CLASSES), 200) == [BACKGROUND, ROAD, TREE, VOID[0], list(WRONG)]
    given.prediction[given.prediction == 2] = 0
    given.truth[given.truth == 255] = 0
    assert legend(panels(given, CLASSES), 200) == [BACKGROUND, ROAD, list(WRONG)]


def test_of_many_classes_the_largest_are_named() -> None:
    classes = np.minimum(np.arange(90_000) // 400, 199).reshape(300, 300).astype(np.uint8)
    pixels = panels(Sample("many.png", np.zeros((300, 300, 3), np.uint8), classes, classes), ["x"] * 200)
    lines = [
        legend(pixels[line * 26 :], 300) for line in range((len(pixels) - TITLE - 300 - MARGIN) // 26 + 1)
    ]
    found = list(chain.from_iterable(lines))
    assert len(found) == 40 + 2
    assert found[39] == palette(200)[199].tolist()  # the largest of all
    assert found[40:] == [[255, 255, 255], list(WRONG)]  # 'and 160 more'


def test_a_large_picture_shrinks_by_area_and_its_labels_by_nearest() -> None:
    rows, columns = np.indices((1024, 2048))
    checks = ((rows + columns) % 2 * 255).astype(np.uint8)
    truth = np.random.default_rng(0).integers(0, 3, (1024, 2048), np.uint8)
    pixels = panels(Sample("large.png", np.repeat(checks[..., None], 3, 2), truth, truth), CLASSES)
    assert abs(cut(pixels, 0, 256, 512).astype(int) - 127).max() <= 1  # four by four pixels, half are white
    shrunk = cut(pixels, 1, 256, 512)
    assert (shrunk == palette(3)[truth[2::4, 2::4]]).all()


def test_a_small_picture_grows_by_a_whole_number() -> None:
    random_ = np.random.default_rng(0)
    picture, truth = (
        random_.integers(0, 256, (60, 80, 3), np.uint8),
        random_.integers(0, 3, (60, 80), np.uint8),
    )
    pixels = panels(Sample("small.png", picture, truth, truth), CLASSES)
    assert (cut(pixels, 0, 180, 240) == np.kron(picture, np.ones((3, 3, 1), np.uint8))).all()
    assert (cut(pixels, 1, 180, 240) == np.kron(palette(3)[truth], np.ones((3, 3, 1), np.uint8))).all()


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (512, 512)])
@pytest.mark.parametrize("classes", [1, 255])
def test_odd_sizes(size: tuple[int, int], classes: int) -> None:
    truth = np.full(size, classes - 1, np.uint8)
    height, width = scaled_size(*size)
    assert max(height, width) <= 512
    assert min(height, width) >= 1
    names = [f"{index} é 道\n" * 9 for index in range(classes)]
    pixels = panels(Sample("道路/x" * 200, np.zeros((*size, 3), np.uint8), truth, truth), names)
    assert (cut(pixels, 2, height, width) == palette(classes)[classes - 1]).all()


def test_a_picture_that_is_void_all_over() -> None:
    void = np.full((200, 300), 255, np.uint8)
    pixels = panels(Sample("void.png", np.zeros((200, 300, 3), np.uint8), void, void * 0), CLASSES)
    assert np.unique(cut(pixels, 3, 200, 300).reshape(-1, 3), axis=0).tolist() == VOID
    assert legend(pixels, 200) == [BACKGROUND, VOID[0], list(WRONG)]


@pytest.mark.parametrize(
    "change",
    [
        {"picture": np.zeros((4, 6), np.uint8)},
        {"picture": np.zeros((4, 6, 3), np.float32)},
        {"truth": np.zeros((6, 4), np.uint8)},
        {"prediction": np.zeros((4, 6), np.int64)},
    ],
)
def test_other_shapes_and_types_are_refused(change: dict[str, Any]) -> None:
    given = {"picture": np.zeros((4, 6, 3), np.uint8)} | {
        key: np.zeros((4, 6), np.uint8) for key in ("truth", "prediction")
    }
    Sample("fine", **given)
    with pytest.raises(ValueError, match="wrong one: picture"):
        Sample("wrong one", **given | change)


def test_names_of_files_are_safe_and_differ() -> None:
    names = [
        "x.png", "x.jpg", "x", "a/b.png", "a_b.png", "../../etc/passwd", "s3://bucket/ä ö.tif", "道路.png",
        ".png", ".hidden.png", "", "n" * 300 + ".png", "m" + "n" * 299 + ".png", "a\\b\0c.png", "\udcff.png",
    ]  # fmt: skip
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.png", name) for name in found)
    assert (found[0], found[4]) == ("x.png", "a_b.png")
    assert re.fullmatch(r"a_b-[0-9a-f]{8}\.png", found[3])


def test_the_same_items_are_chosen_whatever_their_order() -> None:
    names = [f"images/val/{index}.png" for index in range(50)]
    first = [names[index] for index in chosen(names)]
    assert len(first) == 4
    mixed = random.Random(0).sample(names, 50)
    assert {mixed[index] for index in chosen(mixed)} == set(first)
    assert chosen(names) == sorted(chosen(names))
    fewer = [name for name in names if name != first[0]]
    assert {fewer[index] for index in chosen(fewer)} > set(first[1:])
    assert chosen(names[:3]) == [0, 1, 2]
    assert chosen(names, 50) == list(range(50))


def test_written_over_what_was_there(tmp_path: Path) -> None:
    for level in (100, 60):
        write_panels(
            fsspec.filesystem("file"),
            str(tmp_path / "samples"),
            sample().name,
            panels(sample(level=level), CLASSES),
        )
        with Image.open(tmp_path / "samples/a.png") as image:
            assert (np.asarray(image) == panels(sample(level=level), CLASSES)).all()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["a.png"]


def test_into_a_bucket(s3_server: Server) -> None:
    filesystem, path = open_filesystem(s3_server.url("panels/samples"), s3_server.storage)
    one = sample(name="images/val/a.png")
    write_panels(filesystem, path, one.name, panels(one, CLASSES))
    (name,) = s3_server.names("panels/")
    assert name == f"panels/samples/{file_name('images/val/a.png')}"
    assert s3_server.get(name).startswith(b"\x89PNG")
