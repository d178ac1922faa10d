"""COCO files, validated: the ground truth of a data set, and lists of results."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from reprlib import repr as brief
from typing import Any

from segray.errors import ItemError, SettingsError
from segray.masks.coco_segmentation import MOST_PIXELS, rle_of
from segray.masks.types import Box, Rle

ImageId = int | str


@dataclass(frozen=True, slots=True)
class TrueImage:
    """One image of the data set."""

    key: str
    """The image's name, with a prefix by which it sorts as its id does."""
    name: str
    """`file_name`."""
    size: tuple[int, int]
    """Height, width in pixels."""
    split: object = None
    """The `split` as the file has it, not validated; likewise `group`:"""
    group: object = None


@dataclass(frozen=True, slots=True)
class Truth:
    """The content of a COCO JSON file."""

    images: dict[ImageId, TrueImage]
    annotations: dict[ImageId, list[dict[str, Any]]]
    """Image id -> its annotations, for the images of the file."""
    categories: dict[int, str]
    strays: int
    """Annotations of images that are not in the file."""


@dataclass(frozen=True, slots=True)
class TrueInstance:
    """One annotation, validated."""

    mask: Rle | None
    category: int
    crowd: bool
    box: Box | None
    area: float | None


def read_truth(data: bytes, where: str, split: str | None = None) -> Truth:
    """Read the ground truth from COCO JSON; of one split, where images name theirs (`split`, not part of
    COCO).

    Raises SettingsError, which begins with `where`, for everything that is not COCO.
    """
    content = _json(data, where)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in ("images", "annotations", "categories")
    ):
        raise SettingsError(f"{where}: not COCO JSON: it needs images, annotations and categories")
    categories = _categories(content["categories"], where)
    entries = [each for each in content["images"] if split in (None, _get(each, "split"))]
    if content["images"] and not entries:
        raise SettingsError(f"{where}: no image has the split {split}")
    images = _images(entries, where)
    annotations: dict[ImageId, list[dict[str, Any]]] = defaultdict(list)
    every = images if split is None else {_whole(_get(each, "id")) for each in content["images"]}
    strays = 0
    for annotation in content["annotations"]:
        image_id = _among(every, _get(annotation, "image_id"))
        if image_id is None:
            strays += 1
        elif image_id in images:
            annotations[image_id].append(annotation)
    if images and strays and strays == len(content["annotations"]):
        first = brief(_get(content["annotations"][0], "image_id"))
        text = f"none of its {strays:,} annotations is of one of its images; the first has image_id {first}"
        raise SettingsError(f"{where}: {text}")
    return Truth(images, annotations, categories, strays)


def true_instances(truth: Truth, image_id: ImageId, *, masks: bool) -> list[TrueInstance]:
    """Return the instances of an image, with polygons rasterised to run lengths.

    Raises ItemError that names the first annotation that cannot be used. Without `masks` boxes are enough.
    """
    height, width = truth.images[image_id].size
    return [
        _instance(annotation, truth.categories, height, width, masks)
        for annotation in truth.annotations.pop(image_id, [])
    ]


def read_image(entry: Any, where: str) -> tuple[ImageId, TrueImage]:
    """Return id and contents of one entry of `images`. Raises SettingsError, which begins with `where`."""
    ((number, image),) = _images([entry], where).items()
    return number, image


def read_categories(entries: list[Any], where: str) -> dict[int, str]:
    """Return the entries of `categories` by id. Raises SettingsError, which begins with `where`."""
    return _categories(entries, where)


def known_id(known: Collection[Any], value: Any) -> Any:
    """Return the id that `value` means, 1.0 and "1" being 1; None where it is unknown."""
    return _among(known, value)


def read_results(data: bytes, where: str) -> tuple[list[dict[str, Any]], bool]:
    """Return (the list of results, whether they have masks).

    Raises SettingsError, which begins with `where`.
    """
    content = _json(data, where)
    if not isinstance(content, list):
        raise SettingsError(f"{where}: not COCO results: expected a list of image_id, category_id, score …")
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
    """Return a bbox's x, y, width, height. Raises ItemError for anything else."""
    if (
        not isinstance(value, Sequence)
        or len(value) != 4
        or not all(isinstance(each, int | float) and math.isfinite(each) for each in value)
        or min(value[2:]) < 0
    ):
        raise ItemError("unsupported", f"a bbox is x, y, width, height, not {str(value)[:60]}")
    return [float(each) for each in value]


