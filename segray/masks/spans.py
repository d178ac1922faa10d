"""Masks as vertical spans, in whatever frame: small where a mask is small, whatever the size of the scene.

A mask is an int64 array (n, 3) of (column, first row, stop row), half-open, sorted by column, then row; the
spans of a column neither overlap nor touch. COCO's run lengths are the same thing counted down the columns,
where a run may go on from the foot of one column into the head of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.tiles import Window

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Spans = Ints

_BITS, _MORE, _SIGN = 0x1F, 0x20, 0x10  # a character holds five bits, the sixth says that more follow


def counts_of(strings: Sequence[str]) -> list[NDArray[np.int64]]:
    """COCO's compressed strings -> uncompressed run lengths of each (`rleFrString` of its maskApi.c).

    Characters are groups of five bits, least significant first, less 48; the last group of a number carries
    its sign; from the fourth number on, each is the difference to the one two before it.
    """
    data = np.frombuffer("".join(strings).encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(data):
        return [np.zeros(0, np.int64) for _ in strings]
    last = np.flatnonzero(data & _MORE == 0)
    first = np.r_[0, last[:-1] + 1]
    place = np.arange(len(data)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((data & _BITS) << 5 * place, first)
    negative = data[last] & _SIGN != 0
    values[negative] -= 1 << 5 * (place[last][negative] + 1)
    ends = np.searchsorted(last, np.cumsum([len(string) for string in strings]))
    return [_undone(each) for each in np.split(values, ends[:-1])]


def _undone(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Run lengths from their differences: number i > 2 is a difference to number i - 2."""
    counts = numbers.copy()
    counts[1::2] = np.cumsum(numbers[1::2])
    counts[2::2] = np.cumsum(numbers[2::2])
    return counts


def spans_of(counts: NDArray[np.int64], height: int) -> Spans:
    """Uncompressed run lengths of an image of `height` rows -> spans."""
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
    """Spans -> COCO's compressed strings of an image of `height` x `width`."""
    lengths = [{"size": [height, width], "counts": _counts(mask, height, width)} for mask in masks]
    objects = coco.frPyObjects(lengths, height, width) if lengths else []
    return [each["counts"].decode("ascii") for each in objects]


def _counts(mask: Spans, height: int, width: int) -> NDArray[np.int64]:
    starts, stops = mask[:, 0] * height + mask[:, 1], mask[:, 0] * height + mask[:, 2]
    apart = starts[1:] > stops[:-1]
    if len(mask):  # over the full height, a run goes on into the next column
        starts, stops = starts[np.r_[True, apart]], stops[np.r_[apart, True]]
    edges = np.r_[0, np.stack([starts, stops], axis=1).ravel(), height * width]
    counts: NDArray[np.int64] = np.diff(edges)
    return counts if counts[-1] or not len(mask) else counts[:-1]


def moved(mask: Spans, rows: int, cols: int) -> Spans:
    """The mask, so many pixels further down and right."""
    further: Spans = mask + np.array([cols, rows, rows])
    return further


def union(masks: Sequence[Spans]) -> Spans:
    """Pixels that are in any of the masks."""
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
    """Pixels."""
    return int((mask[:, 2] - mask[:, 1]).sum())


def bounds(mask: Spans) -> Window:
    """The smallest window that holds a mask of at least one pixel."""
    return Window(
        int(mask[:, 1].min()), int(mask[:, 2].max()), int(mask[:, 0].min()), int(mask[:, 0].max()) + 1
    )


def crop(mask: Spans, window: Window) -> NDArray[np.bool_]:
    """(height, width) of the window: which of its pixels are in the mask."""
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
    """The spans of n masks behind one another."""

    spans: Spans
    owner: Ints
    """(spans,) number of the mask."""
    keys: Ints
    """(spans,) owner * stride + column, ascending."""
    stride: int

    @classmethod
    def of(cls, masks: list[Spans], width: int) -> "Pixels":
        spans = np.concatenate(masks)
        owner = np.repeat(np.arange(len(masks)), [len(mask) for mask in masks])
        return cls(spans, owner, owner * (width + 1) + spans[:, 0], width + 1)

    def sums(self, values: Ints) -> Ints:
        """(spans,) -> (n,) of each mask."""
        return np.add.reduceat(values, self._firsts())

    def bounds(self) -> Ints:
        """(n, 4) row start, row stop, column start, column stop."""
        firsts, (col, top, bottom) = self._firsts(), self.spans.T
        last_col = col[np.r_[firsts[1:], len(col)] - 1]
        rows = np.minimum.reduceat(top, firsts), np.maximum.reduceat(bottom, firsts)
        return np.stack([*rows, col[firsts], last_col + 1], axis=1)

    def within(self, masks: Ints, windows: Ints) -> Ints:
        """Pixels of mask masks[i] (k,) inside windows[i] (k, 4), which may be empty -> (k,)."""
        row_start, row_stop, col_start, col_stop = windows.T
        first = np.searchsorted(self.keys, masks * self.stride + col_start)
        which, span = ranges(first, np.searchsorted(self.keys, masks * self.stride + col_stop))
        top = np.maximum(self.spans[span, 1], row_start[which])
        bottom = np.minimum(self.spans[span, 2], row_stop[which])
        return totals(which, np.maximum(bottom - top, 0), len(masks))

    def _firsts(self) -> Ints:
        return np.flatnonzero(np.r_[True, self.owner[1:] != self.owner[:-1]])


def ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """All j of all [starts[i], stops[i]), with their i."""
    lengths = np.maximum(stops - starts, 0)
    which = np.repeat(np.arange(len(starts)), lengths)
    return which, np.arange(len(which)) + (starts - np.cumsum(lengths) + lengths)[which]


def totals(index: Ints, values: NDArray[np.int64] | Bools, length: int) -> Ints:
    """Sum of the values at each index; exact below 2^53."""
    return np.bincount(index, values, length).astype(np.int64)
