"""A window's probabilities before they become a map: an object in the output, until its scene is complete.

Workers write windows and maps in one request each; publishing them (see `output.store`) would take five. A
late write is harmless: a window's name carries the lease's generation, and a map is a function of its item
and of the run's identity, so that it replaces the same map. What remains: a run of another identity, which
is allowed only while nothing is committed, and a map being written when the run before was stopped.
"""

import io
import re
from collections import OrderedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.output.folder import Output, generation_in, mark
from segray.output.lease import follow
from segray.predict.settings import PredictSettings

FOLDER = "_segray/windows"
LOOK_EVERY_S = 1.0
"""Timeout of the lease check: a worker writes many files a second."""
KEPT_BYTES = 256 << 20
"""Compressed windows that are cached while a map is merged: neighbouring blocks share them."""


_NAME = re.compile(r".*/(\d+)(?:-g\d+)?")


def output_of_worker(settings: PredictSettings, generation: int) -> Output:
    """Return the output, for a process that works for the run with this lease."""
    store = Output(settings.output, settings.storage)
    follow(store, generation, LOOK_EVERY_S)
    return store


def window_name(image_id: str, tile: int, generation: int) -> str:
    """Return the path inside the output."""
    return f"{FOLDER}/{image_id}/{tile}{mark(generation)}"


def packed_window(probabilities: NDArray[np.uint16], nodata: NDArray[np.bool_] | None) -> bytes:
    """Compress probabilities (classes, h, w) uint16 and nodata (h, w) bool with zstd."""
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
    """Return probabilities (classes, h, w) uint16 and nodata (h, w) bool that `packed_window` compressed."""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        raw = io.BytesIO(stream.read())
    probabilities: NDArray[np.uint16] = np.load(raw)
    if raw.tell() == raw.getbuffer().nbytes:
        return probabilities, None
    _, height, width = probabilities.shape
    bits: NDArray[np.uint8] = np.load(raw)
    return probabilities, np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


class Windows:
    """The windows of one scene, read from the output on demand."""

    def __init__(self, store: Output, image_id: str) -> None:
        self._store, self._names = store, dict[int, str]()
        for name in sorted(store.files(f"{FOLDER}/{image_id}"), key=generation_in):
            if found := _NAME.fullmatch(name):
                self._names[int(found[1])] = name  # the newest of several
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, number: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_] | None] | None:
        """Return a window, see `blend.Read`. Raises JobFailedError where the storage fails."""
        name = self._names.get(number)
        data = self._kept.get(number) or (name and self._store.read(name))
        if not data:
            return None
        self._kept[number] = data
        self._kept.move_to_end(number)
        while sum(map(len, self._kept.values())) > KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return unpacked_window(data)
