"""Qualitative panels: picture | truth | model A | model B …, of the images that were chosen.

OUTPUT/panels/01-NAME.png    those whose scores differ most first, then those taken at random
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from segray.comparison.candidates import Candidate
from segray.comparison.instances import InstanceData
from segray.comparison.results import ChosenImage, Results
from segray.comparison.semantic import SemanticData, class_map
from segray.comparison.settings import CompareSettings
from segray.data.pair_reader import Example
from segray.errors import ItemError
from segray.evaluate.compare_model import Classifier
from segray.models.weights import load_weights
from segray.output.folder import Output
from segray.palette import VOID, palette
from segray.train.reporting.canvas import (
    LINE,
    MARGIN,
    SWATCH,
    Entry,
    Pixels,
    canvas,
    canvas_size,
    flow,
    resized,
    scaled_size,
    stripes,
    with_outlines,
)
from segray.train.reporting.lettering import class_names
from segray.train.reporting.samples import file_name, shown_name

FOLDER = "panels"
LISTED = 40
"""Maximum classes in a legend."""


@dataclass(slots=True)
class Drawn:
    """What is drawn of one image, all of one size."""

    image: ChosenImage
    picture: Pixels
    truth: Pixels
    """uint8 (height, width) classes; or the picture with outlines, (height, width, 3)."""
    found: list[Pixels] = field(default_factory=list)
    """Of each model, likewise."""
    titles: list[str] = field(default_factory=list)
    """Of the truth and of each model."""


def write_panels(
    store: Output, settings: CompareSettings, drawn: Iterable[Drawn], classes: Sequence[str] | None
) -> dict[str, str]:
    """Write the panels, and delete others; return image -> name of its panels. classes: of label maps."""
    names = dict[str, str]()
    for number, each in enumerate(drawn, 1):
        pixels = panels_of(each, settings.columns, classes)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG", optimize=True)
        names[each.image.name] = f"{FOLDER}/{number:02d}-{file_name(each.image.name)}"
        store.write(names[each.image.name], content.getvalue())
    for name in store.files(FOLDER):
        if name not in names.values():
            store.delete(name)
    return names


def panels_of(drawn: Drawn, per_row: int, classes: Sequence[str] | None) -> Pixels:
    """Return the panels of one image, uint8 (height, width, 3)."""
    if classes is None:
        panels = [drawn.picture, drawn.truth, *drawn.found]
        return np.asarray(_canvas(drawn, panels, per_row, 0))
    colours = palette(len(classes))
    maps = [drawn.truth, *drawn.found]
    coloured = [np.where((each == VOID)[..., None], stripes(each.shape), colours[each]) for each in maps]
    panels = [drawn.picture, *coloured]
    size = drawn.picture.shape[0], drawn.picture.shape[1]
    room = canvas_size(len(panels), size, 0, per_row)[0] - 2 * MARGIN
    legend = _legend(maps, classes, colours)
    places, lines = flow([each.width for each in legend], room)
    below = MARGIN + (lines - 1) * LINE + SWATCH
    picture = _canvas(drawn, panels, per_row, below)
    draw, top = ImageDraw.Draw(picture), picture.height - below
    for entry, (left, line) in zip(legend, places, strict=True):
        entry.draw(picture, draw, MARGIN + left, top + line * LINE)
    return np.asarray(picture)


def _canvas(drawn: Drawn, panels: Sequence[Pixels], per_row: int, below: int) -> Image.Image:
    titled = zip(("picture", *drawn.titles), panels, strict=True)
    columns = max(1, min(len(panels), per_row) - 1)
    return canvas(shown_name(drawn.image.name), [*titled], columns, drawn.image.why, below, per_row)


def _legend(maps: Sequence[Pixels], classes: Sequence[str], colours: NDArray[np.uint8]) -> list[Entry]:
    """Return the classes that occur; only the largest, if they are many."""
    counts = np.bincount(np.concatenate(maps, axis=None), minlength=256)
    largest = sorted(np.flatnonzero(counts[: len(classes)]).tolist(), key=lambda each: -int(counts[each]))
    names, square = class_names(classes), (SWATCH, SWATCH)
    entries = [
        Entry(np.full((*square, 3), colours[each], np.uint8), names[each])
        for each in sorted(largest[:LISTED])
    ]
    if len(largest) > LISTED:
        entries.append(Entry(np.full((*square, 3), 255, np.uint8), f"and {len(largest) - LISTED} more"))
    return [*entries, Entry(stripes(square), "void or no class")] if counts[VOID] else entries


def _size(pixels: Pixels, side: int) -> tuple[int, int]:
    return scaled_size(pixels.shape[0], pixels.shape[1], side)


def _titles(candidates: Sequence[Candidate], image: ChosenImage) -> list[str]:
    both = zip(candidates, image.scores, strict=True)
    return ["truth", *(f"{each.name}  {'-' if np.isnan(score) else f'{score:.3f}'}" for each, score in both)]


def drawn_of(
    data: SemanticData | InstanceData, candidates: Sequence[Candidate], results: Results
) -> list[Drawn]:
    """Return what is drawn of the images that were chosen; one that cannot be read any more is left out."""
    if isinstance(data, SemanticData):
        return semantic_panels(data, candidates, results.images)
    return instance_panels(data, candidates, results)


def semantic_panels(
    data: SemanticData, candidates: Sequence[Candidate], images: Sequence[ChosenImage]
) -> list[Drawn]:
    """Return what is drawn of the images; each model is loaded once more, one after the other."""
    settings = data.settings
    pairs = {pair.name: pair for pair in data.chosen.pairs}
    wanted = [pairs[image.name] for image in images]
    drawn = list[Drawn]()
    for image, (_, example) in zip(images, data.examples(wanted), strict=True):
        if isinstance(example, Example):  # else it vanished since it was scored
            size = _size(example.pixels, settings.panel_side)
            picture = resized(example.pixels, size, Image.Resampling.BOX)
            truth = resized(example.classes, size, Image.Resampling.NEAREST)
            drawn.append(Drawn(image, picture, truth, titles=_titles(candidates, image)))
    for candidate in candidates:
        model = load_weights(candidate.spec, settings.storage, "semantic")
        classifier = Classifier(model, data.device, data.precision)
        to_labels = class_map(model.classes, data.classes)
        shown = [pairs[each.image.name] for each in drawn]
        for each, (_, example) in zip(drawn, data.examples(shown), strict=True):
            found = np.full(each.truth.shape, VOID, np.uint8)
            if isinstance(example, Example):
                _, classes = classifier.compared(example.pixels, example.classes, own_size=True)
                found = resized(to_labels[classes.numpy()], each.truth.shape[:2], Image.Resampling.NEAREST)
            each.found.append(found)
    return drawn


def instance_panels(data: InstanceData, candidates: Sequence[Candidate], results: Results) -> list[Drawn]:
    """Return what is drawn of the images that were chosen: predictions above each class's best threshold."""
    images = results.images
    side = data.settings.panel_side
    drawn = list[Drawn]()
    for image, (_, pixels) in zip(images, data.pixels([image.name for image in images]), strict=True):
        if not isinstance(pixels, ItemError):
            size = _size(pixels, side)
            small = resized(pixels, size, Image.Resampling.BOX)
            drawn.append(Drawn(image, small, small, titles=_titles(candidates, image)))
    names = [each.image.name for each in drawn]
    for number, candidate in enumerate(candidates):
        least = {each["id"]: each["score"] for each in results.models[number].more["thresholds"]}
        truth, found = data.masks(candidate, names, least)
        for each in drawn:
            if not number:
                each.truth = _outlined(each.picture, truth[each.image.name])
                each.titles[0] = f"truth: {len(truth[each.image.name]):,}"
            masks = found[each.image.name]
            each.found.append(_outlined(each.picture, masks))
            each.titles[number + 1] += f": {len(masks):,}"
    return drawn


def _outlined(picture: Pixels, masks: Sequence[dict[str, Any]]) -> Pixels:
    """Return the picture with outlines; masks: COCO run lengths."""
    return with_outlines(picture.copy(), [np.asarray(coco_mask.decode(each), bool) for each in masks])
