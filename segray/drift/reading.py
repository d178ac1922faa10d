"""Compute the `Profile` of a finished run from its tables, a batch of rows at a time."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.drift.profile import CLASS, INSTANCE_MEASURES, SCALES, Counts, Profile, Sample
from segray.errors import NothingToDoError, SettingsError
from segray.output.io import files_below, read_if_there
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, shown

MOST_GROUPS = 1_000
"""Maximum number of groups: a column with more values is not a grouping."""
_ROWS = 65_536
_LATER = ("brightness", "sharpness")
"""Columns that outputs of older versions lack."""


def profile_of(
    run: str, storage: StorageSettings, group_by: str | None = None, above: float | None = None
) -> Profile:
    """Compute the profile of a finished output of `annotate`, `predict`, or another writer of such tables.

    above: as if `annotate` had kept only instances with a higher score; their number is kept in memory for
    each image. Rows marked `vanished` count: they are still in the tables. Raises NothingToDoError where
    there is no run, SettingsError where the run is not finished, has no such tables, or no column `group_by`.
    """
    verb = _verb_of(run, storage)
    ledger, instances = (
        files_below(f"{run.rstrip('/')}/{folder}", (".parquet",), storage)
        for folder in ("images", "instances")
    )
    if not ledger:
        raise SettingsError(f"{shown(run)}: an output of {verb or 'another verb'} without images/*.parquet")
    has_instances = verb != "predict" and bool(instances)
    tally = _Tally(group_by)
    number = None if above is None else _numbers_above(instances, above, storage)
    index = _Index(ledger, group_by, storage)
    lacks = set[str]() if has_instances else set(INSTANCE_MEASURES)
    for file in ledger:
        for batch in _batches(file, ("image_id", "status", "instances"), _LATER, group_by, storage):
            lacks.update(name for name in _LATER if name not in batch.schema.names)
            tally.add_images(batch if number is None else _recounted(batch, number))
    for file in instances if has_instances else ():
        for batch in _batches(file, ("image_id", "score", "category", "area"), (), None, storage):
            if above is not None:
                batch = batch.filter(pc.greater(batch["score"], above))
            tally.add_instances(batch, index.groups_of(file, batch, tally))
    return tally.profile(shown(run), sorted(lacks))


def _numbers_above(files: Sequence[Source], above: float, storage: StorageSettings) -> Counter[str]:
    """Return image id -> number of instances with a higher score."""
    number = Counter[str]()
    for file in files:
        for batch in _batches(file, ("image_id", "score"), (), None, storage):
            number.update(batch.filter(pc.greater(batch["score"], above))["image_id"].to_pylist())
    return number


def _recounted(batch: pa.RecordBatch, number: Counter[str]) -> pa.RecordBatch:
    """Return the ledger rows with these numbers of instances."""
    found = pa.array([number[each] for each in batch["image_id"].to_pylist()], pa.int32())
    return batch.set_column(batch.schema.get_field_index("instances"), "instances", found)


def _verb_of(run: str, storage: StorageSettings) -> str | None:
    """Return the verb in run.json; None for a run of an older version, which has none.

    Raises NothingToDoError where there is no run, SettingsError where it is not finished or damaged.
    """
    data = read_if_there(f"{run.rstrip('/')}/run.json", storage, "run")
    if data is None:
        if read_if_there(f"{run.rstrip('/')}/_segray/plan.json", storage, "run") is None:
            raise NothingToDoError(f"{shown(run)}: no segray run found there")
        raise SettingsError(f"{shown(run)}: its run is not finished; run its command again to continue")
    try:
        record = json.loads(data)
        verb = record.get("verb")
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"{shown(run)}: its run.json is damaged: {error}") from error
    return str(verb) if verb is not None else None


def _batches(
    file: Source,
    needed: Sequence[str],
    optional: Sequence[str],
    group_by: str | None,
    storage: StorageSettings,
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a Parquet file by row group. Raises SettingsError where it cannot be read."""
    try:
        with open_source(file, storage) as stream:
            parquet = pq.ParquetFile(stream)
            there = parquet.schema_arrow
            if group_by is not None and group_by not in there.names:
                raise SettingsError(
                    f"group_by: {file.uri} has no column {group_by}; it has: {', '.join(there.names)}; "
                    "--keep-columns of annotate and predict copies columns of a manifest to it"
                )
            if lost := [name for name in needed if name not in there.names]:
                raise SettingsError(f"{file.uri} has no column {', '.join(lost)}")
            more = [name for name in (*optional, group_by) if name in there.names and name not in needed]
            for group in range(parquet.num_row_groups):  # read all at once, Arrow would keep each in memory
                yield from parquet.iter_batches(_ROWS, row_groups=[group], columns=[*needed, *more])
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{file.uri} cannot be read: {describe(error)}") from error


