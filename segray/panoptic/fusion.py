"""One image: things and the label map -> segments, and the segment id of every pixel, window by window."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray.masks.spans import Ints, Spans, area, crop
from segray.output.panoptic import VOID_ID
from segray.panoptic.classes import Classes
from segray.panoptic.overlap import (
    around_all,
    bounds_of,
    overlap,
    sides_of,
    visible_things,
)
from segray.tile_overlap import Window

Ids = NDArray[np.uint32]
Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Thing:
    """One instance."""

    instance_id: str
    category_id: int
    category: str
    score: float | None
    """None where a person drew it."""
    iscrowd: int
    mask: Spans


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: a thing, or all pixels of a stuff class."""

    segment_id: int
    category_id: int
    category: str
    area: int
    window: Window
    """The smallest window around its pixels."""
    thing: Thing | None = None

    @property
    def bbox(self) -> list[float]:
        """The window as x, y, width, height."""
        window = self.window
        return [float(window.col_start), float(window.row_start), float(window.width), float(window.height)]

    @property
    def visible(self) -> float | None:
        """Share of the thing's mask that is left; None for stuff."""
        return None if self.thing is None else self.area / area(self.thing.mask)


class Fusion:
    """Segments of one image, of any size: one window of it is in memory."""

    def __init__(
        self,
        things: Sequence[Thing],
        labels: Callable[[Window], Labels],
        windows: Sequence[Window],
        classes: Classes,
        min_visible: float,
        min_stuff_area: int,
    ) -> None:
        """Decide; labels: returns the map, uint8 (h, w), of one of `windows`, which cover the image."""
        best = sorted(
            (each for each in things if len(each.mask)),
            key=lambda each: (each.score is not None, -(each.score or 0), each.instance_id),
        )
        kept = visible_things([each.mask for each in best], min_visible)
        self._masks = [best[each.index].mask for each in kept]
        self._sides = sides_of([each.window for each in kept])
        self._labels, self._windows = labels, windows
        self._last: tuple[Window, Ids, Labels] | None = None
        self.dropped = len(things) - len(kept)
        """Things that others hide."""
        self.segments = [
            Segment(number, thing.category_id, thing.category, each.area, each.window, thing)
            for number, (each, thing) in enumerate(((each, best[each.index]) for each in kept), start=1)
        ]
        self.small = 0
        """Stuff classes of fewer pixels than they must have."""
        self._stuff_ids = np.full(256, VOID_ID, np.uint32)
        self._add_stuff(classes, min_stuff_area)

    def ids(self) -> Iterator[tuple[Window, Ids]]:
        """Yield each window with the segment ids of its pixels, uint32 (h, w)."""
        for window in self._windows:
            ids, labels = self._painted(window)
            yield window, np.where(ids == VOID_ID, self._stuff_ids[labels], ids)

    def _add_stuff(self, classes: Classes, min_area: int) -> None:
        counts, found = np.zeros(256, np.int64), dict[int, list[Window]]()
        for window in self._windows:
            ids, labels = self._painted(window)
            free = np.where(ids == VOID_ID, labels, np.uint8(255))
            here = np.bincount(free.ravel(), minlength=256)
            counts += here
            for index in classes.stuff:
                if here[index]:
                    found.setdefault(index, []).append(bounds_of(free == index, window))
        for index in sorted(found):
            if counts[index] < min_area:
                self.small += 1
                continue
            number, (category_id, name) = len(self.segments) + 1, classes.stuff[index]
            self._stuff_ids[index] = number
            where = around_all(found[index])
            self.segments.append(Segment(number, category_id, name, int(counts[index]), where))

    def _painted(self, window: Window) -> tuple[Ids, Labels]:
        """Return ids with the things alone, and the map. The last window is kept: an image has only one."""
        if self._last is None or self._last[0] != window:
            self._last = (window, self._things(window), self._labels(window))
        return self._last[1:]

    def _things(self, window: Window) -> Ids:
        ids: Ids = np.full((window.height, window.width), VOID_ID, np.uint32)
        for index in _touching(self._sides, window):
            both = overlap(window, Window(*self._sides[index].tolist()))
            if both is not None:
                part = ids[
                    both.row_start - window.row_start : both.row_stop - window.row_start,
                    both.col_start - window.col_start : both.col_stop - window.col_start,
                ]
                part[crop(self._masks[index], both) & (part == VOID_ID)] = index + 1
        return ids


def _touching(sides: Ints, window: Window) -> list[int]:
    """Return the places of the windows, int64 (n, 4), that may share pixels with `window`, ascending."""
    rows = (sides[:, 0] < window.row_stop) & (sides[:, 1] > window.row_start)
    cols = (sides[:, 2] < window.col_stop) & (sides[:, 3] > window.col_start)
    found: list[int] = np.flatnonzero(rows & cols).tolist()
    return found
