"""Trace masks to polygons along their pixel edges, in pixels: x right, y down, pixel corners at integers.

Masks are never rasterised: corners are computed from spans, so the cost depends on the number of spans only,
even for a road of a million pixels across a scene. The masks of a batch are placed side by side in one long
strip, one empty column between them, and traced at once; the number of passes over the arrays grows with the
logarithm of the longest ring.

At each corner of a mask a horizontal edge meets a vertical one. On any vertical line, sorted by y, the first
corner is connected to the second, the third to the fourth; likewise along the horizontal lines. Where two
pixels touch at a corner only, two corners share one point, and their order decides which edges they connect.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from segray.masks.spans import Spans

Ints = NDArray[np.int64]

BATCH = 20_000
"""Spans traced at once. Measured, masks of 10 to 200 pixels: 10,000 to 30,000 take two thirds of the time of
100,000, whose arrays exceed the cache."""


def outlines(masks: Sequence[Spans]) -> NDArray[np.object_]:
    """Return one valid shapely geometry a mask, object (n,): Polygon, MultiPolygon or POLYGON EMPTY.

    masks: int64 (spans, 3) each, see `spans`. Exact: the pixels whose centres are inside are the mask's, and
    area is their number. Holes are kept; parts that touch at a corner only are separate polygons; vertices
    are true corners. Exteriors have a positive area by the shoelace formula in these coordinates, holes a
    negative one. Parts are ordered by their leftmost column, then row.
    """
    found: NDArray[np.object_] = np.full(len(masks), shapely.Polygon(), object)
    full = np.array([index for index, mask in enumerate(masks) if len(mask)], np.int64)
    for some in _batches(full, np.array([len(masks[index]) for index in full], np.int64)):
        found[some] = _traced([masks[index] for index in some])
    return found


def _batches(full: Ints, sizes: Ints) -> Iterator[Ints]:
    """Yield indices of the non-empty masks, about `BATCH` spans at a time; a larger mask is nearly alone."""
    number = (np.cumsum(sizes) - sizes) // BATCH
    yield from np.split(full, np.flatnonzero(np.diff(number)) + 1) if len(full) else ()


def _traced(masks: Sequence[Spans]) -> NDArray[np.object_]:
    """Trace masks of at least one span each."""
    lengths = np.array([len(mask) for mask in masks])
    first = np.cumsum(lengths) - lengths
    spans = np.concatenate(masks)
    col = np.minimum.reduceat(spans[:, 0], first)
    row = np.minimum.reduceat(spans[:, 1], first)
    width = np.maximum.reduceat(spans[:, 0], first) - col + 1
    left = np.cumsum(width + 1) - width - 1
    strip = spans + np.repeat(np.stack([left - col, -row, -row], axis=1), lengths, axis=0)
    corners = _corners(strip)
    rings = _rings(corners)
    owner = _exteriors(corners, rings, strip)
    mask = np.searchsorted(left, corners.x[corners.starts[rings.leader]], "right") - 1
    shift = np.stack([col - left, row], axis=1)[mask]
    return _gathered(_polygons(corners, rings, owner, shift), mask[owner == np.arange(len(owner))])


@dataclass(frozen=True, slots=True)
class _Corners:
    """Corners of all masks by x, then y, int64 (n,); of two on one point, the one whose pixel is above first.

    `down` and `across` give the index of the other end of each corner's vertical and horizontal edge. A ring
    is walked with the mask on its right in the image, so `starts` are the corners from which it continues
    horizontally: the left ends of upper sides, the right ends of lower ones.
    """

    x: Ints
    y: Ints
    across: Ints
    starts: Ints
    along: Ints
    """Indices of all corners sorted by y, then x: consecutive pairs are the horizontal edges."""

    @property
    def down(self) -> Ints:
        """Other end of each vertical edge: consecutive pairs, as the corners are sorted by x, then y."""
        return np.arange(len(self.x)) ^ 1


def _corners(strip: Spans) -> _Corners:
    """Return the ends of spans, except where an end continues straight into the next column."""
    tall = int(strip[:, 2].max()) + 1
    right, upper, lower = strip[:, 0] * tall, strip[:, 1], strip[:, 2]
    # the lowest bits: whether it is an upper end (its pixel is below); whether its pixel is to the right
    keys = [4 * (right + upper) + 3, 4 * (right + lower) + 1]
    keys += [4 * (right + tall + upper) + 2, 4 * (right + tall + lower)]
    key = np.sort(np.concatenate(keys))
    straight = key[1:] >> 1 == key[:-1] >> 1
    key = key[~(np.r_[False, straight] | np.r_[straight, False])]
    x, y = np.divmod(key >> 2, tall)
    along = np.argsort((y * (int(x[-1]) + 1) + x) * 2 + (key & 1))
    across = np.empty_like(along)
    across[along[0::2]], across[along[1::2]] = along[1::2], along[0::2]
    return _Corners(x, y, across, np.flatnonzero(key >> 1 & 1 == key & 1), along)


@dataclass(frozen=True, slots=True)
class _Rings:
    """Rings that pass no point twice, numbered by their smallest start; a start is an index into `starts`."""

    leader: Ints
    """(rings,) the smallest start of each ring, at its leftmost column."""
    size: Ints
    """(rings,) the number of starts of each ring, half of its corners."""
    ring: Ints
    """(starts,) the ring of each start."""
    rank: Ints
    """(starts,) steps from the leader to each start."""


def _rings(corners: _Corners) -> _Rings:
    """Return the rings, walked along the edges.

    Where two corners share one point, the first walk keeps the two pixels apart, so the area it encloses is
    4-connected. A ring that passes such a point twice would be invalid: it is cut in two there. Visits of a
    ring that does not cross itself are nested, so all cuts can be made at once.
    """
    following = _following(corners, corners.down)
    leader = _leaders(following)
    ring = np.empty_like(corners.x)
    ring[corners.starts] = ring[corners.across[corners.starts]] = leader
    same = (corners.x[1:] == corners.x[:-1]) & (corners.y[1:] == corners.y[:-1])
    twice = np.flatnonzero(same & (ring[1:] == ring[:-1]))
    if len(twice):
        other = np.arange(len(ring))
        other[twice], other[twice + 1] = twice + 1, twice
        following = _following(corners, other[corners.down[other]])
        leader = _leaders(following)
    left = _steps_left(following, leader)
    leaders, numbers = np.unique(leader, return_inverse=True)
    size = left[leaders] + 1
    return _Rings(leaders, size, numbers, size[numbers] - 1 - left)


def _following(corners: _Corners, down: Ints) -> Ints:
    """Return the next start of each start: over a horizontal, then a vertical edge."""
    number = np.empty_like(corners.x)
    number[corners.starts] = np.arange(len(corners.starts))
    return number[down[corners.across[corners.starts]]]


def _leaders(following: Ints) -> Ints:
    """Return the smallest start in each start's ring: the minimum of 2, 4, 8, … that follow, until stable."""
    smallest, jump = np.minimum(np.arange(len(following)), following), following[following]
    while True:
        further = np.minimum(smallest, smallest[jump])
        if np.array_equal(further, smallest):
            return smallest
        smallest, jump = further, jump[jump]


