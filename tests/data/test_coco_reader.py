"""COCO JSON -> listing, examples, batches: as pycocotools decodes it, and nothing vanishes."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from segray.arrow_rows import packed as packed_table
from segray.arrow_rows import unpacked
from segray.data.coco_listing import CocoListing, list_coco
from segray.data.pair_reader import CocoExample, CocoReading
from segray.data.pair_table import pair_table, pairs_at
from segray.errors import ItemError, SettingsError
from segray.storage import StorageSettings
from segray.train.collate import SAMPLES, sample_row, samples_in
from segray.train.sampler import order_of, repeats_of
from segray.train.transforms.instance import CropSettings, InstanceBatch, InstanceTransform, layered
from segray.train.transforms.strength import AugmentSettings
from tests.train.cells import write_cells
from tests.train.coco import HEIGHT, WIDTH, write_mixed

STORAGE = StorageSettings()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "data")


def examples(listing: CocoListing) -> list[CocoExample | ItemError]:
    """By way of the table that the loaders share."""
    reader = CocoReading(listing.categories, 10_000, STORAGE).reader()
    table = pair_table(listing.pairs)
    return reader.read(pairs_at(table, range(table.num_rows)))


def batch(transform: InstanceTransform, example: CocoExample, epoch: int | None) -> InstanceBatch:
    """By way of the table that a loader gives."""
    arrays = transform.scoring(example) if epoch is None else transform.training(example, epoch, "item")
    table = pa.Table.from_pylist([sample_row("x", arrays)], SAMPLES)
    (packed,) = unpacked(packed_table(table))
    return transform.collate(samples_in(packed))


def transform(preset: str = "off", seed: int = 0) -> InstanceTransform:
    augment = AugmentSettings.model_validate({"preset": preset})
    return InstanceTransform(CropSettings(64, 64, smallest_area=1), augment, (3, 7), seed)


def test_masks_are_those_of_pycocotools(truth: Path) -> None:
    with redirect_stdout(io.StringIO()):
        oracle = COCO(str(truth))
    expected = {number: oracle.annToMask(row) > 0 for number, row in oracle.anns.items()}
    (example,) = examples(list_coco(str(truth), STORAGE))
    assert isinstance(example, CocoExample)
    assert [each.crowd for each in example.instances] == [False] * 4 + [True]
    assert [each.category for each in example.instances] == [7, 7, 3, 3, 7]
    maps, places = layered([each.mask for each in example.instances if each.mask], (HEIGHT, WIDTH))
    assert 1 < len(maps) < 5  # some overlap
    for number, place in enumerate(places):
        assert np.array_equal(maps[place] == number + 1, expected[10 + number])


def test_crowds_are_no_targets_and_are_scored_as_crowds(truth: Path) -> None:
    (example,) = examples(list_coco(str(truth), STORAGE))
    assert isinstance(example, CocoExample)
    (trained,) = batch(transform(), example, 0).pictures
    assert sorted(trained.target["labels"].tolist()) == [1, 1, 2, 2]  # ids 3 and 7 in ascending order
    (scored,) = batch(transform(), example, None).pictures
    assert [each["crowd"] for each in scored.truth] == [False] * 4 + [True]
    assert np.array_equal(scored.pixels.permute(1, 2, 0).numpy(), example.pixels)
    assert scored.size == (HEIGHT, WIDTH)


def test_a_target_comes_over_whole(truth: Path) -> None:
    (example,) = examples(list_coco(str(truth), STORAGE))
    assert isinstance(example, CocoExample)
    pixels, target = transform("strong").target(example, 3, "item")
    (picture,) = batch(transform("strong"), example, 3).pictures
    assert torch.equal(picture.pixels, pixels)
    for name, value in target.items():
        assert torch.equal(picture.target[name], value), name
    assert target["masks"].sum() > 0


def test_what_is_drawn_follows_from_seed_epoch_and_item(truth: Path) -> None:
    (example,) = examples(list_coco(str(truth), STORAGE))
    assert isinstance(example, CocoExample)

    def drawn(seed: int, epoch: int, item: str) -> torch.Tensor:
        torch.rand(seed + epoch + 1)  # the state of the process does not matter
        return transform("strong", seed).target(example, epoch, item)[0]

    first = drawn(0, 0, "a")
    assert torch.equal(first, drawn(0, 0, "a"))
    for other in ((1, 0, "a"), (0, 1, "a"), (0, 0, "b")):
        assert not torch.equal(first, drawn(*other)), other


def test_nothing_vanishes(tmp_path: Path) -> None:
    """A broken picture, one of another size, a bad annotation, one that is not there, one listed twice."""
    folder = write_cells(tmp_path / "cells", images=6)
    file = folder / "instances.json"
    content = json.loads(file.read_text())
    (folder / "images/cells-0.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 30)).save(folder / "images/cells-1.png")
    bad = next(each for each in content["annotations"] if each["image_id"] == 2)
    bad["segmentation"] = [[1, 2, 3, 4, 5, "x"]]
    (folder / "images/cells-3.png").unlink()
    content["images"].append({**content["images"][4], "id": 99})
    file.write_text(json.dumps(content))
    listing = list_coco(str(folder), STORAGE)
    assert [one.reason for one in listing.rejected] == ["no_image", "listed_twice"]
    found = dict(zip((pair.name for pair in listing.pairs), examples(listing), strict=True))
    assert list(found) == [f"cells-{number}.png" for number in (0, 1, 2, 4, 5)]
    reasons = [each.reason for each in found.values() if isinstance(each, ItemError)]
    assert len(reasons) == 3
    assert reasons[1] == "the image is 20 x 30, its COCO entry 96 x 96"
    assert "polygon coordinate 'x' in an image of 96 x 96" in reasons[2]


NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize("form", [float, str, lambda number: f"{number}.0"])
@pytest.mark.parametrize("of", ["images", "annotations", "both"])
def test_whole_numbers_as_other_programs_write_them(of: str, form: Any, tmp_path: Path) -> None:
    """As pandas, R and JavaScript do; the area, which training does not use, may be none."""
    folder = write_cells(tmp_path / "cells", images=3)
    file = folder / "instances.json"
    before = examples(list_coco(str(folder), STORAGE))
    content = json.loads(file.read_text())
    for image in content["images"] if of != "annotations" else ():
        image.update({name: form(image[name]) for name in ("id", "height", "width")})
    for category in content["categories"] if of != "annotations" else ():
        category["id"] = form(category["id"])
    for each in content["annotations"] if of != "images" else ():
        each.update({name: form(each[name]) for name in ("image_id", "category_id")})
        each.update(iscrowd=form(0), area=NOT_A_NUMBER)
    file.write_text(json.dumps(content))
    listing = list_coco(str(folder), STORAGE)
    assert listing.ignored == 0
    for old, new in zip(before, examples(listing), strict=True):
        assert isinstance(old, CocoExample)
        assert isinstance(new, CocoExample)
        assert [(each.mask, each.category, each.crowd) for each in new.instances] == [
            (each.mask, each.category, each.crowd) for each in old.instances
        ]


def test_run_lengths_with_points(tmp_path: Path) -> None:
    folder = write_cells(tmp_path / "cells", images=1)
    content = json.loads((folder / "instances.json").read_text())
    for number, lengths in enumerate(([10.0, 5.0, 9201.0], [10.5, 5.0, 9200.5])):
        content["annotations"][number]["segmentation"] = {"size": [96, 96], "counts": lengths}
        (folder / "instances.json").write_text(json.dumps(content))
        (example,) = examples(list_coco(str(folder), STORAGE))
        if number == 0:
            assert isinstance(example, CocoExample)
            assert mask.area(example.instances[0].mask) == 5
        else:
            assert isinstance(example, ItemError)
            assert example.reason.endswith("run lengths must be integers")


def test_annotations_without_a_mask_are_left_out_and_counted(tmp_path: Path) -> None:
    """Their picture and its other objects stay."""
    folder = write_cells(tmp_path / "cells", images=2, cells=6)
    content = json.loads((folder / "instances.json").read_text())
    first = [each for each in content["annotations"] if each["image_id"] == 0]
    first[0]["segmentation"], first[1]["segmentation"] = [], None
    first[2]["segmentation"] = [[1, 1, 2, 2]]
    del first[3]["segmentation"]
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    first[4]["segmentation"] = [square, [5, 5, 6, 6]]
    (folder / "instances.json").write_text(json.dumps(content))
    listing = list_coco(str(folder), STORAGE)
    assert listing.without_mask == 4
    assert "4 annotations without a mask left out" in listing.summary()
    one, other = examples(listing)
    assert isinstance(one, CocoExample)
    assert isinstance(other, CocoExample)
    assert (len(one.instances), len(other.instances)) == (2, 6)
    assert mask.area(one.instances[0].mask) == 100


def test_annotations_of_images_that_are_not_listed(tmp_path: Path) -> None:
    folder = write_cells(tmp_path / "cells", images=2)
    content = json.loads((folder / "instances.json").read_text())
    for each in content["annotations"]:
        each["image_id"] += 1
    (folder / "instances.json").write_text(json.dumps(content))
    assert "6 annotations of images that the file does not list" in list_coco(str(folder), STORAGE).summary()
    for each in content["annotations"]:
        each["image_id"] = f"image {each['image_id']}"
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"none of its 12 annotations .* image_id 'image 1'"):
        list_coco(str(folder), STORAGE)
    content["annotations"] = []
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(SettingsError, match="no annotations with a mask"):
        list_coco(str(folder), STORAGE)


def test_groups_that_images_name(truth: Path, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes((truth.parent / "one.png").read_bytes())
    content, truth = json.loads(truth.read_text()), tmp_path / "truth.json"
    for given, group in (("street 5", "street 5"), (7, "7"), ("", None), (None, None)):
        content["images"][0]["group"] = given
        truth.write_text(json.dumps(content))
        assert [pair.group for pair in list_coco(str(truth), STORAGE).pairs] == [group]
    content["images"][0]["group"] = [7]
    truth.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"#image=1: group '\[7\]' is neither text nor a whole number"):
        list_coco(str(truth), STORAGE)


def test_names_are_relative_to_the_file_or_to_root(truth: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(truth.read_bytes())
    with pytest.raises(SettingsError, match="none of its 1 images exists; set with --root"):
        list_coco(str(moved), STORAGE)
    (pair,) = list_coco(str(moved), STORAGE, str(truth.parent)).pairs
    assert (pair.name, pair.image.address) == ("one.png", str(truth.parent / "one.png"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": []}, "it has no categories"),
        ({"annotations": None}, "it needs images, annotations and categories"),
        (
            {"images": [{"id": 1, "file_name": "one.png", "height": 60, "width": 80, "split": "all"}]},
            "split 'all'",
        ),
    ],
)
def test_what_is_no_coco_is_told(truth: Path, tmp_path: Path, change: dict[str, object], words: str) -> None:
    (tmp_path / "one.png").write_bytes((truth.parent / "one.png").read_bytes())
    (tmp_path / "truth.json").write_text(json.dumps(json.loads(truth.read_text()) | change))
    with pytest.raises(SettingsError, match=words):
        list_coco(str(tmp_path / "truth.json"), STORAGE)


def test_a_folder_without_coco_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data is a COCO \.json, or a folder with instances\.json"):
        list_coco(str(tmp_path), STORAGE)


def test_rare_kinds_come_more_often_and_the_rest_follows_from_the_seed() -> None:
    """Ten pictures of one kind, a thousand of another: by the roots, one in eleven draws each epoch."""
    weights = np.array([10**-0.5] * 10 + [1000**-0.5] * 1000)
    repeats = weights / weights.mean()
    orders = [order_of(1010, 0, epoch, repeats) for epoch in range(20)]
    assert all(len(order) == 1010 for order in orders)
    assert np.array_equal(orders[3], order_of(1010, 0, 3, repeats))
    assert not np.array_equal(orders[3], order_of(1010, 1, 3, repeats))
    assert np.mean(np.concatenate(orders) < 10) == pytest.approx(1 / 11, abs=0.01)


def test_repeats_count_what_came_before() -> None:
    order = np.array([4, 1, 4, 4, 0, 1])
    expected = [list(order[:place]).count(item) for place, item in enumerate(order)]
    assert repeats_of(order).tolist() == expected
