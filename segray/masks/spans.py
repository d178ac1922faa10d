"""Masks as vertical spans, in any pixel frame: their size depends on the mask, not on the scene.

A mask is an int64 array (n, 3) of (column, first row, stop row), half-open, sorted by column, then row; the
spans of a column neither overlap nor touch. COCO's run lengths are the same in column-major order, where a
run may continue from the bottom of one column at the top of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.tile_overlap import Window

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Spans = Ints

_BITS, _MORE, _SIGN = 0x1F, 0x20, 0x10  # a character has five bits; the sixth marks continuation


def counts_of(strings: Sequence[str]) -> list[NDArray[np.int64]]:
    """Decode COCO's compressed strings to uncompressed run lengths, int64 (runs,) each.

    `rleFrString` of COCO's maskApi.c: characters minus 48 are groups of five bits, least significant first;
    the last group of a number carries its sign; from the fourth number on, each is the difference to the one
    two before it.
    """
    data = np.frombuffer("".join(strings).encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(data):
        return [np.zeros(0, np.int64) for _ in strings]
    last = np.flatnonzero(data & _MORE == 0)
    first = np.r_[0, last[:-1] + 1]
    group = np.arange(len(data)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((data & _BITS) << 5 * group, first)
    negative = data[last] & _SIGN != 0
    values[negative] -= 1 << 5 * (group[last][negative] + 1)
    ends = np.searchsorted(last, np.cumsum([len(string) for string in strings]))
    return [_undone(each) for each in np.split(values, ends[:-1])]


def _undone(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return run lengths from their differences: number i > 2 is a difference to number i - 2."""
    counts = numbers.copy()
    counts[1::2] = np.cumsum(numbers[1::2])
    counts[2::2] = np.cumsum(numbers[2::2])
    return counts


def spans_of(counts: NDArray[np.int64], height: int) -> Spans:
    """Convert uncompressed run lengths, int64 (runs,), of an image of `height` rows to spans (n, 3)."""
    bounds = np.cumsum(counts)
    starts, stops = bounds[0:-1:2], bounds[1::2]
    keep = stops > starts
    starts, stops = starts[keep], stops[keep]
    first, last = starts // height, (stops - 1) // height
    pieces = last - first + 1
    run = np.repeat(np.arange(len(starts)), pieces)
    col = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    top = np.where(col == first[run], starts[run] - col * height, 0)
    bottom = np.where(col == last[run], stops[run] - col * height, height)
    return np.stack([col, top, bottom], axis=1)


def encoded(masks: Sequence[Spans], height: int, width: int) -> list[str]:
    """Encode masks of spans (n, 3) as COCO's compressed strings of an image of `height` x `width`."""
    lengths = [{"size": [height, width], "counts": _counts(mask, height, width)} for mask in masks]
    objects = coco.frPyObjects(lengths, height, width) if lengths else []
    return [each["counts"].decode("ascii") for each in objects]


def _counts(mask: Spans, height: int, width: int) -> NDArray[np.int64]:
    starts, stops = mask[:, 0] * height + mask[:, 1], mask[:, 0] * height + mask[:, 2]
    apart = starts[1:] > stops[:-1]
    if len(mask):  # a run over the full height continues into the next column
        starts, stops = starts[np.r_[True, apart]], stops[np.r_[apart, True]]
    edges = np.r_[0, np.stack([starts, stops], axis=1).ravel(), height * width]
    counts: NDArray[np.int64] = np.diff(edges)
    return counts if counts[-1] or not len(mask) else counts[:-1]


def moved(mask: Spans, rows: int, cols: int) -> Spans:
    """Return the mask (n, 3) shifted down by `rows` and right by `cols` pixels."""
    further: Spans = mask + np.array([cols, rows, rows])
    return further


def union(masks: Sequence[Spans]) -> Spans:
    """Return the union of masks: spans (n, 3) of the pixels that are in any of them."""
    spans = np.concatenate(masks)
    spans = spans[np.lexsort((spans[:, 1], spans[:, 0]))]
    if len(spans) < 2:
        return spans
    tallest = int(spans[:, 2].max()) + 1
    starts, stops = spans[:, 0] * tallest + spans[:, 1], spans[:, 0] * tallest + spans[:, 2]
    reached = np.maximum.accumulate(stops)
    begins = np.r_[True, starts[1:] > reached[:-1]]
    ends = np.r_[begins[1:], True]
    return np.stack([spans[begins, 0], spans[begins, 1], reached[ends] - spans[begins, 0] * tallest], axis=1)


