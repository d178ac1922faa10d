"""Clean-up of label maps: against plain labelling by SciPy, arrays and files alike."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from scipy import ndimage

from segray.predict import cleanup
from segray.predict.cleanup import CleanUp

NAMES = ("background", "road", "house")
Labels = NDArray[np.uint8]


def noise(seed: int, height: int = 60, width: int = 70) -> Labels:
    random = np.random.default_rng(seed)
    return random.choice([0, 1, 2, 255], (height, width), p=[0.3, 0.55, 0.1, 0.05]).astype(np.uint8)


def regions(labels: Labels) -> list[tuple[int, NDArray[np.bool_]]]:
    """(class, mask) of each region, pixels connected along their edges."""
    found = []
    for value in np.unique(labels):
        numbered, count = ndimage.label(labels == value)
        found += [(int(value), numbered == number) for number in range(1, count + 1)]
    return found


def closed(labels: Labels, most: int) -> Labels:
    """What does not reach the border without passing a region is a hole of it; the outer one wins."""
    holes = []
    for value, region in regions(labels):
        if value in (0, 255):
            continue
        outside, count = ndimage.label(~region)
        at_border = {*outside[0], *outside[-1], *outside[:, 0], *outside[:, -1]}
        masks = [outside == number for number in range(1, count + 1) if number not in at_border]
        holes += [(int(mask.sum()), value, mask) for mask in masks if mask.sum() <= most]
    filled = labels.copy()
    for _, value, mask in sorted(holes, key=lambda hole: hole[0]):
        filled[mask] = value
    filled[labels == 255] = 255
    return filled


@pytest.mark.parametrize("most", [3, 40])
def test_holes_are_closed(most: int) -> None:
    labels = noise(most)
    found = CleanUp(0, most, NAMES).array(labels)
    assert np.array_equal(found, closed(labels, most))
    assert (found != labels).sum() > 100


def test_a_known_map() -> None:
    """A speck, a hole, an object in the background, and a corner that is not connected."""
    labels = np.zeros((12, 16), np.uint8)
    labels[1:9, 1:9] = 1
    labels[3:5, 3:5] = 0  # a hole of 4
    labels[6, 6] = 2  # a speck in the road
    labels[2:4, 11:14] = 2  # a house of 6 in the background
    labels[10, 10] = 1  # a speck
    labels[11, 11] = 1  # touches it over a corner alone
    labels[0, 15] = 255
    small = CleanUp(4, 0, NAMES).array(labels)
    expected = labels.copy()
    expected[6, 6] = 1
    expected[10, 10] = expected[11, 11] = 0
    assert np.array_equal(small, expected)
    both = CleanUp(4, 4, NAMES).array(labels)
    expected[3:5, 3:5] = 1
    assert np.array_equal(both, expected)
    assert not CleanUp(0, 0, NAMES)


def test_of_holes_in_holes_the_outer_region_wins() -> None:
    labels = np.ones((15, 15), np.uint8)
    labels[4:11, 4:11] = 2
    labels[6:9, 6:9] = 0
    assert (CleanUp(0, 49, NAMES).array(labels) == 1).all()
    inner = CleanUp(0, 48, NAMES).array(labels)
    assert (inner[4:11, 4:11] == 2).all()
    assert (inner != 2).sum() == 15 * 15 - 49


def test_no_small_region_stays_next_to_a_large_one() -> None:
    labels, least = noise(1), 12
    found = CleanUp(least, 0, NAMES).array(labels)
    assert np.array_equal(found == 255, labels == 255)
    large = np.zeros(labels.shape, bool)
    for value, region in regions(labels):
        if region.sum() >= least and value != 255:
            assert (found[region] == value).all()
            large |= region
    small = [mask for value, mask in regions(found) if value != 255 and mask.sum() < least]
    assert not any((ndimage.binary_dilation(mask) & large).any() for mask in small)
    assert (found != labels).sum() > 1000


def test_an_image_smaller_than_the_smallest_area() -> None:
    """It stays as it is: none of its regions is large enough for another to join it."""
    labels = np.zeros((20, 20), np.uint8)
    assert np.array_equal(CleanUp(500, 0, NAMES).array(labels.copy()), labels)
    labels[0] = 255
    labels[5:8, 5:8] = 1
    assert np.array_equal(CleanUp(500, 0, NAMES).array(labels.copy()), labels)


@pytest.mark.parametrize(("least", "most"), [(0, 9), (5, 0), (4, 6), (60 * 70 + 1, 0)])
def test_a_file_becomes_what_an_array_becomes(
    least: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of 16 pixels: no region is cut at their borders."""
    monkeypatch.setattr(cleanup, "SIDE", 16)
    labels, path = noise(2), tmp_path / "labels.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=60, width=70, dtype="uint8", tiled=True, blockxsize=16,
        blockysize=16, nodata=255, crs="EPSG:32636", transform=Affine(0.3, 0.01, 500_000, 0.02, -0.31, 100),
    ) as file:  # fmt: skip
        file.write(labels, 1)
    how = CleanUp(least, most, NAMES)
    how.file(path)
    with rasterio.open(path) as file:
        assert file.nodata == 255
        assert np.array_equal(file.read(1), how.array(labels))
    assert [each.name for each in tmp_path.iterdir()] == ["labels.tif"]
