"""Masks of COCO files: what pycocotools makes of them, and a reason for each that it should never see."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segray.errors import ItemError
from segray.masks.coco_segmentation import rle_of, run_lengths

HEIGHT, WIDTH = 40, 50


def blobs(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Any:
    random = np.random.default_rng(seed)
    coarse = random.random((height // 7 + 1, width // 7 + 1)) < random.random()
    return np.kron(coarse, np.ones((7, 7), np.uint8))[:height, :width].astype(np.uint8, order="F")


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 400, 2))
    mask = blobs(seed, height, width) if seed % 2 else (random.random((height, width)) < 0.1)
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    lengths = run_lengths(rle["counts"])
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert np.array_equal(flat, mask.ravel(order="F"))


def forms() -> dict[str, Any]:
    """The same mask in each form, and a polygon."""
    rle = coco_mask.encode(blobs(1))
    lengths = run_lengths(rle["counts"])
    size = [HEIGHT, WIDTH]
    return {
        "bytes": rle,
        "text": {"size": size, "counts": rle["counts"].decode()},
        "lengths": {"size": size, "counts": lengths},
        "polygon": [[3.5, 2.0, 30.25, 4.0, 20.0, 33.0]],
        "polygons": [[3, 2, 30, 4, 20, 33], [40.0, 30.0, 52.5, 30.0, 45.0, 41.0]],
    }


@pytest.mark.parametrize("form", ["bytes", "text", "lengths", "polygon", "polygons"])
def test_each_form_as_pycocotools_reads_it(form: str) -> None:
    segmentation = forms()[form]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "annotations": [],
        "categories": [],
    }
    coco.createIndex()
    expected = coco.annToMask({"image_id": 1, "segmentation": segmentation})
    assert expected.any()
    assert np.array_equal(coco_mask.decode(rle_of(segmentation, HEIGHT, WIDTH)), expected)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "a list of polygons, or size and counts"),
        ({"size": [HEIGHT, WIDTH]}, "a list of polygons, or size and counts"),
        ({"size": [WIDTH, HEIGHT], "counts": [2000]}, r"of size \[50, 40\], but the image has \[40, 50\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [1999]}, "do not sum to 40 x 50"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 2001]}, "do not sum to 40 x 50"),
        ({"size": [HEIGHT, WIDTH], "counts": [999.5, 1000.5]}, "must be integers"),
        ({"size": [HEIGHT, WIDTH], "counts": "11"}, "do not sum to 40 x 50"),
        ({"size": [HEIGHT, WIDTH], "counts": "o"}, "run lengths end early"),
        ({"size": [HEIGHT, WIDTH], "counts": "ü"}, "invalid character"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 9}, "invalid character"),
        ({"size": [HEIGHT, WIDTH], "counts": "N"}, "negative run length"),
        ([], "has no polygon"),
        ([[1, 1, 2, 2]], "at least three points"),
        ([[1, 1, 2, 2, 3, 3, 4]], "at least three points"),
        ([[1, 1, 2, 2, 3, float("nan")]], "polygon coordinate nan in"),
        ([[1, 1, 2, 2, 3, 1e9]], "polygon coordinate 1000000000.0 in"),
        ([["1", 1, 2, 2, 3, 3]], "polygon coordinate '1' in"),
    ],
)
def test_what_is_no_mask_has_a_reason(segmentation: object, reason: str) -> None:
    with pytest.raises(ItemError, match=reason):
        rle_of(segmentation, HEIGHT, WIDTH)
