"""Which images to draw: those on which the models' scores differ most, and some at random."""

import hashlib
import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segray.comparison.results import ChosenImage

Floats = NDArray[np.float64]
_Item = tuple[float, str, tuple[float, ...]]
"""By which it is chosen, name, scores."""
SAMPLE = 4
"""Images on which speed is measured."""


class ImageChoice:
    """Keeps the best so far of all images that are offered; memory does not grow with them."""

    def __init__(self, differing: int, random: int, seed: int) -> None:
        """Set how many images of each kind are chosen; seed: of the random ones."""
        self._most, self._number, self._seed = differing, random, seed
        self._kept = max(differing + random, SAMPLE)
        self._differing: list[_Item] = []
        self._hashed: list[_Item] = []

    def offer(self, names: Sequence[str], scores: Floats) -> None:
        """Add images; scores: (images, models) of each model on each image alone, NaN where there is none."""
        for name, row in zip(names, scores.tolist(), strict=True):
            known = [each for each in row if not np.isnan(each)]
            spread = max(known) - min(known) if known else 0.0
            _push(self._differing, (spread, name, tuple(row)), self._most)
            _push(self._hashed, (self._key(name), name, tuple(row)), self._kept)

    def chosen(self) -> list[ChosenImage]:
        """Return the images that differ most, then the random ones, none twice."""
        found = {
            name: ChosenImage(name, row, f"scores differ by {spread:.3f}")
            for spread, name, row in sorted(self._differing, reverse=True)
        }
        left = self._number
        for _, name, row in sorted(self._hashed, reverse=True):
            if left and name not in found:
                found[name] = ChosenImage(name, row, "at random")
                left -= 1
        return list(found.values())

    def sample(self) -> list[str]:
        """Return up to SAMPLE images, at random."""
        return [name for _, name, _ in sorted(self._hashed, reverse=True)[:SAMPLE]]

    def _key(self, name: str) -> float:
        text = f"{self._seed}\0{name}".encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


def _push(heap: list[_Item], item: _Item, most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, item)
    elif most:
        heapq.heappushpop(heap, item)
