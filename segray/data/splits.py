"""The split of a pair: the one that the data name, else by the content of its image and the seed.

    a split that is named      kept
    none is named              train, val or test by `split_of` of the sha256 of the image's bytes
    train is named, val never  val is split off from train, by the same hash

So a split depends neither on names nor on the order of a listing nor on the number of workers, and added
images move no other. Photos that look alike share a split, unless `group_look_alikes` says otherwise:
`near_duplicates` finds them; likewise images to which the data give one `group`, alike or not.
`split_groups` puts a group into one split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.data.look_alikes import LookAlikes
from segray.data.pair_reader import digest_of
from segray.data.pairs import Pair

SPLITS = ("train", "val", "test")
ALIKE = 5
"""Bits of 64. Measured on 366 photos, streets and aerial images, each as JPEG of quality 50 and 90, at half
its size, and at 0.7 as JPEG: 1 in 100 moved by more than 2 bits, none by more than 5. Of 28,027 pairs of
images of different things, only a file that was there twice was within 10 bits; of 64,620 pairs of nuclei,
one pair was 6 bits apart, none less. Copies of images with an empty background move further (nuclei at
quality 50: by 10 bits or more 1 in 100) and may be missed."""
DISTANCES: dict[LookAlikes, int] = {"loose": ALIKE, "strict": 2}


def split_of(digest: str, *, seed: int, val_share: float = 0.12, test_share: float = 0.18) -> str:
    """Return `train`, `val` or `test` from an image's content alone, so order and names never matter.

    `digest` is the sha256 of the file's bytes; another seed, another split.
    """
    drawn = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    position = int.from_bytes(drawn[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Assigns pairs to splits, one by one; the same pair always to the same split."""

    seed: int
    val_share: float = 0.12
    """Val share of the pairs without a named split; of train, where val is split off from it."""
    test_share: float = 0.18
    val_from_train: bool = False
    """The data name pairs to train with, but none for val."""

    @classmethod
    def of(
        cls, pairs: Iterable[Pair], seed: int, val_share: float = 0.12, test_share: float = 0.18
    ) -> "SplitRule":
        """Return the rule for all the pairs of a listing."""
        named = {pair.split for pair in pairs}
        return cls(seed, val_share, test_share, "train" in named and "val" not in named)

    def split(self, pair: Pair, content: bytes) -> str:
        """Return `train`, `val` or `test`; `content` is the file of the pair's image."""
        return self.split_by(pair.split, digest_of(content))

    def split_by(self, named: str | None, digest: str) -> str:
        """Return the split from the one that the data name (or None) and the image's sha256 in hex."""
        if named is None:
            return split_of(digest, seed=self.seed, val_share=self.val_share, test_share=self.test_share)
        if named == "train" and self.val_from_train:
            return split_of(digest, seed=self.seed, val_share=self.val_share, test_share=0.0)
        return named


def groups_of(
    pairs: Sequence[Pair], likeness: Sequence[int], look_alikes: LookAlikes = "loose"
) -> NDArray[np.int64]:
    """Return (pairs,) int64, the group of each: as the data name it, else its look-alikes, else (`off`)
    itself.

    likeness: `perceptual_hash` of each image. Images with a named group are not compared with others.
    """
    groups = np.arange(len(pairs))
    unnamed = np.array([index for index, pair in enumerate(pairs) if pair.group is None], np.int64)
    if look_alikes != "off" and len(unnamed):
        found = near_duplicates([likeness[index] for index in unnamed], DISTANCES[look_alikes])
        _, first = np.unique(found, return_index=True)
        groups[unnamed] = unnamed[first[found]]
    named: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        if pair.group is not None:
            groups[index] = named.setdefault(pair.group, index)
    return groups


def split_groups(
    rule: SplitRule, pairs: Sequence[Pair], digests: Sequence[str], groups: NDArray[np.int64]
) -> list[str]:
    """Return the split of each pair, one for a group: by the smallest digest of the group's images.

    `groups` (pairs,) int64 as `groups_of` returns it. Splits that the data name stay; pairs without a split
    follow the others of their group, into test rather than val, into val rather than train.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    splits = [""] * len(pairs)
    for indices in members.values():
        digest = min(digests[index] for index in indices)
        named = max((pairs[index].split for index in indices), key=_held_out)
        for index in indices:
            splits[index] = rule.split_by(pairs[index].split or named, digest)
    return splits


def _held_out(split: str | None) -> int:
    return -1 if split is None else SPLITS.index(split)


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """Return the 64-bit dHash of an image, uint8 (height, width, 3) RGB or (height, width) grey.

    Neal Krawetz, "Kind of Like That", 2013
    (https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html): shrunk to 9 x 8 grey
    pixels, a bit for each two neighbours in a row, set where the right one is brighter; rows from the top,
    the first bit highest. Shrunk with Lanczos as the library ImageHash 4.3.2 does (its `dhash` gives the same
    bits): with a box, half the size moved a photo by up to 6 bits instead of 3.
    Rotated, mirrored and cropped images have other hashes; those without any contrast all have 0.
    """
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    grey = np.asarray(small)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def near_duplicates(hashes: Sequence[int], distance: int = ALIKE) -> NDArray[np.int64]:
    """Return (n,) int64, the group of each photo: that of the nearest leader, at most `distance` bits away.

    The photos whose hash occurs most often become leaders first, then those of smaller hashes, unless an
    earlier leader is within `distance`. So photos of a group differ by 2 x `distance` at most: no chains.
    Groups are numbered from 0 in the order of their leaders.
    """
    codes, index, times = np.unique(np.array(hashes, np.uint64), return_inverse=True, return_counts=True)
    near = _Near(codes, distance)
    group = np.full(len(codes), -1)
    away = np.full(len(codes), distance + 1)
    count = 0
    for leader in np.lexsort((codes, -times)).tolist():
        if group[leader] < 0:
            others, bits = near.of(leader)
            closer = bits < away[others]
            group[others[closer]], away[others[closer]] = count, bits[closer]
            count += 1
    return group[index]


class _Near:
    """Finds codes few bits apart without comparing all pairs.

    Cut into one more part than bits may differ, two of them agree in a part (multi-index hashing, Norouzi,
    Punjani and Fleet, 2012). The bits that separate most codes are assigned to the parts in turn.
    """

    def __init__(self, codes: NDArray[np.uint64], distance: int) -> None:
        self._codes, self._distance = codes, distance
        one, parts = np.uint64(1), distance + 1
        shares = np.array([(codes >> np.uint64(bit) & one).mean() for bit in range(64)])
        order = np.argsort(abs(shares - 0.5), kind="stable").astype(np.uint64)
        self._parts = [self._sorted(order[number::parts]) for number in range(parts)]

    def _sorted(self, bits: NDArray[np.uint64]) -> tuple[NDArray[np.int64], ...]:
        """Return indices sorted by these bits, and for each index where its equals start and end there."""
        part = np.zeros(len(self._codes), np.uint64)
        for bit in bits:
            part = part << np.uint64(1) | self._codes >> bit & np.uint64(1)
        order = np.argsort(part, kind="stable")
        by_part = part[order]
        return order, *(np.searchsorted(by_part, part, side) for side in ("left", "right"))

    def of(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (indices of codes near the one at `index`, itself too, some repeatedly; bits between)."""
        equal = [order[start[index] : end[index]] for order, start, end in self._parts]
        others = np.concatenate(equal)
        bits = np.bitwise_count(self._codes[others] ^ self._codes[index])
        near = bits <= self._distance  # codes that agree in several parts occur as often
        return others[near], bits[near].astype(np.int64)
