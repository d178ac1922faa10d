"""Panels of a validation image, side by side: of classes with error and legend, of instances in outline.

semantic   picture | truth | prediction | error, over a legend of its classes
instance   picture | truth | prediction, instances outlined
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segray.atomic import put_atomically
from segray.evaluate.confusion_matrix import SemanticScores
from segray.palette import VOID, palette
from segray.sources.names import is_image_name
from segray.train.reporting.lettering import class_names, end_of, font, lettered

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SIDE = 512
"""Maximum length of a panel's longer side, in pixels."""
SMALL = 256
"""An image whose longer side is at most half of this is enlarged, by a whole number."""
WRONG = (230, 25, 35)
VOID_LEVELS = (150, 190)
"""Void is striped in these greys; no class has them, because VOC's colours are multiples of 32."""
MARGIN, GAP, TITLE = 16, 10, 62
"""Pixels around everything, between panels, and above them (the item's name and each panel's)."""
CELL, LINE, SWATCH, LISTED = 150, 26, 16, 40
"""Minimum width of a panel's column, height of a legend's line, side of its square, maximum classes in it."""
_INK, _PALE, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Sample:
    """A validation item and the network's prediction."""

    name: str
    picture: Pixels
    """uint8 (height, width, 3)."""
    truth: Pixels
    """uint8 (height, width) class indices; 255 is void."""
    prediction: Pixels
    """uint8 (height, width) class indices; a 255 is wrong wherever the truth is a class."""

    def __post_init__(self) -> None:
        """Raise ValueError for pixels of another type or shape."""
        size = self.picture.shape[:2]
        if (
            self.picture.shape != (*size, 3)
            or not self.truth.shape == self.prediction.shape == size
            or any(each.dtype != np.uint8 for each in (self.picture, self.truth, self.prediction))
            or 0 in size
        ):
            raise ValueError(
                f"{self.name}: picture {self.picture.shape} {self.picture.dtype}, truth {self.truth.shape} "
                f"{self.truth.dtype}, prediction {self.prediction.shape} {self.prediction.dtype}: not uint8 "
                "(h, w, 3), (h, w), (h, w)"
            )


def chosen(names: Sequence[str], number: int = 4) -> list[int]:
    """Return which items are drawn, as indices in order.

    A function of the names alone, in any order; most stay the same when the data grow. (Those whose sha256
    is lowest.)
    """
    ranked = sorted(range(len(names)), key=lambda index: _digest(names[index]))
    return sorted(ranked[:number])


def write_panels(filesystem: fsspec.AbstractFileSystem, folder: str, name: str, drawn: Pixels) -> None:
    """Write or replace the panels of an item in a folder (OUTPUT/samples)."""
    content = io.BytesIO()
    Image.fromarray(drawn).save(content, "PNG")
    put_atomically(filesystem, f"{folder}/{file_name(name)}", content.getvalue())


def file_name(name: str) -> str:
    """Return the file name of an item's panels: ASCII letters, digits, `.`, `_` and `-`, then `.png`.

    `x.png` stays `x.png`; any other name gets eight hex digits of its sha256, so that no two share a file.
    """
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{,99}\.png", name):
        return name
    stem = name.rpartition(".")[0] if is_image_name(name) else name
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[-100:].lstrip(".")
    return f"{safe}-{_digest(name)[:8]}.png"


def panels(sample: Sample, classes: Sequence[str]) -> Pixels:
    """Return uint8 (height, width, 3): four panels of one size in a row, each in a column of its own.

    Right pixels of the error panel show the image, dim and grey; wrong ones are red.
    """
    scores = SemanticScores(len(classes))
    scores.add(sample.truth, sample.prediction)
    drawn = _drawn(sample, len(classes))
    column = max(drawn[0].shape[1], CELL) + GAP
    legend = _legend(sample, classes, scores)
    places, lines = _flow([each.width for each in legend], 4 * column - GAP)
    figures = scores.compute()
    known = figures["pixels"] > 0
    wrong = f"error: {1 - figures['pixel_accuracy']:.1%} wrong" if known else "error"
    titles = ("picture", "truth", "prediction", wrong)
    note = f"mIoU {figures['miou']:.3f}" if known else ""
    below = MARGIN + (lines - 1) * LINE + SWATCH
    canvas = _canvas(sample.name, [*zip(titles, drawn, strict=True)], 3, note, below)
    draw, top = ImageDraw.Draw(canvas), TITLE + drawn[0].shape[0] + MARGIN
    for entry, (left, line) in zip(legend, places, strict=True):
        entry.draw(canvas, draw, MARGIN + left, top + line * LINE)
    return np.asarray(canvas)


def outlined(name: str, picture: Pixels, truth: Sequence[Mask], found: Sequence[Mask]) -> Pixels:
    """Return uint8 (height, width, 3) panels; masks: bool (height, width), outlined in their colours."""
    panels = [("picture", ()), (f"truth: {len(truth)}", truth), (f"prediction: {len(found)}", found)]
    return side_by_side(name, picture, panels)


