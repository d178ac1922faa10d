"""Where predicted instances come from: an output of `annotate`, or COCO results.

Images of an output are found by the ends of their addresses, else by the file name alone where it is unique;
those of COCO results by their ids.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from segray.data.coco_file import ImageId, TrueImage, box_of, score_of
from segray.data.coco_stream import CocoStream
from segray.errors import ItemError, NothingToDoError, SettingsError
from segray.evaluate.categories import CategoryMap
from segray.evaluate.compare_pairs import Problem
from segray.evaluate.instance_labels import Wanted, counts_only, table_rows
from segray.evaluate.instance_rows import RowList, numbered
from segray.evaluate.match_names import by_file_name, owners
from segray.evaluate.settings import EvaluateSettings
from segray.output.reader import (
    INSTANCE,
    Item,
    instances_of,
    ledger_files,
    present,
    read_ledger,
    run_record,
)
from segray.scenes.scene import Tiling
from segray.storage import canonical_uri


@dataclass(frozen=True, slots=True)
class Paired:
    """Which images of the labels have predictions."""

    names: dict[ImageId, str]
    """Image of the labels -> its id in the predictions, in the order of the labels."""
    problems: list[Problem]
    """Of the others."""
    extra: int
    """Images without labels, as far as they are known before predictions are read."""
    notes: list[str]


class InstancePredictions(Protocol):
    """The predictions."""

    by: str
    """How categories are matched, see `CategoryMap`."""
    masks: bool
    """Whether they have masks; otherwise only boxes are compared."""

    def pair(self, images: dict[ImageId, TrueImage]) -> Paired:
        """Find the images of the labels."""

    def groups(self, paired: Paired, column: str) -> dict[ImageId, Any]:
        """Return the value of a column of each image; empty where there is none."""

    def rows(self, wanted: Wanted, paired: Paired, categories: CategoryMap) -> Iterator[pa.Table]:
        """Yield the predictions of the wanted images, schema ROWS."""

    def extra(self, paired: Paired) -> int:
        """Return the number of images without labels, once the rows are read."""


class OutputPredictions:
    """An output of `annotate`."""

    masks = True

    def __init__(self, settings: EvaluateSettings, url: str, *, scenes: bool = False) -> None:
        """Read the ledger. Raises SettingsError for what is no finished output."""
        self._url, self._storage = url, settings.storage
        self.by = "id" if settings.categories == "id" else "name"
        ledger = ledger_files(url, settings.storage)
        if not ledger:
            where = f"predictions: {canonical_uri(url)}"
            raise SettingsError(f"{where}: neither an output of annotate nor COCO results (.json)")
        record = run_record(url, settings.storage)
        self._settings: dict[str, Any] = record.get("settings") or {}
        self.threshold = self._settings.get("score_threshold")
        more = [*filter(None, [settings.group_by]), *["crs", "scene", "version"] * scenes]
        every = read_ledger(ledger, settings.storage, more)
        self.items = present(every, gone=scenes)
        self._gone = len(every) - len(self.items)

    @property
    def tiling(self) -> Tiling:
        """Return how the run cut scenes."""
        usual, bands = Tiling(), self._settings.get("bands")
        return Tiling(
            self._settings.get("tile", usual.tile),
            self._settings.get("overlap", usual.overlap),
            None if not isinstance(bands, list) else tuple(bands),
            self._settings.get("resolution"),
        )

    def categories(self) -> list[str]:
        """Return the names of the categories that were found, by name."""
        found = set[str]()
        for table in instances_of(self._url, self._storage, ("category",)):
            found |= {name for name in table["category"].cast(pa.string()).unique().to_pylist() if name}
        return sorted(found)

    def pair(self, images: dict[ImageId, TrueImage]) -> Paired:
        """Find the images of the labels by the ends of their addresses."""
        names, addresses = ([each.name for each in images.values()], [item.address for item in self.items])
        exact = owners(names, addresses)
        whose = by_file_name(names, addresses, exact)
        loose = sum(one != other for one, other in zip(exact, whose, strict=True))
        notes = [f"categories are matched by {self.by}"]
        notes += [f"{self._gone:,} that are no longer in the sources are left out"] * bool(self._gone)
        notes += [f"{loose:,} were found by their file name alone"] * bool(loose)
        if self.threshold:
            notes.append(f"annotate kept instances with a score of {self.threshold:g} or more")
        found, problems = _paired(images, Counter(names), whose, self.items)
        return Paired(found, problems, whose.count(None), notes)

    def groups(self, paired: Paired, column: str) -> dict[ImageId, Any]:
        """Return a column of the ledger."""
        values = {item.image_id: (item.more or {}).get(column) for item in self.items}
        return {number: values.get(name) for number, name in paired.names.items()}

    def rows(self, wanted: Wanted, paired: Paired, categories: CategoryMap) -> Iterator[pa.Table]:
        """Yield the instances; those of categories that the labels lack are counted."""
        self.items = []  # not needed any more, and large
        ids = pa.array([paired.names[number] for number in wanted.numbers], pa.string())
        places = np.array([*wanted.numbers.values(), -1])
        for table in instances_of(self._url, self._storage, INSTANCE):
            image = places[numbered(table["image_id"], ids)]
            table, image = table.filter(pa.array(image >= 0)), image[image >= 0]
            kinds = table["category_id"].to_pylist(), table["category"].cast(pa.string()).to_pylist()
            category = np.array([categories.of(*each) for each in zip(*kinds, strict=True)], np.float64)
            yield table_rows(table, image, np.nan_to_num(category, nan=-1).astype(np.int64), wanted)

    def extra(self, paired: Paired) -> int:
        """Return the number of images without labels."""
        return paired.extra


class ResultPredictions:
    """COCO results, streamed."""

    by = "id"

    def __init__(self, settings: EvaluateSettings, url: str) -> None:
        """Read the first result. Raises SettingsError."""
        if settings.categories == "name":
            raise SettingsError("categories: COCO results hold no names; leave categories out")
        self._stream = CocoStream(url, settings.storage, "predictions")
        first = next(self._stream.results(), None)
        self.masks = first is None or "segmentation" in first
        self._ids = set[ImageId]()

    def pair(self, images: dict[ImageId, TrueImage]) -> Paired:
        """Return all images of the labels: one without results counts too."""
        return Paired(dict.fromkeys(images, ""), [], 0, ["images and categories are matched by id"])

    def groups(self, paired: Paired, column: str) -> dict[ImageId, Any]:
        """Return nothing: results have no columns of images."""
        return {}

    def rows(self, wanted: Wanted, paired: Paired, categories: CategoryMap) -> Iterator[pa.Table]:
        """Yield the results. Raises SettingsError where only some have masks."""
        rows, masks, seen = RowList(), 0, 0
        for result in self._stream.results():
            seen, masks = seen + 1, masks + ("segmentation" in result)
            self._ids.add(result["image_id"])
            image = wanted.numbers.get(result["image_id"])
            if image is not None and image not in wanted.broken:
                self._add(rows, image, result, wanted, categories)
            if rows.full():
                yield rows.table()
        if masks not in (0, seen):
            some = f"{masks:,} of {seen:,} results have a segmentation; all must, or none"
            raise SettingsError(f"{self._stream.where}: {some}")
        if self._ids and self._ids.isdisjoint(wanted.numbers):
            raise NothingToDoError(
                "predictions: none of their image ids is in the labels: nothing to compare"
            )
        yield rows.table()

    def extra(self, paired: Paired) -> int:
        """Return the number of images that are not in the labels."""
        return len(self._ids - paired.names.keys())

    def _add(
        self, rows: RowList, image: int, result: dict[str, Any], wanted: Wanted, categories: CategoryMap
    ) -> None:
        category = categories.of(result["category_id"], None)
        if category is None:
            return
        try:
            mask = counts_only(result.get("segmentation"), *wanted.sizes[image]) if wanted.masks else None
            given = result.get("bbox")
            box = None if given is None and wanted.masks else box_of(given)
            rows.add(image, category, mask and mask["counts"], box, score_of(result["score"]))
        except ItemError as error:
            wanted.broken[image] = f"prediction: {error.reason}"


def _paired(
    images: dict[ImageId, TrueImage], names: Counter[str], whose: Sequence[str | None], items: Sequence[Item]
) -> tuple[dict[ImageId, str], list[Problem]]:
    """Return image of the labels -> image_id of its prediction, and the problems of the others."""
    found: dict[str, list[Item]] = defaultdict(list)
    for owner, item in zip(whose, items, strict=True):
        if owner is not None:
            found[owner].append(item)
    paired, problems = dict[ImageId, str](), list[Problem]()
    for image_id, image in images.items():
        reason = _mismatch(image.size, names[image.name], found.get(image.name, ()))
        if reason is None:
            paired[image_id] = found[image.name][0].image_id
        else:
            problems.append(Problem(image.name, reason))
    return paired, problems


def _mismatch(size: tuple[int, int], same: int, items: Sequence[Item]) -> str | None:
    if same > 1:
        return f"labels have {same} images of this name"
    if not items:
        return "missing: no prediction of this name"
    if len(items) > 1:
        some = ", ".join(item.address for item in items[:3])
        return f"{len(items)} predictions have this name: {some}"
    (item,) = items
    if item.error_type is not None:
        return f"prediction: rejected as {item.error_type}: {item.error}"
    if item.tiles_rejected:
        return f"prediction: annotate rejected {item.tiles_rejected:,} of its tiles: use --retry-rejected"
    if item.size != size:
        (height, width), (true_height, true_width) = item.size or (0, 0), size
        return f"prediction: {width} x {height} pixels, its truth {true_width} x {true_height}"
    return None
