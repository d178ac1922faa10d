"""The tables of an output of annotate or predict, streamed: what they hold, and which images are shown."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.errors import NothingToDoError, SettingsError
from segray.output.io import files_below
from segray.output.reader import row_batches
from segray.preview.runs import Run
from segray.preview.sample import Sampler, keys_of
from segray.sources.item import Source

IMAGE = ("image_id", "uri", "height", "width", "status")
IMAGE_MAY = (
    "member",
    "member_index",
    "version",
    "error_type",
    "error",
    "scene",
    "crs",
    "instances",
    "vanished",
)
LISTED_REJECTS = 500
"""Rejected images that are listed, each type alike; all are counted."""
SCORE_STEPS = 10
"""Strata of scores."""
SIZES = {0: "small instances", 1: "medium-sized instances", 2: "large instances"}
"""COCO's areas: below 32², below 96², above."""


@dataclass
class Ledger:
    """What the ledger says, counted over all rows."""

    files: list[Source]
    images: int = 0
    rejects_by_type: Counter[str] = field(default_factory=Counter)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    """Some rejected rows: name, type, reason."""

    @property
    def rejects(self) -> int:
        """Return the number of rejected images."""
        return self.rejects_by_type.total()


def read_ledger(run: Run, sampler: Sampler) -> Ledger:
    """Count a run's images and offer them to the sample.

    Raises SettingsError where the tables cannot be read, NothingToDoError where no image is annotated.
    """
    ledger = Ledger(files_below(f"{run.url}/images", (".parquet",), run.storage))
    if not ledger.files:
        raise SettingsError(f"run: {run.shown} has no images/*.parquet")
    rejects = Sampler(LISTED_REJECTS)
    for file in ledger.files:
        for batch in row_batches(file, ("image_id", "status"), ("instances", "error_type"), run.storage):
            _count(batch, ledger, sampler, rejects)
    if not ledger.images:
        raise NothingToDoError(f"{run.shown}: no annotated image ({ledger.rejects:,} rejected)")
    wanted = rejects.chosen()
    ledger.rejected = [
        {"name": address_of(row), "type": row.get("error_type") or "", "reason": row.get("error") or ""}
        for row in rows_of(run, ledger, wanted)
    ]
    return ledger


def _count(batch: pa.RecordBatch, ledger: Ledger, sampler: Sampler, rejects: Sampler) -> None:
    ids = np.array(batch["image_id"].to_pylist(), object)
    rejected = pc.equal(batch["status"], "rejected").fill_null(False).to_numpy(zero_copy_only=False)
    good = ids[~rejected].tolist()
    ledger.images += len(good)
    sampler.offer("any", "a random image", good, keys_of(good))
    if "instances" in batch.schema.names:
        numbers = batch["instances"].fill_null(1).to_numpy(zero_copy_only=False)
        bare = ids[~rejected & (numbers == 0)].tolist()
        if bare:
            sampler.offer("empty", "without an instance", bare, keys_of(bare))
    if rejected.any():
        kinds = [each or "unknown" for each in batch.filter(pa.array(rejected))["error_type"].to_pylist()]
        ledger.rejects_by_type.update(kinds)
        for image_id, kind in zip(ids[rejected].tolist(), kinds, strict=True):
            rejects.offer("rejects", kind, [image_id], keys_of([image_id]))


def rows_of(run: Run, ledger: Ledger, ids: Sequence[str] | dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of these images, in their order, each once; without annotated ones of no known size."""
    found: dict[str, dict[str, Any]] = {}
    for file in ledger.files if ids else ():
        for batch in row_batches(file, IMAGE, IMAGE_MAY, run.storage, ids=list(ids)):
            found |= {row["image_id"]: row for row in batch.to_pylist()}
    return [found[each] for each in ids if each in found and _is_sized(found[each])]


def _is_sized(row: dict[str, Any]) -> bool:
    return row["status"] == "rejected" or bool(row["height"] and row["width"])


def address_of(row: dict[str, Any]) -> str:
    """Return an image's URL; in an archive, followed by the member."""
    return str(row["uri"] if row.get("member") is None else f"{row['uri']}/{row['member']}")


def instance_files_of(run: Run) -> list[Source]:
    """Return the files with its instances."""
    return files_below(f"{run.url}/instances", (".parquet",), run.storage)


def offer_instances(run: Run, files: Sequence[Source], sampler: Sampler) -> None:
    """Offer images by the scores, classes and sizes of their instances, and the least sure ones.

    Held in memory: a sum and a number for each image of one file.
    """
    names: dict[str, int] = {}
    for file in files:
        sums: dict[str, tuple[float, int]] = {}
        for batch in row_batches(file, ("image_id", "category", "score", "area"), (), run.storage):
            _offer(batch, names, sampler, sums)
        means = {image_id: total / number for image_id, (total, number) in sums.items() if number}
        sampler.offer("unsure", "least sure", list(means), np.array(list(means.values())))


def _offer(
    batch: pa.RecordBatch, names: dict[str, int], sampler: Sampler, sums: dict[str, tuple[float, int]]
) -> None:
    ids, which = _coded(batch["image_id"])
    score = _floats(batch["score"])
    scored = np.isfinite(score)
    steps = {
        step: f"score {step / SCORE_STEPS:.1f} to {(step + 1) / SCORE_STEPS:.1f}"
        for step in range(SCORE_STEPS)
    }
    step = np.clip((score[scored] * SCORE_STEPS).astype(np.int64), 0, SCORE_STEPS - 1)
    sampler.offer_coded("score", steps, step, ids, which[scored])
    if not scored.all():
        drawn = np.zeros((~scored).sum(), np.int64)
        sampler.offer_coded("score", {0: "without a score, from a person"}, drawn, ids, which[~scored])
    found, codes = _coded(batch["category"].cast(pa.string()))
    numbers = np.array([names.setdefault(name, len(names)) for name in found], np.int64)
    labels = {number: f"class {name}" for name, number in names.items()}
    sampler.offer_coded("class", labels, numbers[codes], ids, which)
    size = np.digitize(_floats(batch["area"]), (32**2, 96**2))
    sampler.offer_coded("size", SIZES, size.astype(np.int64), ids, which)
    total = np.bincount(which[scored], score[scored], len(ids))
    number = np.bincount(which[scored], minlength=len(ids))
    for index, image_id in enumerate(ids):
        before = sums.get(image_id, (0.0, 0))
        sums[image_id] = before[0] + float(total[index]), before[1] + int(number[index])


def _coded(column: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    """Return the values of a column, and which of them each row has, int64 (rows,); null is empty text."""
    coded = pc.dictionary_encode(column.fill_null(""))
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _floats(column: pa.Array) -> NDArray[np.float64]:
    """Return a column as float64 (rows,), NaN for null."""
    found: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


def batches_of(
    run: Run, files: Sequence[Source], needed: Sequence[str], optional: Sequence[str], ids: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield a thousand rows at a time of the instances of these images."""
    for file in files:
        yield from row_batches(file, needed, optional, run.storage, ids=ids, rows=1_000)
