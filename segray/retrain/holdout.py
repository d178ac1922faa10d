"""Which pictures are held out, for ever, and how often each was looked at.

    holdout.parquet   a row a picture that is held out: contents, likeness, since which version, looks

A picture that is held out never trains, nor does one that looks like it; one that trained is never held out.
New pictures join by the hash of their contents, look-alikes together; each time some do, the holdout has a
new version. Champion and challenger are scored on the newest one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.data.look_alikes import LookAlikes
from segray.data.pairs import Pair
from segray.data.splits import DISTANCES, groups_of, split_of
from segray.retrain.labels import LEFT_OUT, TEST, table_of

HOLDOUT = pa.schema(
    [
        ("address", pa.string()),
        ("digest", pa.string()),
        ("group", pa.string()),
        ("likeness", pa.uint64()),
        ("joined", pa.int32()),  # version of the holdout
        ("looks", pa.int32()),  # decisions that it had a part in
    ]
)
_AT_ONCE = 4_000_000
"""Pairs of pictures that are compared at a time."""


@dataclass(frozen=True)
class Holdout:
    """What is held out so far."""

    table: pa.Table
    """HOLDOUT."""

    @classmethod
    def read(cls, data: bytes | None) -> "Holdout":
        """What `data` wrote; empty where there is none. Raises JobFailedError where it is damaged."""
        return cls(HOLDOUT.empty_table() if data is None else table_of(data, HOLDOUT, "holdout.parquet"))

    def data(self) -> bytes:
        """The file."""
        sink = pa.BufferOutputStream()
        pq.write_table(self.table.combine_chunks(), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())

    @property
    def version(self) -> int:
        """Counts from 1; 0: nothing is held out yet."""
        return max(self.table["joined"].to_pylist(), default=0)

    @property
    def looks(self) -> int:
        """The most decisions that one of its pictures had a part in.

        A new version that keeps some of the pictures goes on counting: the error level is spent on them.
        """
        return max(self.table["looks"].to_pylist(), default=0)

    @property
    def name(self) -> str:
        """Version, and a digest of the contents: the same name is the same holdout."""
        contents = "\n".join(sorted(self.table["digest"].to_pylist()))
        return f"{self.version}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}"

    def looked_at(self, digests: set[str], look: int) -> "Holdout":
        """With these pictures looked at so often, at least."""
        looks = [
            max(looks, look) if digest in digests else looks
            for looks, digest in zip(
                self.table["looks"].to_pylist(), self.table["digest"].to_pylist(), strict=True
            )
        ]
        place = HOLDOUT.get_field_index("looks")
        return Holdout(self.table.set_column(place, HOLDOUT.field("looks"), pa.array(looks, pa.int32())))

    def joined_by(self, snapshot: pa.Table) -> "Holdout":
        """With the pictures of a snapshot's split `test` that are not in it yet."""
        known = set(self.table["digest"].to_pylist())
        version = self.version + 1
        new = [
            {
                **{name: row[name] for name in ("address", "digest", "group", "likeness")},
                "joined": version,
                "looks": 0,
            }
            for row in snapshot.to_pylist()
            if row["split"] == TEST and row["digest"] not in known
        ]
        return Holdout(pa.concat_tables([self.table, pa.Table.from_pylist(new, HOLDOUT)])) if new else self


def deal(
    pairs: Sequence[Pair],
    rows: pa.Table,
    holdout: Holdout,
    trained: set[str],
    *,
    share: float,
    seed: int,
    look_alikes: LookAlikes,
) -> list[str]:
    """The split of each picture: `train`, `val` (where the data say so), `test` or `left_out`.

    The hash is not the one by which training deals val: that would find none among what is left.
    rows: FIGURES of the pairs. trained: addresses and digests of pictures that a model has trained on.
    """
    digests, likeness = rows["digest"].to_pylist(), np.array(rows["likeness"].to_pylist(), np.uint64)
    table = holdout.table
    held_names = {*table["digest"].to_pylist(), *table["address"].to_pylist()}
    held = np.array(
        [_known(pair, digest, held_names) for pair, digest in zip(pairs, digests, strict=True)], bool
    )
    old = np.array([_known(pair, digest, trained) for pair, digest in zip(pairs, digests, strict=True)], bool)
    old &= ~held
    alike = _Alike(likeness, np.array([pair.group is None for pair in pairs], bool), look_alikes)
    groups_held = {each for each in table["group"].to_pylist() if each is not None}
    near_held = alike.to(np.array(table["likeness"].to_pylist(), np.uint64), _ungrouped(table))
    near_held |= np.array([pair.group in groups_held for pair in pairs], bool)
    splits = ["" for _ in pairs]
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups_of(pairs, likeness.tolist(), look_alikes).tolist()):
        members[group].append(place)
    near_old = alike.to(likeness[old], np.array([pair.group is None for pair in pairs], bool)[old])
    for places in members.values():
        new = [place for place in places if not held[place] and not old[place]]
        is_held = any(held[place] or near_held[place] for place in places)
        is_old = any(old[place] or near_old[place] for place in places)
        named = {pairs[place].split for place in new}
        dealt = split_of(
            min((digests[place] for place in new), default=""), seed=-1 - seed, val_share=0, test_share=share
        )
        for place in places:
            said = pairs[place].split
            if held[place]:
                splits[place] = TEST
            elif old[place]:
                splits[place] = LEFT_OUT if is_held or said == TEST else said or "train"
            elif is_held:
                splits[place] = LEFT_OUT if is_old else TEST
            elif is_old:
                splits[place] = LEFT_OUT if TEST in named else said or "train"
            elif TEST in named:
                splits[place] = TEST
            else:
                others = "val" if "val" in named else "train"
                splits[place] = said or (dealt if named == {None} else others)
    return _without_look_alikes(splits, alike, likeness, pairs)


def _without_look_alikes(
    splits: list[str], alike: "_Alike", likeness: NDArray[np.uint64], pairs: Sequence[Pair]
) -> list[str]:
    """A picture that trains and looks like one that is held out is left out, in whatever groups they are."""
    tested = np.array([split == TEST for split in splits], bool)
    free = np.array([pair.group is None for pair in pairs], bool)
    near = alike.to(likeness[tested], free[tested])
    return [
        LEFT_OUT if near[place] and split not in (TEST, LEFT_OUT) else split
        for place, split in enumerate(splits)
    ]


def _known(pair: Pair, digest: str, names: set[str]) -> bool:
    return digest in names or pair.image.uri in names


def _ungrouped(table: pa.Table) -> NDArray[np.bool_]:
    return np.array([group is None for group in table["group"].to_pylist()], bool)


class _Alike:
    """Which pictures look like one of others; those to which the data give a group look like nobody."""

    def __init__(
        self, likeness: NDArray[np.uint64], free: NDArray[np.bool_], look_alikes: LookAlikes
    ) -> None:
        self._likeness, self._free = likeness, free
        self._distance = DISTANCES.get(look_alikes, -1)

    def to(self, others: NDArray[np.uint64], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(pictures,) whether each is as near to one of them as copies are."""
        near = np.zeros(len(self._likeness), bool)
        others = np.unique(others[free]) if len(others) else others
        if self._distance < 0 or not len(others):
            return near
        codes, place = np.unique(self._likeness, return_inverse=True)
        found = np.zeros(len(codes), bool)
        step = max(1, _AT_ONCE // len(others))
        for start in range(0, len(codes), step):
            bits = np.bitwise_count(codes[start : start + step, None] ^ others[None])
            found[start : start + step] = (bits <= self._distance).any(axis=1)
        return found[place.ravel()] & self._free
