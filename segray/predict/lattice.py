"""Gaussian filtering of many values over points in some dimensions, on the permutohedral lattice.

A. Adams, J. Baek and M. Davis, Fast high-dimensional filtering using the permutohedral lattice, 2010: each
point is shared out to the d + 1 corners of the simplex it lies in, the corners are blurred along d + 1 axes,
and each point reads its corners again. Time and memory grow with the number of points, not with its square.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

KEY_LIMIT = 2**62
"""Lattice coordinates of one vertex are packed into an int64."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """n points among the m vertices of a lattice of d dimensions that any of them touches."""

    corners: Tensor
    """(n, d + 1) int32: vertices of each point's simplex."""
    weights: Tensor
    """(n, d + 1) float32: barycentric coordinates, which sum to one."""
    points: Tensor
    """(n * (d + 1),) int32: points that touch the first vertex, then the second ..."""
    shares: Tensor
    """(n * (d + 1),) float32: their weights."""
    starts: Tensor
    """(m,) int32: where each vertex begins in `points`."""
    neighbours: Tensor
    """(d + 1, 2, m) int64: the vertices next to each along each axis; m where no point touches that one."""

    def filter(self, values: Tensor) -> Tensor:
        """Return the (n, k) float32 sums over all points, weighted by about exp(-|difference|² / 2).

        They are right up to a constant factor, the same for all points.
        """
        grid = _weighted_sums(self.points, values, self.shares, self.starts)
        for before, after in self.neighbours:
            padded = torch.cat([grid, grid.new_zeros(1, grid.shape[1])])
            grid = grid + (padded[before] + padded[after]) / 2
        return _weighted_sums(self.corners, grid, self.weights)


def _weighted_sums(rows: Tensor, table: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    return embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def lattice(features: Tensor) -> Lattice:
    """Return the lattice of n points (n, d) float32 whose Gaussian has a standard deviation of one.

    Raises ValueError for points that lie so far apart that their coordinates do not fit into 62 bits.
    """
    dimensions = features.shape[1]
    nearest, rank, weights = _simplices(features)
    ladder = torch.arange(dimensions + 1, device=features.device)
    # corner r of a simplex: its nearest point of remainder 0, moved by r or r - (d + 1) by rank (Adams, 4.1)
    moves = torch.stack([torch.where(ladder > dimensions - r, r - dimensions - 1, r) for r in ladder])
    low = nearest.amin(0)[:-1] - 2 * (dimensions + 1)
    radix = (nearest.amax(0)[:-1] - low + 2 * (dimensions + 1) + 1).tolist()
    if math.prod(radix) >= KEY_LIMIT:
        raise ValueError("its standard deviations are too small for its size: they must be larger")
    steps = torch.tensor([math.prod(radix[axis + 1 :]) for axis in range(dimensions)], device=features.device)
    base = ((nearest[:, :-1] - low) * steps).sum(1)
    keys = torch.stack([base + (move[rank[:, :-1]] * steps).sum(1) for move in moves], dim=1)
    del nearest, rank, base
    ordered, order = keys.flatten().sort()
    del keys
    vertices, inverse, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    corners = torch.empty_like(order, dtype=torch.int32)
    corners[order] = inverse.int()
    return Lattice(
        corners.reshape(weights.shape),
        weights,
        (order // (dimensions + 1)).int(),
        weights.flatten()[order],
        (counts.cumsum(0) - counts).int(),
        _neighbours(vertices, steps),
    )


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each point the lattice's nearest point of remainder 0 (n, d + 1) int64, the rank of each
    coordinate's difference to it (n, d + 1), and barycentric coordinates (n, d + 1) float32."""
    dimensions = features.shape[1]
    sides = dimensions + 1
    axes = torch.arange(dimensions, device=features.device)
    # the blur, of variance 2 / 3 along each axis on the lattice, and splatting make a deviation of one
    scaled = features * (sides * math.sqrt(2 / 3) / ((axes + 1) * (axes + 2)).sqrt())
    total = scaled.flip(1).cumsum(1).flip(1)  # sum of the coordinates from this one on
    zero = torch.zeros_like(total[:, :1])
    elevated = torch.cat([total, zero], 1) - torch.cat([zero, (axes + 1) * scaled], 1)
    nearest = (elevated / sides).round().long()
    excess = nearest.sum(1, keepdim=True)
    nearest *= sides
    rank = torch.empty_like(nearest)
    order = (elevated - nearest).sort(dim=1, descending=True, stable=True).indices
    rank.scatter_(1, order, torch.arange(sides, device=features.device).expand_as(order))
    rank += excess
    for wrong, move in ((rank < 0, sides), (rank > dimensions, -sides)):
        rank += wrong * move
        nearest += wrong * move
    differences = (elevated - nearest) / sides
    weights = torch.zeros(len(features), sides + 1, device=features.device)
    weights.scatter_add_(1, dimensions - rank, differences)
    weights.scatter_add_(1, sides - rank, -differences)
    weights[:, 0] += 1 + weights[:, sides]
    return nearest, rank, weights[:, :sides].contiguous()


def _neighbours(vertices: Tensor, steps: Tensor) -> Tensor:
    """Return (d + 1, 2, m) indices into the m sorted keys; m where there is no such vertex."""
    # along axis k all coordinates change by one, that of k by -d; the last coordinate is not in the key
    every, dimensions = steps.sum(), len(steps)
    moves = [every - (dimensions + 1) * step for step in steps] + [every]
    found = [torch.stack([_places(vertices, vertices + sign * move) for sign in (-1, 1)]) for move in moves]
    return torch.stack(found)


def _places(vertices: Tensor, keys: Tensor) -> Tensor:
    index = torch.searchsorted(vertices, keys)
    there = vertices[index.clamp(max=len(vertices) - 1)] == keys
    return torch.where(there, index, len(vertices))
