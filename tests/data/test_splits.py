"""Splits by content: independent of order and names, true to their shares, near-duplicates together."""

import hashlib
import io
import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segray.data.look_alikes import ALIKE, near_duplicates, perceptual_hash
from segray.data.pair_reader import digest_of
from segray.data.pairs import Pair
from segray.data.splits import (
    SplitRule,
    groups_of,
    split_groups,
    split_of,
)
from segray.sources.item import Source

Pixels = npt.NDArray[np.uint8]
NUCLEI = Path(__file__).parents[1] / "data/nuclei/images"
DIGESTS = [hashlib.sha256(f"picture {number}".encode()).hexdigest() for number in range(10_000)]


def pair(name: str, split: str | None = None) -> Pair:
    image, label = (Source(f"file:///{kind}/{name}", f"/{kind}/{name}", "file", "1", 1) for kind in "im")
    return Pair(name, name, image, label, split)


def within(found: int, count: int, share: float) -> bool:
    """Within five standard deviations of a binomial."""
    return abs(found - count * share) <= 5 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize(("val_share", "test_share"), [(0.12, 0.18), (0.05, 0.0), (0.3, 0.3)])
def test_shares(val_share: float, test_share: float) -> None:
    for seed in (1, 2):
        rule = SplitRule(seed, val_share, test_share)
        counts = Counter(rule.split_by(None, digest) for digest in DIGESTS)
        assert within(counts["val"], 10_000, val_share)
        assert within(counts["test"], 10_000, test_share)
        assert counts.total() == 10_000


def test_seeds_deal_independently() -> None:
    """Of what one seed tests, another one tests its usual share."""
    first, second = (
        [SplitRule(seed).split_by(None, digest) == "test" for digest in DIGESTS] for seed in (1, 2)
    )
    both = sum(one and other for one, other in zip(first, second, strict=True))
    assert within(both, sum(first), 0.18)


def test_content_alone_decides() -> None:
    """The oracle is `split_of` of hashlib's digest; the name, the order and the other pairs are nothing."""
    contents = {f"{n}.png": f"content {n % 40}".encode() for n in range(80)}
    pairs = [pair(name) for name in contents]
    rule = SplitRule.of(pairs, seed=5)
    expected = {
        name: split_of(hashlib.sha256(content).hexdigest(), seed=5) for name, content in contents.items()
    }
    assert {one.name: rule.split(one, contents[one.name]) for one in pairs} == expected
    assert len(set(expected.values())) == 3
    random.Random(1).shuffle(pairs)
    for some in (pairs, pairs[:7]):
        rule = SplitRule.of(some, seed=5)
        assert all(rule.split(one, contents[one.name]) == expected[one.name] for one in some)


def test_named_splits_stay_and_the_rest_is_dealt() -> None:
    named = {"a": "test", "b": "val", "c": "train"}
    rule = SplitRule.of([pair(name, split) for name, split in named.items()] + [pair("d")], seed=3)
    for digest in DIGESTS[:200]:
        assert all(rule.split_by(split, digest) == split for split in named.values())
        assert rule.split_by(None, digest) == split_of(digest, seed=3)


