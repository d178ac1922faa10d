"""What the bootstrap draws: images, or the blocks or objects of scenes (`spatial_blocks`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray.evaluate.matching import Kind, Matches, bits
from segray.evaluate.precision_recall import mixed
from segray.evaluate.spatial_blocks import BY_NUMBER, drawn_alone

FEW = 5
"""Units below which an interval means little."""
_Index = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Units:
    """The unit of each prediction and true instance of some matches."""

    hashes: NDArray[np.uint64]
    """(units,) which give their weights."""
    found: dict[Kind, _Index]
    """(n,) index of the unit of each prediction."""
    truth: _Index
    """(m,) likewise."""
    name: str
    """`images`, `blocks`, `objects`, or `blocks and objects`."""
    number: int
    """Images; or blocks or objects that hold truth: others change precision alone."""

    @classmethod
    def of(cls, matches: Matches, image_hashes: NDArray[np.uint64], images: int, side: int) -> "Units":
        """Find them; image_hashes: by the index of the image; images: of the matches; side: of blocks."""
        if matches.truth_block is None:
            found = dict.fromkeys(matches.states, matches.image)
            return cls(image_hashes, found, matches.truth_image, "images", images)
        columns = [
            mixed(image_hashes[image] ^ mixed(block.astype(np.uint64) + np.uint64(1)))
            for image, block in (
                (matches.truth_image, matches.truth_block),
                *((matches.image, block) for block in matches.block.values()),
            )
        ]
        hashes, place = np.unique(np.concatenate(columns), return_inverse=True)
        ends = np.cumsum([len(each) for each in columns])[:-1]
        truth, *rest = np.split(place.astype(np.int32), ends)
        kinds = dict(zip(matches.block, rest, strict=True))
        counts = bits(matches.truth_sizes[:, None], 0)
        return cls(hashes, kinds, truth, _name(matches, side), len(np.unique(truth[counts])))

    @property
    def warning(self) -> str:
        """Return what to say of the interval; empty: nothing."""
        if self.number >= FEW:
            return ""
        return f"with {self.number:,} {self.name} an interval means little"


def _name(matches: Matches, side: int) -> str:
    if side != BY_NUMBER:
        return "blocks"
    number = np.bincount(matches.truth_image)
    alone = drawn_alone(number[number > 0], side)
    if alone.all():
        return "objects"
    return "blocks and objects" if alone.any() else "blocks"
