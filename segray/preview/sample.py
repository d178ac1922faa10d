"""Which images are shown: a stable sample by strata, in memory that does not grow with the run.

A stratum is a set of images: those with an instance of a class, of a score from 0.5 to 0.6, without any
instance. Of each, the images with the smallest keys are kept. A key is a hash of the image's id, so the same
run gives the same sample; for the least sure it is the image's mean score.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def key_of(image_id: str) -> float:
    """Return a number in 0..1 that depends on the id alone and is evenly spread."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=6).digest()) / 2**48


@dataclass
class Stratum:
    """The images with the smallest keys of those that were offered."""

    most: int
    keys: dict[str, float] = field(default_factory=dict)
    limit: float = np.inf
    """No image with a key from here up can be among them."""

    def offer(self, ids: Sequence[str], keys: Floats) -> None:
        """Add images, float64 (n,) keys; an image offered again keeps its smallest key."""
        for index in np.flatnonzero(keys < self.limit).tolist():
            image_id, key = ids[index], float(keys[index])
            self.keys[image_id] = min(key, self.keys.get(image_id, np.inf))
        if len(self.keys) > 2 * self.most + 64:
            self._cut()

    def first(self) -> list[str]:
        """Return its images by key, at most `most`."""
        return sorted(self.keys, key=lambda each: (self.keys[each], each))[: self.most]

    def _cut(self) -> None:
        kept = self.first()
        self.keys = {image_id: self.keys[image_id] for image_id in kept}
        self.limit = self.keys[kept[-1]]


@dataclass
class Sampler:
    """Strata in groups: each group has an equal share of the sample, within it each stratum."""

    most: int
    """Images of the sample."""
    groups: dict[str, dict[str, Stratum]] = field(default_factory=dict)

    def offer(self, group: str, stratum: str, ids: Sequence[str], keys: Floats) -> None:
        """Add images to a stratum."""
        strata = self.groups.setdefault(group, {})
        strata.setdefault(stratum, Stratum(self.most)).offer(ids, keys)

    def offer_coded(
        self,
        group: str,
        names: Mapping[int, str],
        codes: NDArray[np.int64],
        ids: Sequence[str],
        which: NDArray[np.int64],
    ) -> None:
        """Add rows to strata: codes int64 (rows,) of the stratum, which int64 (rows,) index into `ids`."""
        pairs = np.unique(np.stack([codes, which], axis=1), axis=0)
        keys = np.array([key_of(each) for each in ids])
        for code in np.unique(pairs[:, 0]).tolist():
            chosen = pairs[pairs[:, 0] == code, 1]
            self.offer(group, names[code], [ids[index] for index in chosen.tolist()], keys[chosen])

    def chosen(self) -> dict[str, str]:
        """Return image id -> why it is in the sample; in the order in which they were chosen."""
        found: dict[str, str] = {}
        turns = [_in_turn(strata) for strata in self.groups.values()]
        while turns and len(found) < self.most:
            for turn in list(turns):
                fresh = next(((name, image_id) for name, image_id in turn if image_id not in found), None)
                if fresh is None:
                    turns.remove(turn)
                elif len(found) < self.most:
                    found[fresh[1]] = fresh[0]
        return found


def _in_turn(strata: Mapping[str, Stratum]) -> Iterator[tuple[str, str]]:
    """Yield (stratum, image): the first of each stratum, then the second of each."""
    queues: list[tuple[str, Iterator[str]]] = [(name, iter(strata[name].first())) for name in sorted(strata)]
    while queues:
        left: list[tuple[str, Iterator[str]]] = []
        for name, queue in queues:
            image_id = next(queue, None)
            if image_id is not None:
                left.append((name, queue))
                yield name, image_id
        queues = left


def keys_of(ids: Iterable[str]) -> Floats:
    """Return `key_of` each id, float64 (n,)."""
    return np.array([key_of(each) for each in ids], np.float64)
