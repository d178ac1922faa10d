"""A run's tables -> `Pool`: about 100 bytes an image in memory, whatever the number of instances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.errors import SettingsError
from segray.output.io import files_below
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, shown

MOST_GROUPS = 10_000
_ROWS = 16_384

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class Pool:
    """The images of a run that can be selected: n images, sorted by id."""

    ids: NDArray[np.bytes_]
    """(n,) image ids, each once."""
    group: NDArray[np.int32]
    """(n,) index in `groups`."""
    groups: list[str | None]
    rejected: int = 0
    vanished: int = 0
    labelled: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(n,) whether an image is labelled already."""
    measures: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Name -> (n,) float32, NaN where an image has none."""
    unsure_is_share: bool = False
    """Whether `unsure` is the share of instances that are expected to be wrong, not their number."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def free(self) -> int:
        """Return how many images are not labelled yet."""
        return int((~self.labelled).sum())

    def left_out(self) -> str:
        """Return which images of the run are not selected, in words."""
        kinds = {
            "rejected": self.rejected,
            "vanished": self.vanished,
            "labelled already": self.labelled.sum(),
        }
        found = [f"{number:,} {kind}" for kind, number in kinds.items() if number]
        total = len(self) + self.rejected + self.vanished
        return f"of {total:,} images {', '.join(found) or 'none is left out'}"

    def index(self, batch: pa.RecordBatch | pa.Table) -> Ints:
        """Return each row's image, int64 (rows,), by the column `image_id`; -1: not in the pool."""
        if not len(self.ids) or not batch.num_rows:
            return np.full(batch.num_rows, -1, np.int64)
        column = batch["image_id"].fill_null("")
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        named = column.dictionary_encode()  # most rows are of the image of the row before
        wanted = _bytes(named.dictionary)
        found = np.searchsorted(self.ids, wanted).clip(max=len(self.ids) - 1)
        index = np.where(self.ids[found] == wanted, found, -1).astype(np.int64)
        rows: Ints = index[named.indices.to_numpy()]
        return rows


def _bytes(column: pa.Array) -> NDArray[np.bytes_]:
    """Return a column of text as bytes, (rows,)."""
    return np.array([(each or "").encode() for each in column.to_pylist()], np.bytes_)


def ledger_of(run: str, storage: StorageSettings) -> list[Source]:
    """Return the files of a run's ledger. Raises SettingsError where there is none."""
    files = files_below(f"{run.rstrip('/')}/images", (".parquet",), storage)
    if not files:
        raise SettingsError(f"{shown(run)} is no output of annotate or predict: it has no images/*.parquet")
    return files


def read_pool(run: str, group_by: str | None, storage: StorageSettings) -> Pool:
    """Read which images a run has; rejected and vanished ones are only counted.

    Raises SettingsError where a file cannot be read, has no column `group_by`, or lists an image twice.
    """
    ids, groups, codes = [np.zeros(0, "S1")], dict[str | None, int](), [np.zeros(0, np.int32)]
    rejected = vanished = 0
    for file in ledger_of(run, storage):
        for batch in batches(file, ("image_id",), ("status", "vanished", group_by or ""), storage):
            if group_by and group_by not in batch.schema.names:
                raise SettingsError(
                    f"group_by: {file.uri} has no column {group_by}; --keep-columns of annotate and predict "
                    "copies columns of a manifest to it"
                )
            good, gone = _flag(batch, "status", "rejected"), _flag(batch, "vanished", value=True)
            rejected, vanished = rejected + int(good.sum()), vanished + int((gone & ~good).sum())
            batch = batch.filter(pa.array(~good & ~gone))
            ids.append(_bytes(batch["image_id"]))
            codes.append(_codes(batch, group_by, groups))
    joined, code = np.concatenate(ids), np.concatenate(codes)
    ids.clear()
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    if (joined[1:] == joined[:-1]).any():
        raise SettingsError(f"run: {shown(run)} lists an image twice in images/")
    pool = Pool(joined, code[order], list(groups) or [None], rejected, vanished)
    pool.labelled = np.zeros(len(joined), bool)
    return pool


