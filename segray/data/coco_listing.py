"""COCO JSON -> images with their annotations, looked up in their storage; no image is opened.

    file      FILE.json: `file_name`s are relative to the file, or to `root`; or absolute paths and URLs
    folder    FOLDER/instances.json: they are relative to FOLDER/images

An image may have a `split` and a `group` (not part of COCO's format). Nothing vanishes: every image of
the file is listed or rejected with a reason.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from segray.data.coco_file import TrueImage, TrueInstance, Truth, read_truth, true_instances
from segray.data.instance_files import FOLDER_FILE
from segray.data.pair_folders import SPLIT_NAMES, folder_uri
from segray.data.pair_lists import look_up
from segray.data.pairs import Pair, Pairs, Rejected
from segray.errors import ItemError, SettingsError
from segray.sources.item import Source
from segray.sources.manifest import base_of
from segray.sources.read_step import read_all
from segray.storage import StorageSettings, canonical_uri

FOLDER_IMAGES = "images"
_KEPT = ("id", "category_id", "segmentation", "iscrowd", "area")
"""Of an annotation; its box is computed from its mask."""
_LEAST_RING = 6
"""Coordinates of a triangle."""
_AT_ONCE = 4096
"""Images that are looked up at a time."""


@dataclass(frozen=True, slots=True)
class AnnotatedPair(Pair):
    """An image of a COCO file; its label is the part of the file that it carries."""

    annotations: str
    """JSON: `size` (height, width) and `annotations` of the image, in COCO's format."""


@dataclass(frozen=True, slots=True)
class CocoListing(Pairs):
    """The images and categories of a COCO file."""

    categories: dict[int, str]
    """Category id -> name."""
    without_mask: int = 0
    """Annotations that are left out: a box alone has no mask to learn."""

    def summary(self) -> str:
        """Return a one-line summary of what is listed and left out."""
        strays = self.ignored
        return (
            f"{len(self.pairs):,} images, {len(self.categories)} categories"
            + f", {self.without_mask:,} annotations without a mask left out" * bool(self.without_mask)
            + f", {strays:,} annotations of images that the file does not list" * bool(strays)
        )


def list_coco(data: str, storage: StorageSettings, root: str | None = None) -> CocoListing:
    """List the images of a COCO file.

    Raises SettingsError for what does not exist, is not COCO JSON, has an unknown split, or lists no image
    that exists.
    """
    file, base = coco_file_of(data, storage, root)
    (content,) = read_all([file], storage)
    if isinstance(content, ItemError):
        raise SettingsError(f"{file.uri}: {content.reason}")
    truth = read_truth(content, file.uri)
    del content
    if not truth.categories:
        raise SettingsError(f"{file.uri}: it has no categories")
    if not any(truth.annotations.values()):
        raise SettingsError(f"{file.uri}: it has no annotations with a mask")
    return listed_of(truth, file, base, storage)


def listed_of(
    truth: Truth, file: Source, base: str, storage: StorageSettings, rejected: Sequence[Rejected] = ()
) -> CocoListing:
    """Look up the images of a ground truth, which is consumed; their names are relative to `base`.

    file: its address. rejected: images that are known to be unusable. Raises SettingsError for an unknown
    split, and where no image exists.
    """
    without_mask = _only_masks(truth)
    pairs, lost = list[Pair](), list(rejected)
    seen: set[str] = set()
    for found in _found(truth, file, base, storage):
        if isinstance(found, Rejected):
            lost.append(found)
        elif found.image.uri in seen:
            lost.append(Rejected(found.label.uri, "listed_twice", f"{found.image.uri}: listed again"))
        else:
            seen.add(found.image.uri)
            pairs.append(found)
    if not pairs:
        first = f"; the first: {lost[0].uri}: {lost[0].error}" if lost else ""
        relative = "; set with --root what its names are relative to" * file.uri.lower().endswith(".json")
        raise SettingsError(f"{file.uri}: none of its {len(lost):,} images exists{relative}{first}")
    in_order = sorted(pairs, key=lambda pair: pair.image.uri)
    return CocoListing(in_order, lost, truth.strays, truth.categories, without_mask)