def side_by_side(name: str, picture: Pixels, panels: Sequence[tuple[str, Sequence[Mask]]]) -> Pixels:
    """Return uint8 (height, width, 3): the image once per panel, each with its title and outlined masks."""
    small = _resized(picture, scaled_size(*picture.shape[:2]), Image.Resampling.BOX)
    drawn = [(text, _with_outlines(small.copy(), masks)) for text, masks in panels]
    return np.asarray(_canvas(name, drawn, len(panels)))


def _canvas(
    name: str, panels: Sequence[tuple[str, Pixels]], titled: int, note: str = "", below: int = 0
) -> Image.Image:
    """Return panels of one size in a row, each in a column of its own under its title, below the item's name.

    titled: columns over which the name may extend, before its note; below: pixels left free under the panels.
    """
    height, width = panels[0][1].shape[:2]
    column = max(width, CELL) + GAP
    size = 2 * MARGIN + len(panels) * column - GAP, TITLE + height + below + MARGIN
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    title = end_of(lettered(name, file_name(name)), 16, titled * column)
    _write(draw, (MARGIN, 20), title, 16, _INK)
    _write(draw, (MARGIN + round(font(16).getlength(f"{title}  ")), 20), note, 14, _PALE)
    for number, (text, pixels) in enumerate(panels):
        left = MARGIN + number * column
        _write(draw, (left, 46), text, 14, _PALE)
        canvas.paste(Image.fromarray(pixels), (left, TITLE))
    return canvas


def scaled_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of a panel: at most `SIDE` per side; small ones enlarged by a whole number."""
    longer = max(height, width)
    if longer <= SIDE:
        factor = max(1, SMALL // longer)
        return height * factor, width * factor
    return max(1, round(height * SIDE / longer)), max(1, round(width * SIDE / longer))


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def _drawn(sample: Sample, classes: int) -> list[Pixels]:
    size = scaled_size(*sample.truth.shape)
    picture = _resized(sample.picture, size, Image.Resampling.BOX)  # the mean over each new pixel's area
    truth, prediction = (
        _resized(each, size, Image.Resampling.NEAREST) for each in (sample.truth, sample.prediction)
    )
    colours = palette(classes)
    error = np.repeat((picture.mean(axis=2, keepdims=True) * 0.5).astype(np.uint8), 3, axis=2)
    error[truth != prediction] = WRONG
    drawn = [picture, colours[truth], colours[prediction], error]
    for panel, void in zip(drawn[1:], (truth == VOID, prediction == VOID, truth == VOID), strict=True):
        panel[void] = _stripes(size)[void]
    return drawn


def _with_outlines(pixels: Pixels, masks: Sequence[Mask]) -> Pixels:
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


def _resized(pixels: Pixels, size: tuple[int, int], how: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], how)).copy()


def _stripes(size: tuple[int, int]) -> Pixels:
    rows, columns = np.indices(size)
    levels = np.where((rows + columns) // 4 % 2, *VOID_LEVELS).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A colour square and its text."""

    square: Pixels
    text: str
    figure: str = ""

    @property
    def width(self) -> int:
        return SWATCH + 8 + round(font(14).getlength(f"{self.text} {self.figure}")) + 22

    def draw(self, canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draw square, name and figure, in pixels of the canvas from its upper left corner."""
        canvas.paste(Image.fromarray(self.square), (left, top))
        draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), outline=_PALE)
        left += SWATCH + 8
        _write(draw, (left, top + SWATCH // 2), self.text, 14, _INK)
        left += round(font(14).getlength(f"{self.text} "))
        _write(draw, (left, top + SWATCH // 2), self.figure, 14, _PALE)


def _legend(sample: Sample, classes: Sequence[str], scores: SemanticScores) -> list[_Entry]:
    """Return the classes that occur, with their IoU in this image; only the largest, if they are many."""
    counts = np.bincount(np.concatenate((sample.truth, sample.prediction), axis=None), minlength=256)
    largest = sorted(np.flatnonzero(counts[: len(classes)]).tolist(), key=lambda index: -int(counts[index]))
    names, colours, ious = class_names(classes), palette(len(classes)), scores.compute()["per_class"]["iou"]
    square = (SWATCH, SWATCH)
    entries = [
        _Entry(
            np.full((*square, 3), colours[index]),
            names[index],
            "" if np.isnan(ious[index]) else f"{ious[index]:.2f}",
        )
        for index in sorted(largest[:LISTED])
    ]
    if len(largest) > LISTED:
        entries.append(_Entry(np.full((*square, 3), 255, np.uint8), f"and {len(largest) - LISTED} more"))
    if counts[VOID]:
        entries.append(_Entry(_stripes(square), "void"))
    return [*entries, _Entry(np.full((*square, 3), WRONG, np.uint8), "wrong")]


def _flow(widths: Sequence[int], room: int) -> tuple[list[tuple[int, int]], int]:
    """Return (left, line) of each entry, flowed in lines like words, and the number of lines."""
    places, left, line = [], 0, 0
    for width in widths:
        if left and left + width > room:
            left, line = 0, line + 1
        places.append((left, line))
        left += width
    return places, line + 1


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int]
) -> None:
    """Draw text from `at` to the right, vertically centred there."""
    draw.text(at, text, font=font(size), fill=ink, anchor="lm")
