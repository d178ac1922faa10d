"""A crop's position in its source, its size and rotation: draws and arithmetic alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor

from segray.train.transforms.strength import TILTED, Strength

BACKGROUND = 0
"""Class that `object_share` ignores."""

Fit = Literal["crop", "resize"]


@dataclass(frozen=True, slots=True)
class Frame:
    """The size and filling of the result."""

    size: tuple[int, int]
    """Height, width in pixels."""
    fit: Fit
    """Meaning of scale 1: pixel for pixel, or the whole image in the frame."""
    fill: list[int]
    """Level of each band outside the image."""
    void: int
    """Class outside the image."""


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
        """Return the pixels with the filling."""
        return self.before + self.length + self.after


@dataclass(frozen=True, slots=True)
class Axis:
    """Along one axis: source pixels [start, start + window), which may exceed it, become `size` pixels."""

    source: int
    """Pixels of the whole image."""
    size: int
    start: int
    window: int

    @classmethod
    def of(cls, source: int, size: int, scale: float, place: float | None, target: int | None) -> "Axis":
        """Return a window inside the image, or around all of it; with a target it contains that pixel.

        The place is 0..1 between the outermost positions; None is the middle.
        """
        window = max(1, round(size / scale))
        if place is None:
            return cls(source, size, (source - window) // 2, window)
        first, last = sorted((0, source - window))
        if target is not None:
            first, last = max(first, target - window + 1), min(last, target)
        return cls(source, size, first + int(place * (last - first + 1)), window)

    def span(self, margin: int) -> Span:
        """Return the part of the window, `margin` result pixels wider at both ends, that is in the image."""
        size = self.size + 2 * margin
        window = max(1, round(size * self.window / self.size))
        start = self.start - (window - self.window) // 2
        first, last = max(start, 0), min(start + window, self.source)
        before = round((first - start) * size / window)
        length = max(1, round((last - start) * size / window) - before)
        before = min(before, size - length)
        return Span(first, last, length, before, size - length - before)

    def offset(self, pixel: int) -> float:
        """Return the distance of a source pixel from the middle of the result, in pixels of the result."""
        return (pixel + 0.5 - self.start - self.window / 2) * self.size / self.window


@dataclass(frozen=True, slots=True)
class Geometry:
    """The steps: cut and resize, fill, rotate, cut the margin off, rotate by quarters, mirror."""

    rows: Span
    cols: Span
    """Both with the margin."""
    margin: tuple[int, int]
    """Rows and columns at each side that the rotated frame reaches into; 0 where the angle is 0."""
    angle: float
    """Degrees, counter-clockwise like the quarters."""
    quarters: int
    upended: bool
    mirrored: bool


def drawn_geometry(mask: Tensor, frame: Frame, strength: Strength, random: Random) -> Geometry:
    """Return the geometry for an image with this mask, uint8 (height, width).

    Always draws the same number of random values, so that one knob does not change the others' draws.
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
    """Return row and column of a random pixel that is neither background nor void; None without any.

    One pixel in 64 is searched, from a random start, and all only where that finds none.
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
    """Return whether a rotated point, relative to the frame's middle, leaves it or is on its last pixel."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return abs(y * cos - x * sin) > size[0] / 2 - 1 or abs(x * cos + y * sin) > size[1] / 2 - 1


def _margin(size: tuple[int, int], angle: float) -> tuple[int, int]:
    """Return the reach of the rotated corners, plus one pixel for the interpolation."""
    if not angle:
        return 0, 0
    height, width = size
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    rows, cols = (height * (cos - 1) + width * sin) / 2, (width * (cos - 1) + height * sin) / 2
    return max(0, math.ceil(rows)) + 1, max(0, math.ceil(cols)) + 1