def score_of(value: object) -> float:
    """Return a score.

    Raises ItemError for what is not a number: labels that a person corrected have no score.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ItemError("unsupported", f"a score is a number, not {brief(value)}")
    return float(value)


def _instance(
    annotation: dict[str, Any], categories: dict[int, str], height: int, width: int, masks: bool
) -> TrueInstance:
    try:
        category = _among(categories, annotation.get("category_id"))
        if not isinstance(category, int):
            text = brief(annotation.get("category_id"))
            raise ItemError("unsupported", f"category {text} is not in the file")
        crowd = _among((0, 1), annotation.get("iscrowd", 0))
        if crowd is None:
            text = brief(annotation["iscrowd"])
            raise ItemError("unsupported", f"iscrowd is 0 or 1, not {text}")
        segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
        has_mask = masks or box is None
        return TrueInstance(
            rle_of(segmentation, height, width) if has_mask else None,
            category,
            bool(crowd),
            None if box is None else box_of(box),
            _area(annotation.get("area")),
        )
    except ItemError as error:
        raise ItemError(
            error.error_type, f"truth: annotation {annotation.get('id')}: {error.reason}"
        ) from error


def _whole(value: Any) -> Any:
    """Convert an integer that was written as 1.0 or "1.0" (pandas, R); return everything else unchanged."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}\.0+", value):
        return int(float(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _among(known: Collection[Any], value: Any) -> Any:
    """Return the known id equal to `value`: 1.0 and "1" are 1; 1 is "1" where ids are text; None: unknown."""
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return int(value) if isinstance(value, bool) and int(value) in known else None
    if value in known:
        return value
    other: Any = str(value) if isinstance(value, int) else _number(value)
    return other if other in known else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _area(value: object) -> float | None:
    """Return the area; None where it is not a number, so that the mask's area is used."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _images(entries: list[Any], where: str) -> dict[ImageId, TrueImage]:
    ids = [_whole(_get(entry, "id")) for entry in entries]
    strange = next((each for each in ids if not isinstance(each, int | str)), None)
    if not all(isinstance(each, int | str) for each in ids):
        text = f"{brief(strange)} is neither a whole number nor text"
        raise SettingsError(f"{where}: images need ids of their own, {text}")
    twice = [each for each, number in Counter(map(repr, ids)).items() if number > 1]
    if twice:
        raise SettingsError(f"{where}: images need ids of their own, two have {twice[0][:60]}")
    if len({type(each) for each in ids}) > 1:
        raise SettingsError(f"{where}: some ids of images are numbers and some are text")
    images: dict[ImageId, TrueImage] = {}
    for rank, (number, entry) in enumerate(sorted(zip(ids, entries, strict=True), key=itemgetter(0))):
        name, size = entry.get("file_name"), (_side(entry.get("height")), _side(entry.get("width")))
        if not isinstance(name, str) or not name:
            raise SettingsError(f"{where}: image {number} has no file_name")
        if size[0] * size[1] == 0 or size[0] * size[1] > MOST_PIXELS:
            text = f"{brief(entry.get('height'))} and {brief(entry.get('width'))}"
            raise SettingsError(f"{where}: image {number} has no height and width that can be used: {text}")
        images[number] = TrueImage(f"{rank:09d} {name}", name, size, entry.get("split"), entry.get("group"))
    return images


def _side(value: Any) -> int:
    """Return a side in pixels; 0 where it is invalid."""
    value = _whole(value)
    value = _number(value) if isinstance(value, str) else value
    return value if type(value) is int and value > 0 else 0


def _categories(entries: list[Any], where: str) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries:
        number, name = _whole(_get(entry, "id")), _get(entry, "name")
        number = _number(number) if isinstance(number, str) else number
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
