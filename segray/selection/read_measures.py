"""Measures of a second pass -> the pool: some small files at a time, tiles averaged over their image."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.output.io import files_below
from segray.selection.measures import FOLDER, WIDTH
from segray.selection.reading import Ints, Pool, batches
from segray.sources.item import Source
from segray.storage import StorageSettings

_TOGETHER = 64
"""Files that are read at a time."""


def measure_files(work: str, storage: StorageSettings) -> list[Source]:
    """Return the files of measures of a second pass."""
    return files_below(f"{work.rstrip('/')}/{FOLDER}", (".parquet",), storage)


def add_measures(pool: Pool, files: Sequence[Source], storage: StorageSettings) -> None:
    """Add unsure (of label maps), flips and windows: of a tiled image the means, weighted by pixels."""
    names = ("unsure", "flips", "windows")
    sums, weights = (np.zeros((len(names), len(pool))) for _ in range(2))
    seen = _Tiles()
    for table in _measured(files, ("image_id", "tile", "pixels", *names), storage):
        image = seen.new(pool.index(table), table)
        weight = table["pixels"].to_numpy().astype(np.float64).clip(min=1)
        for column, name in enumerate(names):
            values = table[name].to_numpy().astype(np.float64)
            rows = (image >= 0) & ~np.isnan(values)
            np.add.at(sums[column], image[rows], (values * weight)[rows])
            np.add.at(weights[column], image[rows], weight[rows])
    for column, name in enumerate(names):
        if weights[column].any():
            nothing = np.full(len(pool), np.nan)
            mean = np.divide(sums[column], weights[column], out=nothing, where=weights[column] > 0)
            pool.measures[name] = mean.astype(np.float32)


def features_of(
    pool: Pool, wanted: Ints, files: Sequence[Source], storage: StorageSettings
) -> NDArray[np.float32]:
    """Return the features of some images of the pool, (wanted, WIDTH) float32; NaN where there are none."""
    position = np.full(len(pool), -1, np.int64)
    position[wanted] = np.arange(len(wanted))
    sums, weights, seen = np.zeros((len(wanted), WIDTH)), np.zeros(len(wanted)), _Tiles()
    for table in _measured(files, ("image_id", "tile", "pixels", "features"), storage):
        image = seen.new(pool.index(table), table)
        place = np.where(image >= 0, position[image], -1)
        rows = np.flatnonzero((place >= 0) & pc.is_valid(table["features"]).to_numpy())
        if not len(rows):
            continue
        part = table.take(pa.array(rows))
        values = pc.list_flatten(part["features"]).to_numpy().reshape(-1, WIDTH).astype(np.float64)
        weight = part["pixels"].to_numpy().astype(np.float64).clip(min=1)
        np.add.at(sums, place[rows], values * weight[:, None])
        np.add.at(weights, place[rows], weight)
    nothing = np.full(sums.shape, np.nan)
    mean = np.divide(sums, weights[:, None], out=nothing, where=weights[:, None] > 0)
    features: NDArray[np.float32] = mean.astype(np.float32)
    return features


class _Tiles:
    """Which tiles were seen: a resumed pass may have measured one twice, in other files."""

    def __init__(self) -> None:
        self._seen = set[tuple[int, int]]()

    def new(self, image: Ints, table: pa.Table) -> Ints:
        """Return each row's image; -1 for a tile that was seen."""
        if table["tile"].null_count == table.num_rows:
            return image
        image = image.copy()
        for row, tile in enumerate(table["tile"].to_pylist()):
            if tile is not None and image[row] >= 0:
                if (int(image[row]), tile) in self._seen:
                    image[row] = -1
                self._seen.add((int(image[row]), tile))
        return image


def _measured(
    files: Sequence[Source], columns: Sequence[str], storage: StorageSettings
) -> Iterator[pa.Table]:
    """Yield the rows of some files of measures at a time, in the order of their names."""

    def read(file: Source) -> pa.Table | None:
        found = list(batches(file, columns, (), storage))
        return pa.Table.from_batches(found) if found else None

    with ThreadPoolExecutor(16, "segray-select") as pool:
        for first in range(0, len(files), _TOGETHER):
            some = pool.map(read, files[first : first + _TOGETHER])
            yield from (table for table in some if table is not None)
