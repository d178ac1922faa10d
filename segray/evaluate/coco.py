"""COCO files, checked: the truth of a data set, and lists of results."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from segray.errors import ItemError, SettingsError
from segray.evaluate.instance import Box, Rle
from segray.evaluate.masks import MOST_PIXELS, rle_of

ImageId = int | str


@dataclass(frozen=True, slots=True)
class TrueImage:
    """One image of the data set."""

    key: str
    """Sorts as the ids do, and names the image."""
    name: str
    """`file_name`."""
    size: tuple[int, int]
    """Height, width in pixels."""
    split: object = None
    """What the data say, unchecked."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a COCO JSON file says."""

    images: dict[ImageId, TrueImage]
    annotations: dict[ImageId, list[dict[str, Any]]]
    """Of these images."""
    categories: dict[int, str]
    strays: int
    """Annotations of images that are not in the file."""


@dataclass(frozen=True, slots=True)
class TrueInstance:
    """One annotation, understood."""

    mask: Rle | None
    category: int
    crowd: bool
    box: Box | None
    area: float | None


def read_truth(data: bytes, where: str, split: str | None = None) -> Truth:
    """The truth in COCO JSON; of a split, where the images name theirs (`split`, not part of COCO's format).

    Raises SettingsError, which begins with `where`, for everything that is not COCO.
    """
    content = _json(data, where)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in ("images", "annotations", "categories")
    ):
        raise SettingsError(f"{where}: no COCO JSON: it needs images, annotations and categories")
    categories = _categories(content["categories"], where)
    entries = [each for each in content["images"] if split in (None, _get(each, "split"))]
    if content["images"] and not entries:
        raise SettingsError(f"{where}: no image says that its split is {split}")
    images = _images(entries, where)
    annotations: dict[ImageId, list[dict[str, Any]]] = defaultdict(list)
    every = images if split is None else {_get(each, "id") for each in content["images"]}
    strays = 0
    for annotation in content["annotations"]:
        image_id = _get(annotation, "image_id")
        if not isinstance(image_id, int | str):
            strays += 1
        elif image_id in images:
            annotations[image_id].append(annotation)
        elif image_id not in every:
            strays += 1
    return Truth(images, annotations, categories, strays)


def true_instances(truth: Truth, image_id: ImageId, *, masks: bool) -> list[TrueInstance]:
    """The instances of an image; polygons become run lengths and are forgotten.

    Raises ItemError that names the first annotation that cannot be used. Without `masks` boxes are enough.
    """
    height, width = truth.images[image_id].size
    return [
        _instance(annotation, truth.categories, height, width, masks)
        for annotation in truth.annotations.pop(image_id, [])
    ]


def read_results(data: bytes, where: str) -> tuple[list[dict[str, Any]], bool]:
    """(The list of results, whether they have masks). Raises SettingsError, which begins with `where`."""
    content = _json(data, where)
    if not isinstance(content, list):
        raise SettingsError(f"{where}: no COCO results: they are a list of image_id, category_id, score …")
    for place, result in enumerate(content):
        lacks = [name for name in ("image_id", "category_id", "score") if _get(result, name) is None]
        if lacks:
            raise SettingsError(f"{where}: result {place} has no {', '.join(lacks)}")
        if not isinstance(result["image_id"], int | str):
            raise SettingsError(f"{where}: result {place}: an image_id is a number or text")
        if not isinstance(result["category_id"], int):
            raise SettingsError(f"{where}: result {place}: a category_id is a number")
    masks = sum("segmentation" in result for result in content)
    if masks not in (0, len(content)):
        raise SettingsError(
            f"{where}: {masks:,} of {len(content):,} results have a segmentation; all must, or none"
        )
    return content, masks > 0 or not content


def box_of(value: object) -> Box:
    """x, y, width, height. Raises ItemError for what is no box."""
    if (
        not isinstance(value, Sequence)
        or len(value) != 4
        or not all(isinstance(each, int | float) and math.isfinite(each) for each in value)
        or min(value[2:]) < 0
    ):
        raise ItemError("unsupported", f"a bbox is x, y, width, height, not {str(value)[:60]}")
    return [float(each) for each in value]


def score_of(value: object) -> float:
    """Raises ItemError for what is no number: labels that a person corrected have no score."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ItemError("unsupported", f"a score is a number, not {brief(value)}")
    return float(value)


def _instance(
    annotation: dict[str, Any], categories: dict[int, str], height: int, width: int, masks: bool
) -> TrueInstance:
    try:
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in categories:
            raise ItemError("unsupported", f"category {brief(category)} is none of the file's")
        segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
        has_mask = masks or box is None
        return TrueInstance(
            rle_of(segmentation, height, width) if has_mask else None,
            category,
            bool(annotation.get("iscrowd", 0)),
            None if box is None else box_of(box),
            None if annotation.get("area") is None else score_of(annotation["area"]),
        )
    except ItemError as error:
        raise ItemError(
            error.error_type, f"truth: annotation {annotation.get('id')}: {error.reason}"
        ) from error


def _images(entries: list[Any], where: str) -> dict[ImageId, TrueImage]:
    ids = [_get(entry, "id") for entry in entries]
    twice = [each for each, number in Counter(map(repr, ids)).items() if number > 1]
    if twice or not all(isinstance(each, int | str) for each in ids):
        raise SettingsError(
            f"{where}: images need ids of their own, {twice[0][:60] if twice else None} is not"
        )
    if len({type(each) for each in ids}) > 1:
        raise SettingsError(f"{where}: some ids of images are numbers and some are text")
    images: dict[ImageId, TrueImage] = {}
    for rank, entry in enumerate(sorted(entries, key=lambda entry: entry["id"])):
        name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
        if not isinstance(name, str) or not name:
            raise SettingsError(f"{where}: image {entry['id']} has no file_name")
        if not all(type(side) is int and side > 0 for side in size) or size[0] * size[1] > MOST_PIXELS:
            raise SettingsError(f"{where}: image {entry['id']} has no height and width that can be used")
        images[entry["id"]] = TrueImage(f"{rank:09d} {name}", name, size, entry.get("split"))
    return images


def _categories(entries: list[Any], where: str) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries:
        number, name = _get(entry, "id"), _get(entry, "name")
        if type(number) is not int or not isinstance(name, str) or number in categories:
            raise SettingsError(
                f"{where}: categories need an id of their own and a name, {brief(entry)} has not"
            )
        categories[number] = name
    return categories


def _get(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else None


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where}: it is not JSON: {error}") from error
