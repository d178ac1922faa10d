"""Where a crop lies in its source, how large it becomes and how it is turned: draws and arithmetic alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor

from segray.train.transforms.strength import Strength

BACKGROUND = 0
"""Class that `object_share` does not look for."""
TILTED = 0.5
"""Share of the pictures that `rotation` turns: the others keep their own sharpness."""

Fit = Literal["crop", "resize"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What pictures are brought into."""

    size: tuple[int, int]
    """Height, width in pixels."""
    fit: Fit
    """What scale 1 is: pixel for pixel, or the whole picture in the frame."""
    fill: list[int]
    """Level of each band where there is no picture."""
    void: int
    """Class where there is no picture."""


@dataclass(frozen=True, slots=True)
class Span:
    """Along one axis: source pixels [start, stop) become `length` pixels, with filling at both ends."""

    start: int
    stop: int
    length: int
    before: int
    """Pixels of filling."""
    after: int

    @property
    def size(self) -> int:
        """Pixels with the filling."""
        return self.before + self.length + self.after


@dataclass(frozen=True, slots=True)
class Axis:
    """Along one axis: source pixels [start, start + window), which may stick out, become `size` pixels."""

    source: int
    """Pixels of the whole picture."""
    size: int
    start: int
    window: int

    @classmethod
    def of(cls, source: int, size: int, scale: float, place: float | None, target: int | None) -> "Axis":
        """The window lies inside the picture or has all of it inside; with a target it has that pixel inside.

        The place is 0..1 between the outermost ones; None is the middle.
        """
        window = max(1, round(size / scale))
        if place is None:
            return cls(source, size, (source - window) // 2, window)
        first, last = sorted((0, source - window))
        if target is not None:
            first, last = max(first, target - window + 1), min(last, target)
        return cls(source, size, first + int(place * (last - first + 1)), window)

    def span(self, margin: int) -> Span:
        """The part of the window, wider at both ends by `margin` pixels of the result, that has picture."""
        size = self.size + 2 * margin
        window = max(1, round(size * self.window / self.size))
        start = self.start - (window - self.window) // 2
        first, last = max(start, 0), min(start + window, self.source)
        before = round((first - start) * size / window)
        length = max(1, round((last - start) * size / window) - before)
        before = min(before, size - length)
        return Span(first, last, length, before, size - length - before)

    def offset(self, pixel: int) -> float:
        """From the middle of the result to that of a source pixel, in pixels of the result."""
        return (pixel + 0.5 - self.start - self.window / 2) * self.size / self.window


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cut and resize, fill, turn by the angle, cut the margin off, turn by quarters, mirror."""

    rows: Span
    cols: Span
    """Both with the margin."""
    margin: tuple[int, int]
    """Rows and columns at each side that the turned frame reaches into; 0 where the angle is 0."""
    angle: float
    """Degrees, counter-clockwise as the quarters."""
    quarters: int
    upended: bool
    mirrored: bool


def drawn_geometry(mask: Tensor, frame: Frame, strength: Strength, random: Random) -> Geometry:
    """Return what is done to a picture with this mask, uint8 (height, width).

    Always takes as many numbers from `random`, so that one knob leaves the others' draws alone.
    """
    upended, mirrored = random.random() < strength.vertical_flip, random.random() < strength.flip
    turned, quarters = random.random() < strength.quarter_turns, 1 + int(3 * random.random())
    tilted, angle = random.random() < TILTED, random.uniform(-strength.rotation, strength.rotation)
    scale = math.exp(random.uniform(math.log(strength.smallest_scale), math.log(strength.largest_scale)))
    wanted, choice = random.random() < strength.object_share, [random.random() for _ in range(3)]
    places = random.random(), random.random()

    quarters, angle = quarters * turned, angle * tilted
    size = frame.size[::-1] if quarters % 2 else frame.size
    target = _object_pixel(mask, frame.void, choice) if wanted else None
    rows, cols = (
        Axis.of(
            source,
            pixels,
            scale * pixels / source if frame.fit == "resize" else scale,
            place if strength.random_crop or target else None,
            target[axis] if target else None,
        )
        for axis, (source, pixels, place) in enumerate(zip(mask.shape, size, places, strict=True))
    )
    if target and _leaves(rows.offset(target[0]), cols.offset(target[1]), size, angle):
        angle = 0.0
    margin = _margin(size, angle)
    return Geometry(rows.span(margin[0]), cols.span(margin[1]), margin, angle, quarters, upended, mirrored)


def _object_pixel(mask: Tensor, void: int, choice: Sequence[float]) -> tuple[int, int] | None:
    """Row and column of one pixel that is neither background nor void, all alike likely; None without any.

    One pixel in 64 is looked at, from a random start, and all only where nothing is found.
    """
    for step in (8, 1):
        row, col = (int(each * step) for each in choice[:2])
        sample = mask[row::step, col::step]
        found = torch.nonzero((sample != BACKGROUND) & (sample != void))
        if len(found):
            sample_row, sample_col = found[int(choice[2] * len(found))].tolist()
            return row + step * sample_row, col + step * sample_col
    return None


def _leaves(y: float, x: float, size: tuple[int, int], angle: float) -> bool:
    """Whether a point, given from the middle of the frame, is out of it once turned, or on its last pixel."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return abs(y * cos - x * sin) > size[0] / 2 - 1 or abs(x * cos + y * sin) > size[1] / 2 - 1


def _margin(size: tuple[int, int], angle: float) -> tuple[int, int]:
    """What the turned corners reach, and one pixel for the interpolation."""
    if not angle:
        return 0, 0
    height, width = size
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    rows, cols = (height * (cos - 1) + width * sin) / 2, (width * (cos - 1) + height * sin) / 2
    return max(0, math.ceil(rows)) + 1, max(0, math.ceil(cols)) + 1