def _only_masks(truth: Truth) -> int:
    """Leave out annotations without a mask, as detectron2 does, and invalid rings; return how many."""
    left_out = 0
    for number, annotations in truth.annotations.items():
        kept = []
        for annotation in annotations:
            rings = annotation.get("segmentation")
            if isinstance(rings, list):
                rings = [ring for ring in rings if not isinstance(ring, list) or len(ring) >= _LEAST_RING]
            if rings:
                kept.append(annotation | {"segmentation": rings})
        left_out += len(annotations) - len(kept)
        truth.annotations[number] = kept
    return left_out


def instances_of(annotations: str, categories: dict[int, str]) -> tuple[tuple[int, int], list[TrueInstance]]:
    """Return (height, width) and the instances with their run lengths.

    Raises ItemError for an invalid one.
    """
    content = json.loads(annotations)
    height, width = content["size"]
    image = TrueImage("", "", (height, width))
    truth = Truth({0: image}, {0: content["annotations"]}, categories, 0)
    return (height, width), true_instances(truth, 0, masks=True)


def coco_file_of(data: str, storage: StorageSettings, root: str | None) -> tuple[Source, str]:
    """Return (the COCO file, what its names are relative to)."""
    is_file = canonical_uri(data).lower().endswith(".json")
    address = data if is_file else f"{data.rstrip('/')}/{FOLDER_FILE}"
    (file,) = look_up([address], Source(canonical_uri(data), data, "file", "", -1), ".", storage)
    if file.error_type is not None:
        hint = (
            "" if is_file else f"; for an instance model data is a COCO .json, or a folder with {FOLDER_FILE}"
        )
        raise SettingsError(f"{file.uri}: {file.error}{hint}")
    if root is not None:
        return file, root.rstrip("/")
    return file, base_of(file) if is_file else f"{data.rstrip('/')}/{FOLDER_IMAGES}"


def _found(
    truth: Truth, file: Source, base: str, storage: StorageSettings
) -> Iterator[AnnotatedPair | Rejected]:
    left = iter(list(truth.images.items()))
    below = folder_uri(base or "/")
    while some := list(islice(left, _AT_ONCE)):
        sources = look_up([image.name for _, image in some], file, base, storage)
        for (number, image), source in zip(some, sources, strict=True):
            uri = f"{file.uri}#image={number}"
            split = _split(image.split, uri)
            if source.error_type is not None:
                reason = "no_image" if source.error_type == "missing" else "storage"
                yield Rejected(source.uri, reason, source.error or "", split)  # type: ignore[arg-type]
                continue
            annotations = _annotations(image, truth.annotations.pop(number, []))
            version = hashlib.sha256(annotations.encode()).hexdigest()
            label = Source(uri, file.address, "file", version, len(annotations))
            item = hashlib.sha256(source.uri.encode("utf-8", "surrogateescape")).hexdigest()[:32]
            name, group = source.uri.removeprefix(below), _group(image.group, uri)
            yield AnnotatedPair(item, name, source, label, split, annotations, group=group)


def _split(name: object, where: str) -> str | None:
    if name is None:
        return None
    split = SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if split is None:
        raise SettingsError(f"{where}: split {str(name)[:40]!r} is not one of {', '.join(SPLIT_NAMES)}")
    return split


def _group(name: object, where: str) -> str | None:
    if name is None or isinstance(name, str) or (isinstance(name, int) and not isinstance(name, bool)):
        return None if name is None else str(name).strip() or None
    raise SettingsError(f"{where}: group {str(name)[:40]!r} is neither text nor a whole number")


def _annotations(image: TrueImage, annotations: Sequence[dict[str, Any]]) -> str:
    kept = [{name: each[name] for name in _KEPT if name in each} for each in annotations]
    return json.dumps({"size": image.size, "annotations": kept}, separators=(",", ":"))
