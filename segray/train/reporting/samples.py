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
from PIL import Image, ImageDraw

from segray.atomic import put_atomically
from segray.evaluate.confusion_matrix import SemanticScores
from segray.palette import VOID, palette
from segray.sources.names import is_image_name
from segray.train.reporting.canvas import (
    CELL,
    GAP,
    LINE,
    MARGIN,
    SWATCH,
    TITLE,
    Entry,
    Mask,
    Pixels,
    canvas,
    flow,
    resized,
    scaled_size,
    stripes,
    with_outlines,
)
from segray.train.reporting.lettering import class_names, lettered

WRONG = (230, 25, 35)
LISTED = 40
"""Maximum classes in a legend."""


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
    places, lines = flow([each.width for each in legend], 4 * column - GAP)
    figures = scores.compute()
    known = figures["pixels"] > 0
    wrong = f"error: {1 - figures['pixel_accuracy']:.1%} wrong" if known else "error"
    titles = ("picture", "truth", "prediction", wrong)
    note = f"mIoU {figures['miou']:.3f}" if known else ""
    below = MARGIN + (lines - 1) * LINE + SWATCH
    drawing = canvas(shown_name(sample.name), [*zip(titles, drawn, strict=True)], 3, note, below)
    draw, top = ImageDraw.Draw(drawing), TITLE + drawn[0].shape[0] + MARGIN
    for entry, (left, line) in zip(legend, places, strict=True):
        entry.draw(drawing, draw, MARGIN + left, top + line * LINE)
    return np.asarray(drawing)


def outlined(name: str, picture: Pixels, truth: Sequence[Mask], found: Sequence[Mask]) -> Pixels:
    """Return uint8 (height, width, 3) panels; masks: bool (height, width), outlined in their colours."""
    panels = [("picture", ()), (f"truth: {len(truth)}", truth), (f"prediction: {len(found)}", found)]
    return side_by_side(name, picture, panels)


def side_by_side(name: str, picture: Pixels, panels: Sequence[tuple[str, Sequence[Mask]]]) -> Pixels:
    """Return uint8 (height, width, 3): the image once per panel, each with its title and outlined masks."""
    small = resized(picture, scaled_size(*picture.shape[:2]), Image.Resampling.BOX)
    drawn = [(text, with_outlines(small.copy(), masks)) for text, masks in panels]
    return np.asarray(canvas(shown_name(name), drawn, len(panels)))


def shown_name(name: str) -> str:
    """Return an item's name on one line, as the font can draw it."""
    return lettered(name, file_name(name))


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def _drawn(sample: Sample, classes: int) -> list[Pixels]:
    size = scaled_size(*sample.truth.shape)
    picture = resized(sample.picture, size, Image.Resampling.BOX)  # the mean over each new pixel's area
    truth, prediction = (
        resized(each, size, Image.Resampling.NEAREST) for each in (sample.truth, sample.prediction)
    )
    colours = palette(classes)
    error = np.repeat((picture.mean(axis=2, keepdims=True) * 0.5).astype(np.uint8), 3, axis=2)
    error[truth != prediction] = WRONG
    drawn = [picture, colours[truth], colours[prediction], error]
    for panel, void in zip(drawn[1:], (truth == VOID, prediction == VOID, truth == VOID), strict=True):
        panel[void] = stripes(size)[void]
    return drawn


def _legend(sample: Sample, classes: Sequence[str], scores: SemanticScores) -> list[Entry]:
    """Return the classes that occur, with their IoU in this image; only the largest, if they are many."""
    counts = np.bincount(np.concatenate((sample.truth, sample.prediction), axis=None), minlength=256)
    largest = sorted(np.flatnonzero(counts[: len(classes)]).tolist(), key=lambda index: -int(counts[index]))
    names, colours, ious = class_names(classes), palette(len(classes)), scores.compute()["per_class"]["iou"]
    square = (SWATCH, SWATCH)
    entries = [
        Entry(
            np.full((*square, 3), colours[index]),
            names[index],
            "" if np.isnan(ious[index]) else f"{ious[index]:.2f}",
        )
        for index in sorted(largest[:LISTED])
    ]
    if len(largest) > LISTED:
        entries.append(Entry(np.full((*square, 3), 255, np.uint8), f"and {len(largest) - LISTED} more"))
    if counts[VOID]:
        entries.append(Entry(stripes(square), "void"))
    return [*entries, Entry(np.full((*square, 3), WRONG, np.uint8), "wrong")]
