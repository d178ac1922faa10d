"""What panels are drawn with: a canvas of titled panels in rows, outlines, stripes for void, a legend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segray.palette import VOID, palette
from segray.train.reporting.lettering import end_of, font

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SIDE = 512
"""Maximum length of a panel's longer side, in pixels."""
SMALL = 256
"""An image whose longer side is at most half of this is enlarged, by a whole number."""
VOID_LEVELS = (150, 190)
"""Void is striped in these greys; no class has them, because VOC's colours are multiples of 32."""
MARGIN, GAP, TITLE, CAPTION = 16, 10, 62, 28
"""Pixels around everything, between panels, above the first row (the item's name and the panels' titles), and
between rows (titles)."""
CELL, LINE, SWATCH = 150, 26, 16
"""Minimum width of a panel's column, height of a legend's line, side of its square."""
_INK, _PALE, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


def canvas(
    name: str,
    panels: Sequence[tuple[str, Pixels]],
    titled: int,
    note: str = "",
    below: int = 0,
    per_row: int = 0,
) -> Image.Image:
    """Return panels of one size, each in a column of its own under its title, below the item's name.

    titled: columns over which the name may extend, before its note; below: pixels left free under the panels;
    per_row: panels of a row, 0: all.
    """
    height, width = panels[0][1].shape[:2]
    column, per_row = max(width, CELL) + GAP, per_row or len(panels)
    picture = Image.new("RGB", canvas_size(len(panels), (height, width), below, per_row), _PAPER)
    draw = ImageDraw.Draw(picture)
    title = end_of(name, 16, titled * column)
    write(draw, (MARGIN, 20), title, 16, _INK)
    write(draw, (MARGIN + round(font(16).getlength(f"{title}  ")), 20), note, 14, _PALE)
    for number, (text, pixels) in enumerate(panels):
        row, place = divmod(number, per_row)
        left, top = MARGIN + place * column, TITLE + row * (height + CAPTION)
        write(draw, (left, top - 16), end_of(text, 14, column - GAP), 14, _PALE)
        picture.paste(Image.fromarray(pixels), (left, top))
    return picture


def canvas_size(panels: int, size: tuple[int, int], below: int, per_row: int) -> tuple[int, int]:
    """Return width and height of a canvas of panels of `size`, height and width; others as in `canvas`."""
    rows, columns = -(-panels // per_row), min(panels, per_row)
    width = 2 * MARGIN + columns * (max(size[1], CELL) + GAP) - GAP
    return width, TITLE + rows * (size[0] + CAPTION) - CAPTION + below + MARGIN


def scaled_size(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """Return height and width of a panel: at most `side` per side; small ones enlarged by a whole number."""
    longer = max(height, width)
    if longer <= side:
        factor = max(1, min(SMALL, side) // longer)
        return height * factor, width * factor
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


def with_outlines(pixels: Pixels, masks: Sequence[Mask]) -> Pixels:
    """Return pixels with each mask outlined in a colour of its own, in place; masks: bool (height, width)."""
    colours = palette(VOID)[1:VOID]
    for number, mask in enumerate(masks):
        resized = Image.fromarray(mask).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
        pixels[_outline(np.asarray(resized))] = colours[number % len(colours)]
    return pixels


def _outline(mask: Mask) -> Mask:
    """Return the mask's pixels next to one outside it; the image's border counts as outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Mask = mask & ~inner
    return edge


def resized(pixels: Pixels, size: tuple[int, int], how: Image.Resampling) -> Pixels:
    """Return pixels resized to height and width, a copy."""
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], how)).copy()


def stripes(size: tuple[int, int]) -> Pixels:
    """Return the stripes of void, uint8 (height, width, 3)."""
    rows, columns = np.indices(size)
    levels = np.where((rows + columns) // 4 % 2, *VOID_LEVELS).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


@dataclass(frozen=True, slots=True)
class Entry:
    """A colour square and its text."""

    square: Pixels
    text: str
    figure: str = ""

    @property
    def width(self) -> int:
        """Return the pixels that it takes in a line."""
        return SWATCH + 8 + round(font(14).getlength(f"{self.text} {self.figure}")) + 22

    def draw(self, canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draw square, name and figure, in pixels of the canvas from its upper left corner."""
        canvas.paste(Image.fromarray(self.square), (left, top))
        draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), outline=_PALE)
        left += SWATCH + 8
        write(draw, (left, top + SWATCH // 2), self.text, 14, _INK)
        left += round(font(14).getlength(f"{self.text} "))
        write(draw, (left, top + SWATCH // 2), self.figure, 14, _PALE)


def flow(widths: Sequence[int], room: int) -> tuple[list[tuple[int, int]], int]:
    """Return (left, line) of each entry, flowed in lines like words, and the number of lines."""
    places, left, line = [], 0, 0
    for width in widths:
        if left and left + width > room:
            left, line = 0, line + 1
        places.append((left, line))
        left += width
    return places, line + 1


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int]
) -> None:
    """Draw text from `at` to the right, vertically centred there."""
    draw.text(at, text, font=font(size), fill=ink, anchor="lm")