def _flag(batch: pa.RecordBatch, name: str, value: Any) -> NDArray[np.bool_]:
    """Return where a column has a value, bool (rows,); nowhere without that column."""
    if name not in batch.schema.names:
        return np.zeros(batch.num_rows, bool)
    found: NDArray[np.bool_] = pc.equal(batch[name], value).fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _codes(batch: pa.RecordBatch, group_by: str | None, groups: dict[str | None, int]) -> NDArray[np.int32]:
    if group_by is None:
        return np.zeros(batch.num_rows, np.int32)
    try:
        values = batch[group_by].cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise SettingsError(f"group_by: column {group_by} has no plain values: {error}") from error
    codes = np.array([groups.setdefault(value, len(groups)) for value in values], np.int32)
    if len(groups) > MOST_GROUPS:
        raise SettingsError(f"group_by: {group_by} has more than {MOST_GROUPS:,} values")
    return codes


def add_instances(pool: Pool, run: str, threshold: float, unsure: str, storage: StorageSettings) -> None:
    """Add the measure `unsure` of a run of annotate, and plain ones of its instances.

    If scores are probabilities, an instance above the threshold is wrong with probability 1 - score, one
    below it with probability score (least confidence; Brust et al., 2019, arXiv 1809.09875, add and average
    such values over the objects of an image). Instances without a score, from a person, are right.
    """
    wrong, right, kept, score, size = (np.zeros(len(pool)) for _ in range(5))
    for file in files_below(f"{run.rstrip('/')}/instances", (".parquet",), storage):
        for batch in batches(file, ("image_id", "score"), ("area",), storage):
            image = pool.index(batch)
            batch, image = batch.filter(pa.array(image >= 0)), image[image >= 0]
            scores = batch["score"].cast(pa.float64()).fill_null(1.0).to_numpy(zero_copy_only=False)
            above = scores > threshold
            for total, values in (
                (wrong, np.where(above, 1 - scores, scores)),
                (right, np.where(above, scores, 0)),
                (kept, above),
                (score, np.where(above, scores, 0)),
                (size, np.where(above, _log_area(batch), 0)),
            ):
                np.add.at(total, image, values)
    share = np.divide(wrong, wrong + right, out=np.zeros(len(pool)), where=wrong + right > 0)
    pool.unsure_is_share = unsure == "mean"
    pool.measures["unsure"] = (wrong if unsure == "sum" else share).astype(np.float32)
    mean = [np.divide(each, kept, out=np.zeros(len(pool)), where=kept > 0) for each in (score, size)]
    for name, values in (("instances", kept), ("score", mean[0]), ("log_area", mean[1])):
        pool.measures[name] = values.astype(np.float32)


def _log_area(batch: pa.RecordBatch) -> Floats:
    if "area" not in batch.schema.names:
        return np.zeros(batch.num_rows)
    areas: Floats = batch["area"].cast(pa.float64()).fill_null(1.0).to_numpy(zero_copy_only=False)
    logs: Floats = np.log2(areas.clip(min=1))
    return logs


def add_quality(pool: Pool, run: str, storage: StorageSettings) -> None:
    """Add brightness and log sharpness, where the ledger has them."""
    names = ("brightness", "sharpness")
    found = {name: np.full(len(pool), np.nan, np.float32) for name in names}
    for file in ledger_of(run, storage):
        for batch in batches(file, ("image_id",), names, storage):
            image = pool.index(batch)
            for name in names:
                if name in batch.schema.names:
                    values = batch[name].cast(pa.float32()).to_numpy(zero_copy_only=False)
                    found[name][image[image >= 0]] = values[image >= 0]
    pool.measures["brightness"] = found["brightness"]
    pool.measures["sharpness"] = np.log1p(found["sharpness"].clip(min=0))


def batches(
    file: Source, needed: Sequence[str], optional: Sequence[str], storage: StorageSettings
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a Parquet file, some rows at a time. Raises SettingsError where it cannot."""
    try:
        with open_source(file, storage) as stream:
            parquet = pq.ParquetFile(stream)
            there = parquet.schema_arrow.names
            if lost := [name for name in needed if name not in there]:
                raise SettingsError(f"{file.uri} has no column {', '.join(lost)}")
            columns = [*needed, *(name for name in optional if name in there and name not in needed)]
            for group in range(parquet.num_row_groups):  # read all at once, Arrow would keep each in memory
                yield from parquet.iter_batches(_ROWS, row_groups=[group], columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{file.uri} cannot be read: {describe(error)}") from error


def annotated_in(pool: Pool, run: str, storage: StorageSettings) -> NDArray[np.bool_]:
    """Return which images of the pool a run has annotated, (n,); tables without `status` have no others."""
    found = np.zeros(len(pool), bool)
    for file in ledger_of(run, storage):
        for batch in batches(file, ("image_id",), ("status",), storage):
            image = pool.index(batch)
            found[image[(image >= 0) & ~_flag(batch, "status", "rejected")]] = True
    return found