def area(mask: Spans) -> int:
    """Return the number of pixels of a mask (n, 3)."""
    return int((mask[:, 2] - mask[:, 1]).sum())


def bounds(mask: Spans) -> Window:
    """Return the smallest window around a mask (n, 3) of at least one pixel."""
    return Window(
        int(mask[:, 1].min()), int(mask[:, 2].max()), int(mask[:, 0].min()), int(mask[:, 0].max()) + 1
    )


def crop(mask: Spans, window: Window) -> NDArray[np.bool_]:
    """Rasterise a mask (n, 3) in a window: bool (height, width) of the window."""
    inside = mask[
        np.searchsorted(mask[:, 0], window.col_start) : np.searchsorted(mask[:, 0], window.col_stop)
    ]
    top = np.clip(inside[:, 1] - window.row_start, 0, window.height)
    bottom = np.clip(inside[:, 2] - window.row_start, 0, window.height)
    steps = np.zeros((window.width, window.height + 1), np.int8)
    np.add.at(steps, (inside[:, 0] - window.col_start, top), 1)
    np.add.at(steps, (inside[:, 0] - window.col_start, bottom), -1)
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).T.astype(bool)


@dataclass(frozen=True, slots=True)
class Pixels:
    """The concatenated spans of n masks."""

    spans: Spans
    owner: Ints
    """(spans,) index of the mask."""
    keys: Ints
    """(spans,) owner * stride + column, ascending."""
    stride: int
    firsts: Ints
    """(n,) index of each mask's first span."""
    bounds: Ints
    """(n, 4) row start, row stop, column start, column stop."""
    area: Ints
    """(n,) pixels."""

    @classmethod
    def of(cls, masks: list[Spans], width: int) -> "Pixels":
        """Concatenate masks of at least one span each, of an image of `width` pixels."""
        spans = np.concatenate(masks)
        lengths = np.array([len(mask) for mask in masks])
        firsts = np.cumsum(lengths) - lengths
        owner = np.repeat(np.arange(len(masks)), lengths)
        col, top, bottom = spans.T
        rows = np.minimum.reduceat(top, firsts), np.maximum.reduceat(bottom, firsts)
        bounds = np.stack([*rows, col[firsts], col[firsts + lengths - 1] + 1], axis=1)
        area = np.add.reduceat(bottom - top, firsts)
        return cls(spans, owner, owner * (width + 1) + col, width + 1, firsts, bounds, area)

    def sums(self, values: Ints) -> Ints:
        """Sum values int64 (spans,) over each mask: (n,)."""
        return np.add.reduceat(values, self.firsts)

    def within(self, masks: Ints, windows: Ints) -> Ints:
        """Count the pixels, int64 (k,), of mask masks[i] (k,) in windows[i] (k, 4), which may be empty.

        Spans are looked at only of masks that are partly inside.
        """
        bounds = self.bounds[masks]
        starts, stops = windows[:, ::2], windows[:, 1::2]
        inside = np.all((bounds[:, ::2] >= starts) & (bounds[:, 1::2] <= stops), axis=1)
        apart = np.any((bounds[:, 1::2] <= starts) | (bounds[:, ::2] >= stops), axis=1)
        found = np.where(inside, self.area[masks], 0)
        partly = ~(inside | apart)
        found[partly] = self._within(masks[partly], windows[partly])
        return found

    def _within(self, masks: Ints, windows: Ints) -> Ints:
        row_start, row_stop, col_start, col_stop = windows.T
        first = np.searchsorted(self.keys, masks * self.stride + col_start)
        which, span = ranges(first, np.searchsorted(self.keys, masks * self.stride + col_stop))
        top = np.maximum(self.spans[span, 1], row_start[which])
        bottom = np.minimum(self.spans[span, 2], row_stop[which])
        return totals(which, np.maximum(bottom - top, 0), len(masks))


def ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Return all j of all ranges [starts[i], stops[i]), int64 (total,), and the i of each, int64 (total,)."""
    lengths = np.maximum(stops - starts, 0)
    which = np.repeat(np.arange(len(starts)), lengths)
    return which, np.arange(len(which)) + (starts - np.cumsum(lengths) + lengths)[which]


def totals(index: Ints, values: NDArray[np.int64] | Bools, length: int) -> Ints:
    """Sum the values (k,) at each index (k,): int64 (length,), exact below 2^53."""
    return np.bincount(index, values, length).astype(np.int64)