def _steps_left(following: Ints, leader: Ints) -> Ints:
    """Return the number of steps from each start to its ring's leader, by the same doubling."""
    last = following == leader
    left = np.where(last, 0, 1)
    jump = np.where(last, np.arange(len(following)), following)
    while (more := left[jump]).any():
        left, jump = left + more, jump[jump]
    return left


def _exteriors(corners: _Corners, rings: _Rings, strip: Spans) -> Ints:
    """Return the exterior of each ring's polygon, (rings,): the ring itself, or the one around a hole.

    The span to the left of a hole's leftmost edge has its upper side on a ring of the same polygon. That ring
    reaches further left, so its number is smaller, and following these links leads to the exterior.
    """
    owner = np.arange(len(rings.leader))
    start = corners.starts
    below_edges = corners.y[start] * (corners.x[start] - corners.x[corners.across[start]])
    area = np.zeros(len(owner), np.int64)
    np.add.at(area, rings.ring, below_edges)
    holes = np.flatnonzero(area < 0)
    if not len(holes):
        return owner
    tall, wide = int(strip[:, 2].max()) + 1, int(corners.x[-1]) + 1
    corner = start[rings.leader[holes]]
    wanted = (corners.x[corner] - 1) * tall + corners.y[corner]
    span = strip[np.searchsorted(strip[:, 0] * tall + strip[:, 1], wanted, "right") - 1]
    edges = corners.along[0::2]
    begins = corners.y[edges] * wide + corners.x[edges]
    edge = edges[np.searchsorted(begins, span[:, 1] * wide + span[:, 0], "right") - 1]
    ring = np.empty_like(corners.x)
    ring[start] = ring[corners.across[start]] = rings.ring
    owner[holes] = ring[edge]
    while not np.array_equal(owner, further := owner[owner]):
        owner = further
    return owner


def _polygons(corners: _Corners, rings: _Rings, owner: Ints, shift: Ints) -> NDArray[np.object_]:
    """Return one polygon an exterior, in their order; `shift` (rings, 2) is added to a ring's x and y."""
    order = np.argsort(owner, kind="stable")  # exteriors have smaller numbers than their holes
    vertices = 2 * rings.size[order] + 1
    ends = np.r_[0, np.cumsum(vertices)]
    first = np.empty_like(owner)
    first[order] = ends[:-1]
    at, start = first[rings.ring] + 2 * rings.rank, corners.starts
    points = np.empty((ends[-1], 2))
    points[at] = np.stack([corners.x[start], corners.y[start]], axis=1)
    points[at + 1] = np.stack([corners.x[corners.across[start]], corners.y[start]], axis=1)
    points[ends[1:] - 1] = points[ends[:-1]]
    points += np.repeat(shift[order], vertices, axis=0)
    bounds = np.r_[np.flatnonzero(order == owner[order]), len(order)]
    kind = shapely.GeometryType.POLYGON
    polygons: NDArray[np.object_] = shapely.from_ragged_array(kind, points, (ends, bounds))
    return polygons


def _gathered(polygons: NDArray[np.object_], mask: Ints) -> NDArray[np.object_]:
    """Gather the polygons of each mask, several into a MultiPolygon; `mask` is ascending without gaps."""
    parts = np.bincount(mask)
    found: NDArray[np.object_] = polygons[np.cumsum(parts) - parts]
    several = parts[mask] > 1
    shapely.multipolygons(polygons[several], indices=mask[several], out=found)
    return found
