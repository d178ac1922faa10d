"""Spatial blocks of scenes: what the bootstrap draws where a scene holds many objects and scenes are few.

Neighbouring objects resemble each other, so they are drawn together, in square blocks (block bootstrap:
Künsch, "The jackknife and the bootstrap for general stationary observations", Ann. Statist. 17, 1989; Lahiri,
"Resampling Methods for Dependent Data", Springer 2003, ch. 12 on spatial data). In the plane the side that is
best for a variance grows as the fourth root of the number of observations, so the number of blocks as its
square root (Nordman and Lahiri, "On optimal spatial subsample size for variance estimation", Ann. Statist.
32, 2004); the constant depends on the data, and is 1 here. Below `LEAST` blocks the width itself is hardly
known, so there are as many at least. Of fewer than `OWN` objects most blocks would hold one or none: then
each object is drawn alone, which is the ordinary bootstrap and takes neighbours for independent.

The blocks follow from the truth and the scene's size, not from the predictions: models that are compared on
the same labels are drawn over the same blocks with the same weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LEAST = 16
"""Blocks of a scene, at least; with as many scenes, whole scenes are drawn."""
OWN = 2 * LEAST
"""True objects of a scene from which on there are blocks."""
BY_NUMBER = 0
"""In place of a side in pixels: it follows from the number of true objects of each scene."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """How neighbouring images are cut into blocks."""

    first: int
    """Index of the first image."""
    sizes: Sequence[tuple[int, int]]
    """Height, width of each."""
    side: int
    """Of a block, in pixels; or BY_NUMBER."""

    def truth(self, image: Ints, box: Floats) -> Ints:
        """Return the block of each true object, (m,), by its centre; numbers are of its image.

        image: (m,) ascending, its index; box: (m, 4) x, y, width, height.
        """
        own = drawn_alone(self._number(image), self.side)[image - self.first]
        return np.where(own, _place(image), self._block(image, box, self._number(image)))

    def found(self, image: Ints, box: Floats, partner: Ints, truth_image: Ints, truth: Ints) -> Ints:
        """Return the block of each prediction, (n,): that of its true object, or else by its centre.

        image, box: as of the truth; partner: (n,) its true object, -1: none; truth: of `truth`.
        """
        number = self._number(truth_image)
        own = drawn_alone(number, self.side)[image - self.first]
        alone = number[image - self.first] + _place(image)
        free = np.where(own, alone, self._block(image, box, number))
        blocks: Ints = np.where(partner < 0, free, np.append(truth, -1)[partner])
        return blocks

    def _number(self, truth_image: Ints) -> Ints:
        number: Ints = np.bincount(truth_image - self.first, minlength=len(self.sizes))
        return number

    def _block(self, image: Ints, box: Floats, number: Ints) -> Ints:
        """Return the number of the block around each box's centre, row by row."""
        height, width = np.array(self.sizes, np.float64).reshape(-1, 2).T
        side = np.full(len(number), float(self.side))
        if self.side == BY_NUMBER:
            side = np.sqrt(height * width / np.maximum(LEAST, np.sqrt(number)))
        columns = np.ceil(width / side).astype(np.int64)
        here = image - self.first
        x, y = ((box[:, axis] + box[:, axis + 2] / 2) // side[here] for axis in (0, 1))
        column = np.clip(x.astype(np.int64), 0, columns[here] - 1)
        block: Ints = np.maximum(y.astype(np.int64), 0) * columns[here] + column
        return block


def drawn_alone(number: Ints, side: int) -> NDArray[np.bool_]:
    """Return of which images each object is drawn alone; number: (images,) of their true objects."""
    return (number < OWN) & (side == BY_NUMBER)


def _place(image: Ints) -> Ints:
    """Return the place of each row within its image; image: ascending."""
    return np.arange(len(image)) - np.searchsorted(image, image)
