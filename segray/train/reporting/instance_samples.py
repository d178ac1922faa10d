"""Panels of a validation picture of an instance model: `picture | truth | prediction`, instances outlined."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segray.palette import VOID, palette
from segray.train.reporting.lettering import end_of, font, lettered
from segray.train.reporting.samples import GAP, MARGIN, TITLE, Pixels, file_name, scaled_size

Mask = NDArray[np.bool_]


def outlined(name: str, picture: Pixels, truth: Sequence[Mask], found: Sequence[Mask]) -> Pixels:
    """uint8 (height, width, 3); masks are (height, width) of the picture, each outlined in its own colour."""
    panels = [("picture", ()), (f"truth: {len(truth)}", truth), (f"prediction: {len(found)}", found)]
    return side_by_side(name, picture, panels)


def side_by_side(name: str, picture: Pixels, panels: Sequence[tuple[str, Sequence[Mask]]]) -> Pixels:
    """The picture as often as there are panels, each with its words above and its masks outlined."""
    height, width = scaled_size(*picture.shape[:2])
    column = max(width, 150) + GAP
    size = 2 * MARGIN + len(panels) * column - GAP, TITLE + height + MARGIN
    canvas = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    title = end_of(lettered(name, file_name(name)), 16, len(panels) * column)
    draw.text((MARGIN, 20), title, font=font(16), fill=(30, 30, 30), anchor="lm")
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    for number, (text, masks) in enumerate(panels):
        left = MARGIN + number * column
        draw.text((left, 46), text, font=font(14), fill=(110, 110, 110), anchor="lm")
        canvas.paste(Image.fromarray(_drawn(np.asarray(small).copy(), masks)), (left, TITLE))
    return np.asarray(canvas)


def _drawn(pixels: Pixels, masks: Sequence[Mask]) -> Pixels:
    colours = palette(VOID)[1:VOID]
    for number, mask in enumerate(masks):
        resized = Image.fromarray(mask).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
        pixels[_outline(np.asarray(resized))] = colours[number % len(colours)]
    return pixels


def _outline(mask: Mask) -> Mask:
    """The mask's pixels beside one that is not in it; the picture's border counts as outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Mask = mask & ~inner
    return edge