@pytest.mark.parametrize("others", [[], ["test"]])
def test_val_comes_out_of_train_where_it_is_not_named(others: list[str]) -> None:
    rule = SplitRule.of(
        [pair("a", "train"), *(pair(split, split) for split in others)], seed=3, val_share=0.2
    )
    counts = Counter(rule.split_by("train", digest) for digest in DIGESTS)
    assert set(counts) == {"train", "val"}
    assert within(counts["val"], 10_000, 0.2)
    assert rule.split_by("test", DIGESTS[0]) == "test"
    assert not SplitRule.of([pair("a"), pair("b", "test")], seed=3).val_from_train


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(pixels: Pixels, factor: float) -> Pixels:
    height, width = pixels.shape[:2]
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def crops() -> list[Pixels]:
    """Regions of real pictures that have nothing in common: the four quarters of each."""
    found = []
    for path in sorted(NUCLEI.iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        rows, cols = pixels.shape[0] // 2, pixels.shape[1] // 2
        found += [pixels[r : r + rows, c : c + cols] for r in (0, rows) for c in (0, cols)]
    return found


def test_copies_of_a_photo_are_one_group_and_others_are_not() -> None:
    """Each region with two JPEG forms, two sizes and its grey form: groups are the regions, nothing else."""
    hashes, regions = [], []
    for region, pixels in enumerate(crops()):
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        for copy in (
            pixels,
            jpeg(pixels, 95),
            jpeg(pixels, 90),
            resized(pixels, 0.8),
            resized(pixels, 1.5),
            grey,
        ):
            hashes.append(perceptual_hash(copy))
            regions.append(region)
    groups = near_duplicates(hashes)
    assert len(set(regions)) == 44
    together = set(zip(regions, groups.tolist(), strict=True))
    assert len(together) == 44
    assert len(set(groups.tolist())) == 44


def test_the_hash_is_the_differences_of_a_small_picture() -> None:
    """Flat blocks of 32 x 32, whose averages are known: one loop over 8 x 9 of them."""
    small = np.random.default_rng(3).integers(0, 256, (8, 9), dtype=np.uint8)
    small[:, 1::2] //= 2  # differences large enough for any filter
    small[:, ::2] = 255 - small[:, ::2] // 4
    big = small.repeat(32, axis=0).repeat(32, axis=1)
    expected = 0
    for row in small.tolist():
        for left, right in itertools.pairwise(row):
            expected = 2 * expected + (right > left)
    assert perceptual_hash(big) == expected
    assert perceptual_hash(np.stack([big] * 3, axis=-1)) == expected
    assert perceptual_hash(np.zeros((5, 7, 3), np.uint8)) == 0
    rising = np.arange(256, dtype=np.uint8)[None].repeat(20, axis=0)
    assert perceptual_hash(rising) == 2**64 - 1


def grouped_by_hand(hashes: list[int], distance: int) -> list[int]:
    """Leaders one after the other, each photo compared with all of them."""
    leaders = list[int]()
    for code, _ in sorted(Counter(hashes).items(), key=lambda item: (-item[1], item[0])):
        if all((code ^ leader).bit_count() > distance for leader in leaders):
            leaders.append(code)
    away = [[(code ^ leader).bit_count() for leader in leaders] for code in hashes]
    return [bits.index(min(bits)) for bits in away]


@pytest.mark.parametrize("distance", [0, 2, ALIKE])
def test_groups_are_those_of_a_loop(distance: int) -> None:
    """Hashes a few bits around some centres, chains among them, in any order."""
    draw = random.Random(distance)
    hashes = []
    for _ in range(30):
        code = draw.getrandbits(64)
        for _ in range(draw.randrange(1, 9)):
            hashes.append(code)
            for _ in range(draw.randrange(7)):
                code ^= 1 << draw.randrange(64)
    for _ in range(3):
        draw.shuffle(hashes)
        groups = near_duplicates(hashes, distance).tolist()
        assert groups == grouped_by_hand(hashes, distance)
        assert 1 < len(set(groups)) < len(hashes)


def test_no_chains() -> None:
    """Each a bit from the one before, as the frames of a camera that turns."""
    chain = [2**number - 1 for number in range(64)]
    groups = near_duplicates(chain).tolist()
    for group in set(groups):
        together = [code for code, each in zip(chain, groups, strict=True) if each == group]
        assert max((one ^ other).bit_count() for one in together for other in together) <= 2 * ALIKE
    assert len(set(groups)) > 4


@pytest.mark.parametrize("distance", [2, ALIKE])
@pytest.mark.parametrize("kind", ["all apart", "all the same", "half the same", "all close"])
def test_many_photos_are_not_compared_with_all(kind: str, distance: int) -> None:
    """The comparisons are counted: all with all were 100 million."""
    number = 10_000
    codes = np.random.default_rng(0).integers(0, 2**63, number, dtype=np.uint64)
    codes |= np.uint64(1 << 63)
    if kind == "all close":
        codes = np.arange(number, dtype=np.uint64)
    elif kind != "all apart":
        codes[:: 1 if kind == "all the same" else 2] = 0
    with mock.patch.object(np, "bitwise_count", wraps=np.bitwise_count) as counted:
        groups = near_duplicates(codes.tolist(), distance)
    found = len(set(groups.tolist()))
    assert {"all apart": found == number, "half the same": found == number // 2 + 1}.get(kind, found < 2000)
    assert sum(call.args[0].size for call in counted.call_args_list) < number**2 / 20


def test_a_group_that_the_data_name_goes_before_likeness() -> None:
    """What looks alike stays apart for it, and what does not comes together."""
    named = ["b", "a", None, None, "b", None]
    pairs = [replace(pair(f"{index}"), group=group) for index, group in enumerate(named)]
    likeness = [0, 0, 0, 1, 2**64 - 1, 2**32 - 1]
    groups = {kind: groups_of(pairs, likeness, kind).tolist() for kind in ("loose", "strict", "off")}
    assert groups["loose"] == groups["strict"] == [0, 1, 2, 2, 0, 5]
    assert groups["off"] == [0, 1, 2, 3, 0, 5]
    assert groups_of(pairs, [0, 0, 0, 7, 0, 0]).tolist() == [0, 1, 2, 2, 0, 2]
    assert groups_of(pairs, [0, 0, 0, 7, 0, 0], "strict").tolist() == [0, 1, 2, 3, 0, 2]


def splits_of(pairs: list[Pair], groups: list[int], seed: int = 1, **options: Any) -> list[str]:
    digests = [digest_of(one.name.encode()) for one in pairs]
    return split_groups(SplitRule.of(pairs, seed, **options), pairs, digests, np.array(groups))


def test_a_group_is_dealt_by_its_smallest_digest() -> None:
    pairs = [pair(f"{number}") for number in range(3000)]
    groups = [number // 3 for number in range(3000)]
    splits = splits_of(pairs, groups)
    for group in range(1000):
        members = slice(3 * group, 3 * group + 3)
        digest = min(hashlib.sha256(one.name.encode()).hexdigest() for one in pairs[members])
        assert splits[members] == [split_of(digest, seed=1)] * 3
    assert within(splits.count("test") // 3, 1000, 0.18)
    order = random.Random(2).sample(range(3000), 3000)
    again = splits_of([pairs[index] for index in order], [groups[index] for index in order])
    assert again == [splits[index] for index in order]


def test_without_likeness_each_is_dealt_alone() -> None:
    pairs = [pair(f"{number}") for number in range(200)]
    rule = SplitRule.of(pairs, 1)
    assert splits_of(pairs, list(range(200))) == [rule.split(one, one.name.encode()) for one in pairs]


def test_named_splits_of_a_group() -> None:
    """What is named stays; what is not follows, to where it is not trained on."""
    names: list[str | None] = ["train", "val", "test", None, "train", None, "val", None]
    pairs = [pair(f"{number}", split) for number, split in enumerate(names)]
    for seed in range(5):
        splits = splits_of(pairs, [0, 0, 0, 0, 1, 1, 2, 2], seed)
        assert splits == ["train", "val", "test", "test", "train", "train", "val", "val"]


def test_val_out_of_train_takes_whole_groups() -> None:
    pairs = [pair(f"{number}", "train") for number in range(1000)]
    splits = splits_of(pairs, [number // 2 for number in range(1000)], val_share=0.3)
    assert splits[::2] == splits[1::2]
    assert within(splits[::2].count("val"), 500, 0.3)
