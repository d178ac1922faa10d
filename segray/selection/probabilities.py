"""Entropy of the probabilities that a run of `predict --probabilities` wrote: uncertainty without a model."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from segray.errors import SettingsError
from segray.output.io import files_below
from segray.selection.measures import total_entropy
from segray.selection.reading import Pool
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings

_TOGETHER = 64
"""Files that are read at a time."""
_ROWS = 256
"""Rows of pixels that are in memory at a time, of each of the files that are read at once."""
_ONE = 255


def add_entropy(pool: Pool, run: str, storage: StorageSettings) -> None:
    """Add the measure `unsure`, where the run has probabilities. Raises SettingsError for a broken file."""
    files = files_below(f"{run.rstrip('/')}/probabilities", (".tif",), storage)
    if not files:
        return
    found = np.full(len(pool), np.nan, np.float32)

    def read(file: Source) -> float:
        return entropy_of(file, storage)

    with ThreadPoolExecutor(8, "segray-select") as threads:
        for first in range(0, len(files), _TOGETHER):
            some = files[first : first + _TOGETHER]
            names = pa.table({"image_id": [file.uri.rpartition("/")[2][:-4] for file in some]})
            image = pool.index(names)
            wanted = [file for file, each in zip(some, image.tolist(), strict=True) if each >= 0]
            found[image[image >= 0]] = list(threads.map(read, wanted))
    pool.measures["unsure"] = found


def entropy_of(file: Source, storage: StorageSettings) -> float:
    """Return the mean entropy of the pixels with data of a file, 0..1; NaN without any."""
    total = pixels = 0.0
    try:
        with warnings.catch_warnings(), open_source(file, storage) as stream:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(stream) as data:
                for row in range(0, data.height, _ROWS):
                    rows = min(_ROWS, data.height - row)
                    shares: NDArray[np.uint8] = data.read(window=Window(0, row, data.width, rows))
                    total += total_entropy(shares, _ONE)
                    pixels += int(shares.any(0).sum())  # where all are 0 the scene has no data
                return total / pixels if pixels else float("nan")
    except (RasterioError, OSError) as error:
        raise SettingsError(f"{file.uri} cannot be read: {describe(error)}") from error
