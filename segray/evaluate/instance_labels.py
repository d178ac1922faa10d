"""Where true instances come from: COCO JSON, tables of `annotate`'s shape, footprints on scenes.

Each gives its images and categories first, then its instances as tables of schema ROWS, read once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.data.coco_file import ImageId, TrueImage, entry_of, known_id, score_of, true_instance
from segray.data.coco_stream import CocoStream
from segray.errors import ItemError, SettingsError
from segray.evaluate.instance_rows import ROWS, RowList, numbered
from segray.masks.coco_segmentation import rle_of
from segray.masks.types import Rle
from segray.output.reader import instances_of, ledger_files, present, read_ledger
from segray.storage import StorageSettings

_NEEDED = ("image_id", "category_id", "score", "segmentation")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The images that are compared."""

    numbers: Mapping[ImageId, int]
    """Id in the labels -> index."""
    sizes: list[tuple[int, int]]
    """Height, width of each."""
    masks: bool
    """Whether masks are compared, or boxes alone."""
    broken: dict[int, str] = field(default_factory=dict)
    """Index of an image that cannot be used -> why; readers add to it."""


class InstanceLabels(Protocol):
    """The ground truth."""

    images: dict[ImageId, TrueImage]
    """In the order that decides between equal scores."""
    categories: dict[int, str]

    def rows(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the true instances of the wanted images."""

    def notes(self) -> list[str]:
        """Return lines on what `rows` left out."""


class CocoLabels:
    """COCO JSON, streamed."""

    def __init__(self, url: str, storage: StorageSettings, split: str | None, group: str | None) -> None:
        """Read images and categories. Raises SettingsError."""
        self._stream = CocoStream(url, storage, "labels")
        every, self.categories = self._stream.header(group)
        self.images = {number: each for number, each in every.items() if split in (None, each.split)}
        if every and not self.images:
            raise SettingsError(f"{self._stream.where}: no image has the split {split}")
        self._known = every.keys()
        self._strays = 0

    def rows(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the true instances. Raises SettingsError where none is of an image of the file."""
        rows, seen, first = RowList(), 0, None
        for annotation in self._stream.annotations():
            seen += 1
            image_id = known_id(self._known, entry_of(annotation, "image_id"))
            if image_id is None:
                self._strays += 1
                first = annotation if first is None else first
            elif (image := wanted.numbers.get(image_id)) is not None and image not in wanted.broken:
                self._add(rows, image, annotation, wanted)
            if rows.full():
                yield rows.table()
        if self._known and self._strays and self._strays == seen:
            text = f"none of its {seen:,} annotations is of one of its images"
            text += f"; the first has image_id {brief(entry_of(first, 'image_id'))}"
            raise SettingsError(f"{self._stream.where}: {text}")
        yield rows.table()

    def notes(self) -> list[str]:
        """Return a line on annotations of images that are not in the file."""
        return [f"{self._strays:,} annotations of images that labels do not list"] * bool(self._strays)

    def _add(self, rows: RowList, image: int, annotation: dict[str, Any], wanted: Wanted) -> None:
        size = wanted.sizes[image]
        try:
            each = true_instance(annotation, self.categories, *size, wanted.masks, counts_only)
        except ItemError as error:
            wanted.broken[image] = error.reason
            return
        counts = None if each.mask is None else each.mask["counts"]
        name = str(annotation.get("id"))
        rows.add(image, each.category, counts, each.box, crowd=each.crowd, area=each.area, name=name)


def counts_only(segmentation: object, height: int, width: int) -> Rle:
    """Return an RLE as `rle_of` does, but compressed run lengths without a check: shards check theirs."""
    given = segmentation if isinstance(segmentation, dict) else {}
    counts, size = given.get("counts"), [height, width]
    if isinstance(counts, str | bytes) and list(given.get("size") or ()) == size:
        return {"size": size, "counts": counts}
    return rle_of(segmentation, height, width)


class TableLabels:
    """Labels of `annotate`'s shape: rows without a score, which a person drew or confirmed, are the truth.

    As in training, an image in which the model found something and a person confirmed nothing has not been
    looked at: it is left out.
    """

    def __init__(self, url: str, storage: StorageSettings, split: str | None, group: str | None) -> None:
        """Read images and categories. Raises SettingsError."""
        self._url, self._storage = url.rstrip("/"), storage
        items = read_ledger(ledger_files(url, storage), storage, [name for name in ("split", group) if name])
        waiting = self._read_categories()
        self._waiting = len(waiting)
        self.images = dict[ImageId, TrueImage]()
        for rank, item in enumerate(sorted(present(items), key=lambda item: item.image_id)):
            more = item.more or {}
            usable = item.error_type is None and item.size is not None and item.image_id not in waiting
            if usable and split in (None, more.get("split")):
                key, own = f"{rank:09d} {item.address}", more.get(group or "")
                self.images[item.image_id] = TrueImage(key, item.address, item.size or (0, 0), None, own)

    def _read_categories(self) -> set[str]:
        """Fill `categories`; return the images that no person has looked at."""
        found, confirmed, waiting = dict[int, str](), set[str](), set[str]()
        for table in instances_of(self._url, self._storage, ("image_id", "category_id", "category", "score")):
            pairs = table.set_column(2, "category", table["category"].cast(pa.string()))
            for row in pairs.group_by(["category_id", "category"]).aggregate([]).to_pylist():
                found[row["category_id"]] = row["category"] or str(row["category_id"])
            unscored = pc.is_null(table["score"])
            confirmed |= set(table["image_id"].filter(unscored).unique().to_pylist())
            waiting |= set(table["image_id"].filter(pc.invert(unscored)).unique().to_pylist())
        self.categories = dict(sorted(found.items()))
        return waiting - confirmed

    def rows(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the true instances."""
        ids = pa.array(list(wanted.numbers), pa.string())
        places = np.array([*wanted.numbers.values(), -1])
        for table in instances_of(self._url, self._storage, _NEEDED, ("iscrowd", "instance_id")):
            truth = table.filter(pc.is_null(table["score"]))
            image = places[numbered(truth["image_id"], ids)]
            names = truth["instance_id"] if "instance_id" in truth.column_names else truth["image_id"]
            yield table_rows(truth, image, truth["category_id"].to_numpy(), wanted, names)

    def notes(self) -> list[str]:
        """Return a line on images that are left out."""
        return [
            f"{self._waiting:,} images are left out: no instance of theirs was confirmed by a person"
        ] * bool(self._waiting)


def table_rows(
    table: pa.Table, image: Any, category: Any, wanted: Wanted, name: pa.ChunkedArray | None = None
) -> pa.Table:
    """Return instances of `annotate`'s shape as ROWS; those of index or category -1 are left out.

    name: of each, for truth; None for predictions, which have a score and a box of their own.
    """
    kept = np.flatnonzero((image >= 0) & ~np.isin(image, list(wanted.broken)) & (category >= 0))
    table, image, category = table.take(pa.array(kept)), image[kept], category[kept]
    names = pa.nulls(len(kept), pa.string()) if name is None else name.take(pa.array(kept))
    mask = table["segmentation"].combine_chunks()
    sizes = np.array([each or (0, 0) for each in pc.struct_field(mask, "size").to_pylist()]).reshape(-1, 2)
    wrong = (sizes != np.array(wanted.sizes).reshape(-1, 2)[image]).any(axis=1)
    unknown = np.full(len(kept), np.nan)
    score, crowd, box = unknown, np.zeros(len(kept), bool), [unknown] * 4
    if name is None:
        score = table["score"].cast(pa.float64()).to_numpy()
        wrong |= ~np.isfinite(score)
        boxes = [each or [np.nan] * 4 for each in table["box"].to_pylist()]
        box = list(np.array(boxes, np.float64).reshape(-1, 4).T)
    elif "iscrowd" in table.column_names:
        crowd = table["iscrowd"].fill_null(0).to_numpy() != 0
    for row in np.flatnonzero(wrong).tolist():
        who = "prediction" if name is None else f"truth: {names[row]}"
        reason = _reason(table.slice(row, 1).to_pylist()[0], wanted.sizes[image[row]], scored=name is None)
        wanted.broken.setdefault(int(image[row]), f"{who}: {reason}")
    columns = [image, category, score, crowd, unknown, *box, pc.struct_field(mask, "counts"), names]
    arrays = [
        (each if isinstance(each, pa.Array | pa.ChunkedArray) else pa.array(each)).cast(field.type)
        for each, field in zip(columns, ROWS, strict=True)
    ]
    return pa.table(arrays, schema=ROWS).filter(pa.array(~wrong))


def _reason(row: dict[str, Any], size: tuple[int, int], *, scored: bool) -> str:
    try:
        rle_of(row["segmentation"], *size)
        if scored:
            score_of(row["score"])
    except ItemError as error:
        return error.reason
    return "it cannot be used"
