"""The holdout: images that are never trained on, and the number of looks at each.

    holdout.parquet   one row a held-out image: contents, likeness, version in which it joined, looks

A held-out image is never trained on, nor is one that looks like it; an image of training is never held out.
New images join by the hash of their contents, look-alikes together; each time some join, the holdout has a
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

from segray.data import LookAlikes
from segray.data.look_alikes import DISTANCES
from segray.data.pairs import Pair
from segray.data.splits import groups_of, split_of
from segray.retrain.labels import LEFT_OUT, TEST, table_of

HOLDOUT = pa.schema(
    [
        ("address", pa.string()),
        ("digest", pa.string()),
        ("group", pa.string()),
        ("likeness", pa.uint64()),
        ("joined", pa.int32()),  # version of the holdout
        ("looks", pa.int32()),  # decisions in which it was scored
    ]
)
_AT_ONCE = 4_000_000
"""Number of image pairs to compare at a time."""


@dataclass(frozen=True)
class Holdout:
    """The images that are held out so far."""

    table: pa.Table
    """Table of the schema HOLDOUT."""

    @classmethod
    def read(cls, data: bytes | None) -> "Holdout":
        """Read the bytes of `data`; empty for None. Raises JobFailedError where they are damaged."""
        return cls(HOLDOUT.empty_table() if data is None else table_of(data, HOLDOUT, "holdout.parquet"))

    def data(self) -> bytes:
        """Return the contents of the file."""
        sink = pa.BufferOutputStream()
        pq.write_table(self.table.combine_chunks(), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())

    @property
    def version(self) -> int:
        """Version, from 1; 0: nothing is held out yet."""
        return max(self.table["joined"].to_pylist(), default=0)

    @property
    def looks(self) -> int:
        """Maximum number of decisions in which one of its images was scored.

        A new version that keeps some of the images continues the count: their error level is spent.
        """
        return max(self.table["looks"].to_pylist(), default=0)

    @property
    def name(self) -> str:
        """Version and digest of the contents: the same name is the same holdout."""
        contents = "\n".join(sorted(self.table["digest"].to_pylist()))
        return f"{self.version}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}"

    def looked_at(self, digests: set[str], look: int) -> "Holdout":
        """Return the holdout with at least this number of looks at these images."""
        looks = [
            max(looks, look) if digest in digests else looks
            for looks, digest in zip(
                self.table["looks"].to_pylist(), self.table["digest"].to_pylist(), strict=True
            )
        ]
        index = HOLDOUT.get_field_index("looks")
        return Holdout(self.table.set_column(index, HOLDOUT.field("looks"), pa.array(looks, pa.int32())))

    def joined_by(self, snapshot: pa.Table) -> "Holdout":
        """Return the holdout with the new images of a snapshot's (schema SNAPSHOT) split `test`."""
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


def assign_splits(
    pairs: Sequence[Pair],
    rows: pa.Table,
    holdout: Holdout,
    trained: set[str],
    *,
    share: float,
    seed: int,
    look_alikes: LookAlikes,
) -> list[str]:
    """Return the split of each image: `train`, `val` (where the data name it), `test` or `left_out`.

    The hash differs from the one by which training splits off val, which would find none in the rest.
    rows: FIGURES of the pairs. trained: URLs and digests of images on which a model was trained.
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
    for index, group in enumerate(groups_of(pairs, likeness.tolist(), look_alikes).tolist()):
        members[group].append(index)
    near_old = alike.to(likeness[old], np.array([pair.group is None for pair in pairs], bool)[old])
    for indices in members.values():
        new = [index for index in indices if not held[index] and not old[index]]
        is_held = any(held[index] or near_held[index] for index in indices)
        is_old = any(old[index] or near_old[index] for index in indices)
        named = {pairs[index].split for index in new}
        dealt = split_of(
            min((digests[index] for index in new), default=""), seed=-1 - seed, val_share=0, test_share=share
        )
        for index in indices:
            named_split = pairs[index].split
            if held[index]:
                splits[index] = TEST
            elif old[index]:
                splits[index] = LEFT_OUT if is_held or named_split == TEST else named_split or "train"
            elif is_held:
                splits[index] = LEFT_OUT if is_old else TEST
            elif is_old:
                splits[index] = LEFT_OUT if TEST in named else named_split or "train"
            elif TEST in named:
                splits[index] = TEST
            else:
                others = "val" if "val" in named else "train"
                splits[index] = named_split or (dealt if named == {None} else others)
    return _without_look_alikes(splits, alike, likeness, pairs)


def _without_look_alikes(
    splits: list[str], alike: "_Alike", likeness: NDArray[np.uint64], pairs: Sequence[Pair]
) -> list[str]:
    """Leave out training images that look like a held-out one, whatever their groups."""
    tested = np.array([split == TEST for split in splits], bool)
    free = np.array([pair.group is None for pair in pairs], bool)
    near = alike.to(likeness[tested], free[tested])
    return [
        LEFT_OUT if near[index] and split not in (TEST, LEFT_OUT) else split
        for index, split in enumerate(splits)
    ]


def _known(pair: Pair, digest: str, names: set[str]) -> bool:
    return digest in names or pair.image.uri in names


def _ungrouped(table: pa.Table) -> NDArray[np.bool_]:
    return np.array([group is None for group in table["group"].to_pylist()], bool)


class _Alike:
    """Find images that look like one of others; images with a group in the data look like none."""

    def __init__(
        self, likeness: NDArray[np.uint64], free: NDArray[np.bool_], look_alikes: LookAlikes
    ) -> None:
        self._likeness, self._free = likeness, free
        self._distance = DISTANCES.get(look_alikes, -1)

    def to(self, others: NDArray[np.uint64], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which images, bool (images,), are look-alikes of `others`, uint64 (others,)."""
        near = np.zeros(len(self._likeness), bool)
        others = np.unique(others[free]) if len(others) else others
        if self._distance < 0 or not len(others):
            return near
        codes, index = np.unique(self._likeness, return_inverse=True)
        found = np.zeros(len(codes), bool)
        step = max(1, _AT_ONCE // len(others))
        for start in range(0, len(codes), step):
            bits = np.bitwise_count(codes[start : start + step, None] ^ others[None])
            found[start : start + step] = (bits <= self._distance).any(axis=1)
        return found[index.ravel()] & self._free
