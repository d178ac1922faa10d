"""The split of a pair: the one that the data name, else by the content of its image and the seed.

    a split that is named      kept
    none is named              train, val or test by `split_of` of the sha256 of the image's bytes
    train is named, val never  val is split off from train, by the same hash

So a split depends neither on names nor on the order of a listing nor on the number of workers, and added
images move no other. Photos that look alike share a split, unless `group_look_alikes` says otherwise:
`look_alikes` finds them; likewise images to which the data give one `group`, alike or not.
`split_groups` puts a group into one split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray.data import LookAlikes
from segray.data.look_alikes import DISTANCES, near_duplicates
from segray.data.pair_reader import digest_of
from segray.data.pairs import Pair

SPLITS = ("train", "val", "test")


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
        return cls.of_named({pair.split for pair in pairs}, seed, val_share, test_share)

    @classmethod
    def of_named(
        cls, named: Collection[str | None], seed: int, val_share: float = 0.12, test_share: float = 0.18
    ) -> "SplitRule":
        """Return the rule for data that name these splits."""
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
