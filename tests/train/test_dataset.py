"""Images in memory: masks as COCO decodes them, splits by content and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from segray.data.splits import split_of
from segray.train.dataset import InstanceImage, load_coco, split_images
from tests.train.cells import write_cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("data") / "cells", images=12)


def names(splits: dict[str, list[InstanceImage]]) -> dict[str, list[str]]:
    return {split: [image.name for image in images] for split, images in splits.items()}


def test_every_mask_is_there_as_coco_decodes_it(folder: Path) -> None:
    images, categories = load_coco(folder)
    truth = json.loads((folder / "instances.json").read_text())
    ids = {entry["file_name"]: entry["id"] for entry in truth["images"]}
    assert categories == {4: "cell"}
    assert len(images) == 12
    for image in images:
        rows = [row for row in truth["annotations"] if row["image_id"] == ids[image.name]]
        assert image.categories.tolist() == [4] * len(rows)
        for number, row in enumerate(rows, start=1):
            expected = coco_mask.decode(row["segmentation"]).astype(bool)
            assert np.array_equal(image.instances.numpy() == number, expected)


def test_crowds_are_left_out(folder: Path, tmp_path: Path) -> None:
    copy = write_cells(tmp_path / "cells", images=1)
    truth = json.loads((copy / "instances.json").read_text())
    truth["annotations"][0]["iscrowd"] = 1
    (copy / "instances.json").write_text(json.dumps(truth))
    assert len(load_coco(copy)[0][0].categories) == len(truth["annotations"]) - 1


def test_splits_depend_on_content_only(folder: Path, tmp_path: Path) -> None:
    """Other order, other ids, other names: the same pixels fall into the same split."""
    images, _ = load_coco(folder)
    truth = json.loads((folder / "instances.json").read_text())
    renamed = tmp_path / "renamed"
    (renamed / "images").mkdir(parents=True)
    for entry in truth["images"]:
        content = (folder / "images" / entry["file_name"]).read_bytes()
        entry["file_name"] = f"z{100 - entry['id']}.png"
        (renamed / "images" / entry["file_name"]).write_bytes(content)
    truth["images"].reverse()
    (renamed / "instances.json").write_text(json.dumps(truth))
    here, there = split_images(images, seed=3), split_images(load_coco(renamed)[0], seed=3)
    for split in ("train", "val", "test"):
        assert [image.digest for image in here[split]] == [image.digest for image in there[split]]
        for one, other in zip(here[split], there[split], strict=True):
            assert torch.equal(one.pixels, other.pixels)


def test_the_seed_deals_anew_and_nothing_is_lost(folder: Path) -> None:
    images, _ = load_coco(folder)
    deals = [names(split_images(images, seed=seed)) for seed in range(3)]
    assert deals[0] != deals[1]
    for deal in deals:
        dealt = [name for split in deal.values() for name in split]
        assert sorted(dealt) == sorted(image.name for image in images)


def test_a_split_that_the_data_names_is_kept(tmp_path: Path) -> None:
    """Whatever the seed; images without one are dealt as ever, and a name that is no split is refused."""
    copy = write_cells(tmp_path / "cells", images=12)
    truth = json.loads((copy / "instances.json").read_text())
    named = {"cells-0.png": "test", "cells-1.png": "val", "cells-2.png": "train"}
    for entry in truth["images"]:
        if entry["file_name"] in named:
            entry["split"] = named[entry["file_name"]]
    (copy / "instances.json").write_text(json.dumps(truth))
    images, _ = load_coco(copy)
    for seed in range(4):
        dealt = split_images(images, seed=seed)
        for split, found in dealt.items():
            for image in found:
                assert split == named.get(image.name, split_of(image.digest, seed=seed))
        assert sum(map(len, dealt.values())) == 12
    truth["images"][0]["split"] = "training"
    (copy / "instances.json").write_text(json.dumps(truth))
    with pytest.raises(ValueError, match="'training' is none of train, val, test"):
        load_coco(copy)


def test_shares_are_kept_over_many_images() -> None:
    dealt = [split_of(f"{number:064x}", seed=1, val_share=0.1, test_share=0.3) for number in range(4000)]
    assert dealt.count("test") / 4000 == pytest.approx(0.3, abs=0.03)
    assert dealt.count("val") / 4000 == pytest.approx(0.1, abs=0.02)
