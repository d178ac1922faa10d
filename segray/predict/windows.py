"""A window's probabilities on their way to the map: an object in the output, until its scene is whole."""

import io
from collections import OrderedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.bulk.store import Store

FOLDER = "_segray/windows"
KEPT_BYTES = 256 << 20
"""Compressed windows that are kept while a map is put together: neighbouring blocks share them."""


def packed_window(probabilities: NDArray[np.uint16], nodata: NDArray[np.bool_] | None) -> bytes:
    """(classes, h, w) and (h, w), zstd."""
    raw = io.BytesIO()
    np.save(raw, probabilities)
    if nodata is not None:
        np.save(raw, np.packbits(nodata))
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw.getbuffer())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def unpacked_window(data: bytes) -> tuple[NDArray[np.uint16], NDArray[np.bool_] | None]:
    """What `packed_window` packed."""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        raw = io.BytesIO(stream.read())
    probabilities: NDArray[np.uint16] = np.load(raw)
    if raw.tell() == raw.getbuffer().nbytes:
        return probabilities, None
    _, height, width = probabilities.shape
    bits: NDArray[np.uint8] = np.load(raw)
    return probabilities, np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


class Windows:
    """The windows of one scene, read from the output when they are asked for."""

    def __init__(self, store: Store, image_id: str) -> None:
        self._store, self._folder = store, f"{FOLDER}/{image_id}"
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, number: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_] | None] | None:
        """See `blend.Read`. Raises JobFailedError where the storage fails."""
        data = self._kept.get(number) or self._store.read(f"{self._folder}/{number}")
        if data is None:
            return None
        self._kept[number] = data
        self._kept.move_to_end(number)
        while sum(map(len, self._kept.values())) > KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return unpacked_window(data)
