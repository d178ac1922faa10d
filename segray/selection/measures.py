"""What the second pass adds to a run: `measures/*.parquet`, a row an image or a tile, written by the workers.

A row follows from model and image alone, and stands before its image in the ledger: written twice, it is the
same. Features are means of the model's feature maps, projected to `WIDTH` numbers by a fixed Gaussian matrix,
which keeps distances up to about 1 / sqrt(WIDTH) (Johnson and Lindenstrauss, 1984).
"""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.output.folder import Output
from segray.output.lease import follow
from segray.storage import StorageSettings

FOLDER = "measures"
VERSION = 1
"""Part of the pass's identity: another one needs another pass."""
WIDTH = 64
_CHECK_EVERY_S = 1.0
_SEED = 20_240_501

MEASURES = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("tile", pa.int32()),  # null: the whole image
        pa.field("pixels", pa.int64()),  # weight of a tile among those of its image
        pa.field("features", pa.list_(pa.float32(), WIDTH)),  # null where the model has none
        pa.field("unsure", pa.float32()),  # label maps: mean entropy of a pixel, 0..1
        pa.field("flips", pa.float32()),  # disagreement with the mirror image, 0..1
        pa.field("windows", pa.float32()),  # disagreement of overlapping windows, 0..1; in a row of its own
    ]
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the model step found out about one image or tile; None: not measured."""

    features: NDArray[np.float32] | None = None
    """(WIDTH,) float32."""
    unsure: float | None = None
    flips: float | None = None
    windows: float | None = None


class MeasuresWriter:
    """Writes rows of MEASURES into an output, for a process that works for the run with a lease."""

    def __init__(self, url: str, storage: StorageSettings, generation: int) -> None:
        self._store = Output(url, storage)
        follow(self._store, generation, _CHECK_EVERY_S)

    def write(
        self,
        image_ids: Sequence[str],
        tiles: Sequence[int | None],
        pixels: Sequence[int],
        found: Sequence[Measured],
    ) -> None:
        """Write one file, named by its images and tiles. Raises JobFailedError where the storage fails."""
        if not found:
            return
        features = [None if each.features is None else each.features.tolist() for each in found]
        columns = [list(image_ids), list(tiles), list(pixels), features]
        columns += [[getattr(each, name) for each in found] for name in ("unsure", "flips", "windows")]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, MEASURES, strict=True)]
        sink = io.BytesIO()
        pq.write_table(pa.table(arrays, schema=MEASURES), sink, compression="zstd")
        named = "\n".join(
            f"{one} {tile} {each.windows is None}"
            for one, tile, each in zip(image_ids, tiles, found, strict=True)
        )
        name = hashlib.sha256(named.encode()).hexdigest()[:32]
        self._store.put(f"{FOLDER}/{name}.parquet", sink.getvalue())


def projected(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features (n, c) of unit length as (n, WIDTH), zero where they are not finite."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(features, length, out=np.zeros(features.shape), where=np.isfinite(length) & (length > 0))
    found: NDArray[np.float32] = (unit @ _matrix(features.shape[1])).astype(np.float32)
    return found


def total_entropy(shares: NDArray[np.uint8] | NDArray[np.uint16], one: int) -> float:
    """Return the sum over pixels of the entropy of (classes, h, w) shares, of which `one` is 1.

    Shannon's, over its maximum, the logarithm of the number of classes: at most 1 a pixel.
    """
    total = 0.0
    for row in range(shares.shape[1]):  # a row at a time: eight bytes a pixel and class would not fit
        each = shares[:, row].astype(np.float64) / one
        total -= float((each * np.log(np.maximum(each, 1e-12))).sum())
    return total / math.log(max(2, len(shares)))


@lru_cache(maxsize=4)
def _matrix(channels: int) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = np.random.default_rng(_SEED).standard_normal((channels, WIDTH))
    drawn /= np.sqrt(WIDTH)
    return drawn
