"""Labels in the format of `annotate` -> images with their annotations; no image is opened.

    images/*.parquet     a row for each image that was annotated, also for one without an instance; with
                         columns `split` and `group` where a user added them
    instances/*.parquet  a null `score`: a person drew or confirmed it; others count above `min_score` alone

An image in which the model found something and a person confirmed nothing has not been reviewed: without a
`min_score` it is left out, and counted, since it would pass for an empty one. Nothing else vanishes: every
other row of `images` is listed or rejected with a reason.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.data.coco_file import ImageId, TrueImage, Truth
from segray.data.coco_listing import CocoListing, listed_of
from segray.data.pairs import Rejected
from segray.errors import SettingsError
from segray.log import say
from segray.masks.coco_segmentation import MOST_PIXELS
from segray.output.io import files_below
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri

_IMAGES = ("image_id", "uri", "height", "width")
_IMAGES_MAY = ("member", "status", "error_type", "error", "split", "group")
_INSTANCES = ("image_id", "category_id", "category", "score", "segmentation")
_INSTANCES_MAY = ("instance_id", "iscrowd")
"""Required columns, and optional ones."""


class NothingConfirmedError(SettingsError):
    """No instance has been corrected or confirmed yet."""


def holds_labels(data: str, storage: StorageSettings) -> bool:
    """Return whether `data` is an output of `annotate`, or has its layout."""
    return bool(files_below(f"{data.rstrip('/')}/images", (".parquet",), storage))


def list_labels(data: str, storage: StorageSettings, min_score: float | None = None) -> CocoListing:
    """List the images of corrected labels; relative addresses in them are relative to `data`.

    Raises SettingsError as `read_labels`.
    """
    truth, rejected = read_labels(data, storage, min_score)
    file = Source(canonical_uri(data), data, "file", "", -1)
    return listed_of(truth, file, data.rstrip("/"), storage, rejected)


def read_labels(
    data: str, storage: StorageSettings, min_score: float | None = None
) -> tuple[Truth, list[Rejected]]:
    """Return the images of corrected labels with their annotations, and those that cannot be used.

    Raises SettingsError for tables that cannot be read, lack a column or contradict each other, and
    NothingConfirmedError where there is nothing to learn from.
    """
    where = canonical_uri(data)
    images, rejected = _images(data, where, storage)
    found = _Instances(where, min_score)
    for row in _rows(f"{data.rstrip('/')}/instances", _INSTANCES, _INSTANCES_MAY, storage):
        found.add(row, images)
    if not found.annotations:
        advice = "correct some, or set --min-score to learn from the model's own above it"
        raise NothingConfirmedError(f"{where}: no instance was drawn or confirmed by a person; {advice}")
    if found.unsure:
        least = "" if min_score is None else f" of {min_score:g} or less"
        say(f"{found.unsure:,} instances with a score{least} are left out: no person confirmed them")
    if min_score is None and (waiting := found.waiting):
        say(f"{len(waiting):,} images are left out: no instance of theirs was confirmed by a person")
        images = {key: image for key, image in images.items() if key not in waiting}
    return Truth(images, found.in_order(), found.categories, found.strays), rejected


def _images(
    data: str, where: str, storage: StorageSettings
) -> tuple[dict[ImageId, TrueImage], list[Rejected]]:
    images: dict[ImageId, TrueImage] = {}
    rejected = list[Rejected]()
    for row in _rows(f"{data.rstrip('/')}/images", _IMAGES, _IMAGES_MAY, storage):
        key, uri, member, size = row["image_id"], row["uri"], row.get("member"), _size(row)
        if not key or not uri:
            raise SettingsError(f"{where}: a row of images has no image_id, or no uri")
        if key in images:
            raise SettingsError(f"{where}: two rows of images have the image_id {key}")
        if message := _useless(row, member, size):
            rejected.append(Rejected(uri if member is None else f"{uri}/{member}", "unsupported", message))
        else:
            images[key] = TrueImage(key, uri, size, row.get("split") or None, row.get("group"))
    return images, rejected


def _size(row: dict[str, Any]) -> tuple[int, int]:
    return row["height"] or 0, row["width"] or 0


def _useless(row: dict[str, Any], member: str | None, size: tuple[int, int]) -> str:
    """Return why an image cannot be learned from; empty where it can."""
    if row.get("status") == "rejected":
        return f"rejected as {row.get('error_type')}: {row.get('error')}"
    if member is not None:
        return "it is in an archive, which training does not read; unpack it"
    if min(size) <= 0 or size[0] * size[1] > MOST_PIXELS:
        return f"no height and width that can be used: {size[0]} and {size[1]}"
    return ""


class _Instances:
    """The instances of all images, as COCO annotations."""

    def __init__(self, where: str, min_score: float | None) -> None:
        self._where, self._min_score = where, min_score
        self.annotations: dict[ImageId, list[dict[str, Any]]] = defaultdict(list)
        self.categories: dict[int, str] = {}
        self.strays = self.unsure = 0
        """Instances of images that cannot be used; those below the minimum score."""
        self._doubtful: set[ImageId] = set()

    def add(self, row: dict[str, Any], images: Collection[ImageId]) -> None:
        """Add an instance. Raises SettingsError if it has no category, or another name of one."""
        if row["image_id"] not in images:
            self.strays += 1
            return
        score = row["score"]
        if score is not None and (self._min_score is None or not score > self._min_score):
            self.unsure += 1
            self._doubtful.add(row["image_id"])
            return
        number, name = row["category_id"], row["category"]
        if number is None or not name:
            message = f"an instance of {row['image_id']} has no category_id, or no category"
            raise SettingsError(f"{self._where}: {message}")
        if (other := self.categories.setdefault(number, name)) != name:
            raise SettingsError(f"{self._where}: category {number} is named {other} and {name} in instances")
        kept = {"id": row.get("instance_id"), "category_id": number, "iscrowd": row.get("iscrowd") or 0}
        self.annotations[row["image_id"]].append(kept | {"segmentation": row["segmentation"]})

    @property
    def waiting(self) -> set[ImageId]:
        """Return the images with instances of which none counts."""
        return self._doubtful - self.annotations.keys()

    def in_order(self) -> dict[ImageId, list[dict[str, Any]]]:
        """Return the annotations of each image, in an order that does not depend on the files."""
        for annotations in self.annotations.values():
            annotations.sort(key=lambda each: (str(each["id"]), str(each["segmentation"])))
        return self.annotations


def _rows(
    folder: str, needed: Sequence[str], others: Sequence[str], storage: StorageSettings
) -> Iterator[dict[str, Any]]:
    """Yield rows with these columns, as far as a file has them; raise SettingsError for a missing one."""
    for file in files_below(folder, (".parquet",), storage):
        try:
            with open_source(file, storage) as stream:
                parquet = pq.ParquetFile(stream)
                there = parquet.schema_arrow.names
                if missing := [name for name in needed if name not in there]:
                    raise SettingsError(f"{file.uri}: it has no column {', '.join(missing)}")
                columns = [*needed, *(name for name in others if name in there)]
                for batch in parquet.iter_batches(columns=columns, batch_size=8192):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise SettingsError(f"{file.uri}: it cannot be read: {describe(error)}") from error
