"""Where the runs of many masks end, and how many pixels two of them share: COCO's run lengths, in columns.

The pixels of A that come before position x, in column order, are a piecewise linear function of x; its
differences over the runs of B add up to the pixels that A and B share. All pairs are looked up in one sorted
array, so nothing is done mask by mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray.masks.spans import ranges, totals

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_BITS, _MORE, _SIGN, _GROUPS = 0x1F, 0x20, 0x10, 7
_AT_ONCE = 1 << 20
"""Characters that are decoded, and ends that are looked up, at a time."""


@dataclass(frozen=True, slots=True)
class RunEnds:
    """The runs of n masks; those of odd number belong to the mask."""

    ends: Ints
    """(runs,) position behind each run, in column order, ascending within a mask."""
    filled: Ints
    """(runs,) pixels of the mask before that position."""
    starts: Ints
    """(n + 1,) where the runs of each mask begin."""
    valid: Bools
    """(n,) whether it is COCO's compressed form, with no run below 0; others have no runs."""

    @classmethod
    def of(cls, strings: Sequence[bytes]) -> "RunEnds":
        """Decode COCO's compressed strings; see `masks.spans.counts_of`."""
        parts, first, size = [_decoded([])], 0, 0
        for stop, string in enumerate(strings, start=1):
            size += len(string)
            if size > _AT_ONCE or stop == len(strings):
                parts.append(_decoded(strings[first:stop]))
                first, size = stop, 0
        ends, filled, runs, valid = (np.concatenate(each) for each in zip(*parts, strict=True))
        return cls(ends, filled, np.concatenate(([0], np.cumsum(runs))), valid)

    @property
    def pixels(self) -> Ints:
        """Return the height times width of each mask's image, int64 (n,); 0 for an invalid one."""
        return self._last(self.ends)

    @property
    def area(self) -> Ints:
        """Return the pixels of each mask, int64 (n,)."""
        return self._last(self.filled)

    def shared(self, one: Ints, other: Ints) -> Ints:
        """Return the pixels that mask one[i] and mask other[i] share, int64 (pairs,)."""
        runs = np.diff(self.starts)
        swap = runs[one] < runs[other]  # the runs of the simpler one are looked up
        one, other = np.where(swap, other, one), np.where(swap, one, other)
        stride = int(self.ends.max(initial=0)) + 1
        keys = self.ends + np.repeat(np.arange(len(runs)), runs) * stride
        found, queries = [np.zeros(0, np.int64)], np.cumsum(runs[other])
        start = 0
        while start < len(one):
            done = queries[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(queries, done + _AT_ONCE)))
            found.append(self._shared(keys, one[start:stop], other[start:stop], stride))
            start = stop
        return np.concatenate(found)

    def _shared(self, keys: Ints, one: Ints, other: Ints, stride: int) -> Ints:
        first = self.starts[other]
        even = (self.starts[other + 1] - first) & ~1  # a run at the end that is not the mask's
        pair, run = ranges(first, first + even)
        end = self.ends[run]
        place = np.searchsorted(keys, end + one[pair] * stride)
        inside = (place - self.starts[one][pair]) & 1
        before = self.filled[place] - inside * (self.ends[place] - end)
        sign = np.where((run - first[pair]) & 1, before, -before)
        return totals(pair, sign, len(one))

    def _last(self, values: Ints) -> Ints:
        stop = self.starts[1:]
        there = stop > self.starts[:-1]
        return np.where(there, values[stop - 1] if len(values) else 0, 0)


def _decoded(strings: Sequence[bytes]) -> tuple[Ints, Ints, Ints, Bools]:
    """Return (ends, filled, number of runs of each, valid) of some strings."""
    lengths = np.array([len(string) for string in strings], np.int64)
    data = np.frombuffer(b"".join(strings), np.uint8) - np.uint8(48)  # characters below 48 wrap, to above 63
    owner_of_char = np.repeat(np.arange(len(strings)), lengths)
    valid = lengths > 0
    valid[owner_of_char[data > 63]] = False
    there = np.flatnonzero(lengths)
    valid[there] &= data[np.cumsum(lengths)[there] - 1] & _MORE == 0
    if not valid.all():  # one that ends early would go on in the next
        kept = valid[owner_of_char]
        data, owner_of_char = data[kept], owner_of_char[kept]
    last = np.flatnonzero(data & _MORE == 0)
    first = np.concatenate(([0], last[:-1] + 1)) if len(last) else last
    group = np.arange(len(data)) - np.repeat(first, last - first + 1)
    owner = owner_of_char[last]
    valid[owner[group[last] >= _GROUPS]] = False
    values = (data & _BITS).astype(np.int64) << 5 * np.minimum(group, _GROUPS)
    values = np.add.reduceat(values, first) if len(first) else values
    values -= np.where(data[last] & _SIGN, 1 << 5 * (np.minimum(group[last], _GROUPS) + 1), 0)
    counts, number = _undone(values, owner, len(strings))
    valid[owner[counts < 0]] = False
    kept = valid[owner]
    counts, number, owner = counts[kept], number[kept], owner[kept]
    runs = np.bincount(owner, minlength=len(strings)).astype(np.int64)
    begins = np.cumsum(runs) - runs
    return (
        _sums(counts, begins[runs > 0], runs[runs > 0]),
        _sums(np.where(number & 1, counts, 0), begins[runs > 0], runs[runs > 0]),
        runs,
        valid,
    )


def _undone(values: Ints, owner: Ints, masks: int) -> tuple[Ints, Ints]:
    """Return (run lengths, number of each run in its mask): from the fourth on they are differences."""
    runs = np.bincount(owner, minlength=masks)
    number = np.arange(len(values)) - np.repeat(np.cumsum(runs) - runs, runs)
    counts = values.copy()
    for chain in (number & 1 == 1, (number & 1 == 0) & (number > 0)):
        part = np.bincount(owner[chain], minlength=masks)
        counts[chain] = _sums(values[chain], (np.cumsum(part) - part)[part > 0], part[part > 0])
    return counts, number


def _sums(values: Ints, begins: Ints, lengths: Ints) -> Ints:
    """Return the cumulative sums within each segment."""
    summed = np.cumsum(values)
    before = summed[begins] - values[begins] if len(begins) else begins
    return summed - np.repeat(before, lengths)
