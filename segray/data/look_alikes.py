"""Images that look alike: a perceptual hash, and groups of those whose hashes differ in few bits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segray.data import LookAlikes

ALIKE = 5
"""Bits of 64. Measured on 366 photos, streets and aerial images, each as JPEG of quality 50 and 90, at half
its size, and at 0.7 as JPEG: 1 in 100 moved by more than 2 bits, none by more than 5. Of 28,027 pairs of
images of different things, only a file that was there twice was within 10 bits; of 64,620 pairs of nuclei,
one pair was 6 bits apart, none less. Copies of images with an empty background move further (nuclei at
quality 50: by 10 bits or more 1 in 100) and may be missed."""
DISTANCES: dict[LookAlikes, int] = {"loose": ALIKE, "strict": 2}


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """Return the 64-bit dHash of an image, uint8 (height, width, 3) RGB or (height, width) grey.

    Neal Krawetz, "Kind of Like That", 2013
    (https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html): shrunk to 9 x 8 grey
    pixels, a bit for each two neighbours in a row, set where the right one is brighter; rows from the top,
    the first bit highest. Shrunk with Lanczos as the library ImageHash 4.3.2 does (its `dhash` gives the same
    bits): with a box, half the size moved a photo by up to 6 bits instead of 3.
    Rotated, mirrored and cropped images have other hashes; those without any contrast all have 0.
    """
    from PIL import Image

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