@dataclass
class _Tally:
    """Counts by group, each an int64 (groups, bins) that grows; without `group_by` there is one group."""

    group_by: str | None
    codes: dict[str | None, int] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)

    def add_images(self, batch: pa.RecordBatch) -> None:
        """Count ledger rows: `image_id`, `status`, `instances`, the group, and any quality columns."""
        code = self.code(batch)
        annotated = pc.equal(batch["status"], "annotated").fill_null(False).to_numpy(zero_copy_only=False)
        self._add("images", code[annotated], None, 1)
        self._add("rejected", code[~annotated], None, 1)
        found = np.nan_to_num(_numbers(batch["instances"]))
        for name, weights in (("found", found), ("squares", found**2)):
            self._add(name, code[annotated], None, 1, weights[annotated])
        for name in ("instances", *_LATER):
            if name in batch.schema.names:
                self._measure(name, batch[name], code, annotated)

    def add_instances(self, batch: pa.RecordBatch, code: NDArray[np.int64]) -> None:
        """Count instance rows: `score`, `category`, `area`; code, int64 (rows,): each row's group index."""
        for name in ("score", "area"):
            self._measure(name, batch[name], code)
        named = pc.dictionary_encode(batch["category"].cast(pa.string()))
        numbers = [self.classes.setdefault(name, len(self.classes)) for name in named.dictionary.to_pylist()]
        known = named.indices.is_valid().to_numpy(zero_copy_only=False)
        which = np.array(numbers, np.int64)[named.indices.drop_null().to_numpy()]
        self._add(CLASS, code[known], which, len(self.classes))

    def code(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Return the index of each row's group, int64 (rows,). Raises SettingsError for too many groups."""
        if self.group_by is None:
            self.codes.setdefault(None, 0)
            return np.zeros(batch.num_rows, np.int64)
        try:
            named = pc.dictionary_encode(batch[self.group_by].cast(pa.string()), null_encoding="encode")
        except pa.ArrowException as error:
            raise SettingsError(f"group_by: column {self.group_by} has no plain values: {error}") from error
        numbers = [self.codes.setdefault(each, len(self.codes)) for each in named.dictionary.to_pylist()]
        if len(self.codes) > MOST_GROUPS:
            raise SettingsError(f"group_by: {self.group_by} has more than {MOST_GROUPS:,} values")
        codes: NDArray[np.int64] = np.array(numbers, np.int64)[named.indices.to_numpy()]
        return codes

    def profile(self, run: str, lacks: Sequence[str]) -> Profile:
        """Return the profile of all rows that were counted."""
        groups = {group: self._sample(code) for group, code in self.codes.items()}
        overall = Sample()
        for sample in groups.values():
            overall.add(sample)
        return Profile(run, lacks, overall, self.group_by, {} if self.group_by is None else groups)

    def _measure(
        self, name: str, column: pa.Array, code: NDArray[np.int64], where: NDArray[np.bool_] | None = None
    ) -> None:
        """Count values in their bins, except null and non-finite ones."""
        values = _numbers(column)
        known = np.isfinite(values) if where is None else np.isfinite(values) & where
        self._add(name, code[known], SCALES[name].bin_of(values[known]), SCALES[name].bins)

    def _add(
        self,
        name: str,
        code: NDArray[np.int64],
        bins: NDArray[np.int64] | None,
        width: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        before = self.counts.get(name, np.zeros((0, width), np.int64))
        after = np.zeros((len(self.codes), max(width, before.shape[1])), np.int64)
        after[: before.shape[0], : before.shape[1]] = before
        cells = code * after.shape[1] + (0 if bins is None else bins)
        found = np.bincount(cells, weights, minlength=after.size)  # sums are exact below 2**53
        self.counts[name] = after + np.rint(found).astype(np.int64).reshape(after.shape)

    def _sample(self, code: int) -> Sample:
        def of(name: str, width: int) -> Counts:
            counts = self.counts.get(name, np.zeros((0, width), np.int64))
            return counts[code] if code < len(counts) else np.zeros(width, np.int64)

        names = list(self.classes)
        images, rejected, found, squares = (
            int(of(name, 1)[0]) for name in ("images", "rejected", "found", "squares")
        )
        counts = {name: of(name, scale.bins).copy() for name, scale in SCALES.items()}
        sample = Sample(images, rejected, found, squares, counts)
        for name, count in zip(names, of(CLASS, len(names)).tolist(), strict=False):
            if count:
                sample.classes[name] = count
        return sample


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """Return a column as float64 (rows,), NaN for null."""
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


class _Index:
    """Look-up of an instance's group, which is its image's.

    A merged part's instances have their images in the ledger's file of the same name, so one part's ids are
    in memory at a time; where names differ, as for other programs, all ids are, 40 bytes an image.
    """

    def __init__(self, ledger: Sequence[Source], group_by: str | None, storage: StorageSettings) -> None:
        self._ledger = {_name(file): [file] for file in ledger}
        self._all, self._group_by, self._storage = list(ledger), group_by, storage
        self._key: str | None = None
        self._ids, self._codes = np.zeros(0, "S1"), np.zeros(0, np.int64)

    def groups_of(self, file: Source, batch: pa.RecordBatch, tally: _Tally) -> NDArray[np.int64]:
        """Return the index of each instance's group, int64 (rows,).

        Raises SettingsError for an instance without an image.
        """
        if self._group_by is None:
            return np.zeros(batch.num_rows, np.int64)
        key = _name(file) if _name(file) in self._ledger else ""
        if self._key != key:
            self._read(self._ledger.get(key, self._all), tally)
            self._key = key
        wanted = _ids(batch)
        index = np.searchsorted(self._ids, wanted).clip(max=max(0, len(self._ids) - 1))
        if not len(self._ids) or (self._ids[index] != wanted).any():
            raise SettingsError(f"{file.uri} has instances of images that are not in {key or 'images/'}")
        found: NDArray[np.int64] = self._codes[index]
        return found

    def _read(self, files: Sequence[Source], tally: _Tally) -> None:
        ids, codes = [np.zeros(0, "S1")], [np.zeros(0, np.int64)]
        for file in files:
            for batch in _batches(file, ("image_id",), (), self._group_by, self._storage):
                ids.append(_ids(batch))
                codes.append(tally.code(batch))
        joined = np.concatenate(ids)
        order = np.argsort(joined)
        self._ids, self._codes = joined[order], np.concatenate(codes)[order]


def _ids(batch: pa.RecordBatch) -> NDArray[Any]:
    """Return the image ids as bytes of one length, (rows,)."""
    return np.array([(each or "").encode() for each in batch["image_id"].to_pylist()], np.bytes_)


def _name(file: Source) -> str:
    return file.uri.rpartition("/")[2]
