"""The sample is exact, stable and bounded; outlines are the masks."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from segray.preview.ledger import instance_files_of, offer_instances, read_ledger
from segray.preview.outlines import UNIT, rings_of
from segray.preview.runs import find_run
from segray.preview.sample import Sampler, Stratum, key_of, keys_of
from segray.storage import StorageSettings
from tests.preview import made


@pytest.mark.parametrize("batch", [1, 7, 1_000])
def test_a_stratum_keeps_the_smallest_keys_in_bounded_memory(batch: int) -> None:
    ids = [f"image {number}" for number in range(1_000)]
    stratum = Stratum(10)
    for first in range(0, len(ids), batch):
        some = ids[first : first + batch]
        stratum.offer(some, keys_of(some))
        assert len(stratum.keys) <= max(2 * 10 + 64, batch)
    digest = {each: hashlib.blake2b(each.encode(), digest_size=6).digest() for each in ids}
    assert stratum.first() == sorted(ids, key=lambda each: digest[each])[:10]


def test_the_sample_of_a_run_holds_every_stratum_and_the_least_sure(tmp_path: Path) -> None:
    run = find_run(str(made.many(tmp_path / "run", images=60, each=20)), StorageSettings())
    chosen = []
    for _ in range(2):
        sampler = Sampler(24)
        read_ledger(run, sampler)
        offer_instances(run, instance_files_of(run), sampler)
        chosen.append(sampler.chosen())
    assert chosen[0] == chosen[1]
    assert list(chosen[0]) == list(chosen[1])
    assert len(chosen[0]) == 24
    reasons = set(chosen[0].values())
    assert {"a random image", "least sure", "small instances"} <= reasons
    assert any(reason.startswith("score ") for reason in reasons)
    assert any(reason.startswith("class ") for reason in reasons)
    import pandas as pd

    means = pd.read_parquet(tmp_path / "run/instances").groupby("image_id").score.mean()
    assert set(means.nsmallest(3).index) <= set(chosen[0])


def test_a_sample_as_large_as_the_run_is_all_of_it() -> None:
    sampler, ids = Sampler(50), [f"{number}" for number in range(30)]
    sampler.offer("any", "any", ids, keys_of(ids))
    assert sorted(sampler.chosen()) == sorted(ids)
    assert all(0 <= key_of(each) < 1 for each in ids)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_rings_filled_by_another_program_are_the_masks(scale: float) -> None:
    ring = made.ellipse(40, 60, 30, 40) - made.ellipse(40, 60, 12, 15)
    two = made.ellipse(20, 30, 15, 20) | made.ellipse(65, 90, 15, 20)
    masks = [ring, two, made.ellipse(40, 60, 38, 50)]
    texts = [coco.encode(np.asfortranarray(each))["counts"].decode() for each in masks]
    for mask, rings in zip(masks, rings_of(texts, made.HEIGHT, made.WIDTH, scale), strict=True):
        assert rings is not None
        assert len(rings) == (1 if mask is masks[2] else 2)
        points = [np.array(each).reshape(-1, 2) / UNIT / scale for each in rings]
        assert all(len(each) < 100 for each in points)
        # corners of pixels to OpenCV's centres, at eight times the size
        drawn = np.zeros((made.HEIGHT * 8, made.WIDTH * 8), np.uint8)
        cv2.fillPoly(drawn, [np.rint(each * 8).astype(np.int32) for each in points], [1])
        large = np.kron(mask, np.ones((8, 8), np.uint8))
        assert (drawn & large).sum() / (drawn | large).sum() > (0.95 if scale == 1 else 0.9)


def test_broken_run_lengths_cost_that_instance() -> None:
    good = coco.encode(np.asfortranarray(made.ellipse(40, 60, 20, 20)))["counts"].decode()
    first, second, third, fourth = rings_of(["", good, "é!", good[:-3]], made.HEIGHT, made.WIDTH, 1.0)
    assert (first, third, fourth) == (None, None, None)
    assert second
