"""The statistics of each pair from one pass over the data, and their copy in the output for later runs.

    _segray/survey.parquet   a row a pair: addresses and versions, digests, pixels of each class, moments,
                             perceptual hash, or why it cannot be used

A pair whose two files have the same versions as before is not read again. The copy is rewritten during the
pass, so a kill costs at most the last minute of it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.data.look_alikes import perceptual_hash
from segray.data.pairs import Pair
from segray.data.volume_reader import VolumeExample
from segray.errors import ItemError
from segray.output.folder import Output

SCAN = "_segray/survey.parquet"
FIGURES = pa.schema(
    [
        ("error_type", pa.string()),  # null where the pair can be used; else the rest but `error` is null
        ("error", pa.string()),
        ("digest", pa.string()),  # sha256 of the image's file, hex
        ("label_digest", pa.string()),
        ("likeness", pa.uint64()),  # `perceptual_hash` of the image
        ("pixels", pa.int64()),
        ("counts", pa.list_(pa.int64())),  # pixels of each class, or instances of each category
        ("ignored", pa.int64()),  # instances that are neither learned nor found: crowds, cut footprints
        ("sums", pa.list_(pa.float64())),  # of each band, with pixels in 0..1
        ("squares", pa.list_(pa.float64())),
    ]
)
ADDRESSES = pa.schema([(name, pa.string()) for name in ("image", "image_version", "label", "label_version")])
"""Canonical URLs, without credentials, and the values of `Source.version`."""
PASSING = ("storage", "timeout", "memory", "crashed")
"""Error types of the machine or the network: until something was trained, such pairs are tried again."""
_SAVE_EVERY_S = 60.0
_SAVING_SHARE = 0.05
"""Maximum share of the time that goes into writing the copy, which is written as a whole each time."""
_LEVELS = np.arange(256) / 255


def figures(example: Any, counted: Callable[[Any], list[int]]) -> dict[str, Any]:
    """Return one row of FIGURES; `counted`: see `LabelReading.counts`."""
    if isinstance(example, ItemError):
        return {"error_type": example.error_type, "error": example.reason}
    measured = example.measured() if isinstance(example, VolumeExample) else _measured(example.pixels)
    return {
        "digest": example.digest,
        "label_digest": example.label_digest,
        "counts": counted(example),
        "ignored": sum(each.crowd for each in getattr(example, "instances", ())),
        **measured,
    }


def _measured(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    levels = [np.bincount(pixels[..., band].ravel(), minlength=256) for band in range(3)]
    return {
        "likeness": perceptual_hash(pixels),
        "pixels": pixels.shape[0] * pixels.shape[1],
        "sums": [float(number @ _LEVELS) for number in levels],
        "squares": [float(number @ _LEVELS**2) for number in levels],
    }


def mean_and_deviation(rows: pa.Table) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each band's mean and deviation over all pixels, 0..1; `rows`: FIGURES without errors."""
    pixels = rows["pixels"].to_numpy().sum()
    mean = column_sums(rows["sums"]) / pixels
    deviation = np.sqrt(np.maximum(column_sums(rows["squares"]) / pixels - mean**2, 1e-8))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(deviation, 4).tolist())


def column_sums(lists: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return the sums over rows of a column of lists of equal length, none of them null."""
    flat: np.ndarray[Any, Any] = lists.combine_chunks().flatten().to_numpy()
    sums: np.ndarray[Any, Any] = flat.reshape(len(lists), -1).sum(axis=0)
    return sums


class Scan:
    """The statistics of the pairs of one listing."""

    def __init__(
        self, pairs: Sequence[Pair], rules: object, max_pixels: int, store: Output, *, begun: bool
    ) -> None:
        """Take over what the output holds; `begun`: training has begun there and relies on all of it.

        rules: how labels are read; what was read with other rules is not taken over.
        """
        self._store = store
        self._reading = f"{rules}, max_pixels {max_pixels}".encode()
        self._addresses = pa.table(
            [
                pa.array(column, pa.string())
                for column in zip(
                    *((p.image.uri, p.image.version, p.label.uri, p.label.version) for p in pairs),
                    strict=True,
                )
            ],
            schema=ADDRESSES,
        )
        self._indices, self._rows = _unchanged(pairs, self._kept(), begun=begun)
        self._new: list[pa.Table] = []
        self._saved, self._pause = time.monotonic(), _SAVE_EVERY_S

    @property
    def missing(self) -> list[int]:
        """Return the indices in the listing of the pairs that must be read."""
        known = np.zeros(self._addresses.num_rows, bool)
        for indices in (self._indices, *(table["index"].to_numpy() for table in self._new)):
            known[indices] = True
        return np.flatnonzero(~known).tolist()

    def add(self, table: pa.Table) -> None:
        """Add rows of FIGURES with the column `index`, in any order; saved in the output now and then."""
        self._new.append(table)
        if time.monotonic() - self._saved > self._pause:
            self.save()

    def save(self) -> None:
        """Write new rows to the output."""
        if not self._new:
            return
        started = time.monotonic()
        self._gather()
        order = pa.array(self._indices)
        rows = pa.Table.from_arrays(
            [*self._addresses.take(order).columns, *self._rows.columns],
            schema=pa.schema([*ADDRESSES, *FIGURES], metadata={b"segray": self._reading}),
        )
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        self._store.write(SCAN, sink.getvalue().to_pybytes())
        self._saved = time.monotonic()
        self._pause = max(_SAVE_EVERY_S, (self._saved - started) / _SAVING_SHARE)

    def rows(self) -> pa.Table:
        """Return FIGURES of all pairs, in the order of the listing; to be called once none is missing."""
        self._gather()
        return self._rows.take(pa.array(np.argsort(self._indices))).combine_chunks()

    def _gather(self) -> None:
        tables = [table.select(FIGURES.names) for table in self._new]
        self._rows = pa.concat_tables([self._rows, *tables]).combine_chunks()
        self._indices = np.concatenate([self._indices, *(table["index"].to_numpy() for table in self._new)])
        self._new = []

    def _kept(self) -> pa.Table | None:
        """Return the copy in the output, if its labels were read with the present rules."""
        data = self._store.read(SCAN)
        if data is None:
            return None
        try:
            table = pq.read_table(pa.BufferReader(data))
        except pa.ArrowException:
            return None
        same = (table.schema.metadata or {}).get(b"segray") == self._reading
        same = same and {*FIGURES.names} <= {*table.column_names}  # else an older version wrote it
        return table if same else None


def _unchanged(
    pairs: Sequence[Pair], kept: pa.Table | None, *, begun: bool
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], pa.Table]:
    """Return (indices in the listing, their rows): the kept rows whose files have unchanged versions."""
    if kept is None:
        return np.zeros(0, np.int64), FIGURES.empty_table()
    columns = [kept[name].to_pylist() for name in (*ADDRESSES.names, "error_type")]
    by_image = {image: row for row, image in enumerate(columns[0])}
    indices, rows = [], []
    for index, pair in enumerate(pairs):
        row = by_image.get(pair.image.uri, -1)
        here = [pair.image.uri, pair.image.version, pair.label.uri, pair.label.version]
        if row < 0 or "" in here or here != [column[row] for column in columns[:4]]:
            continue  # without a version, the storage may hold another file by now
        if begun or columns[4][row] not in PASSING:
            indices.append(index)
            rows.append(row)
    return np.array(indices, np.int64), kept.select(FIGURES.names).take(pa.array(rows, pa.int64()))
