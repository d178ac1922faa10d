"""A window's probabilities before they become a map: an object in the output, until its scene is complete.

Workers write windows and maps in one request each; publishing them (see `output.store`) would take five. A
late write is harmless: a window's name carries the lease's generation, and a map is a function of its item
and of the run's identity, so that it replaces the same map. What remains: a run of another identity, which
is allowed only while nothing is committed, and a map being written when the run before was stopped.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.output.folder import Output, generation_in, mark
from segray.output.lease import follow
from segray.palette import VOID
from segray.predict.blend import Part, Piece, Pieces, labels_of, within
from segray.predict.maps import TOGETHER
from segray.predict.settings import PredictSettings
from segray.tile_overlap import Grid, Window

FOLDER = "_segray/windows"
LOOK_EVERY_S = 1.0
"""Timeout of the lease check: a worker writes many files a second."""
KEPT_BYTES = 256 << 20
"""Compressed windows that are cached while a map is merged: neighbouring blocks share them."""
MAGIC = b"segray-window/2\n"
"""First bytes of a window; its pieces depend on `TOGETHER`, so another value needs another number."""

_NAME = re.compile(r".*/(\d+)(?:-g\d+)?")


def output_of_worker(settings: PredictSettings, generation: int) -> Output:
    """Return the output, for a process that works for the run with this lease."""
    store = Output(settings.output, settings.storage)
    follow(store, generation, LOOK_EVERY_S)
    return store


def window_name(image_id: str, tile: int, generation: int) -> str:
    """Return the path inside the output."""
    return f"{FOLDER}/{image_id}/{tile}{mark(generation)}"


def packed_window(
    probabilities: NDArray[np.uint16],
    nodata: NDArray[np.bool_] | None,
    window: Window,
    pieces: Sequence[Piece],
    *,
    labels: bool,
) -> bytes:
    """Compress the pieces of a window with zstd, each by itself.

    Args:
        probabilities: (classes, h, w) uint16.
        nodata: (h, w) bool; None: all pixels have some.
        window: Its place.
        pieces: `Pieces.of_window`.
        labels: Keep labels alone of a piece that lies in no other window.
    """
    packed, sizes = list[bytes](), list[tuple[int, int]]()
    for piece in pieces:
        rows, cols = within(piece.area, window)
        part, missing = probabilities[:, rows, cols], None if nodata is None else nodata[rows, cols]
        if labels and len(piece.windows) == 1:
            found = labels_of(part)
            raw = (found if missing is None else np.where(missing, np.uint8(VOID), found)).tobytes()
        else:
            raw = part.tobytes() + (b"" if missing is None else np.packbits(missing).tobytes())
        packed.append(pa.compress(raw, codec="zstd", asbytes=True))
        sizes.append((len(packed[-1]), len(raw)))
    return b"".join((MAGIC, np.array(sizes, "<u4").tobytes(), *packed))


class PackedWindow:
    """What `packed_window` returned: each piece is unpacked when it is asked for."""

    def __init__(self, data: bytes, window: Window, pieces: Sequence[Piece]) -> None:
        """Find the pieces; arguments as those of `packed_window`."""
        self._window, self._parts = window, dict[Window, tuple[memoryview, int]]()
        self._older = None if data.startswith(MAGIC) else data
        if self._older is None:
            start = len(MAGIC) + 8 * len(pieces)
            sizes = np.frombuffer(data[len(MAGIC) : start], "<u4").reshape(-1, 2).tolist()
            for piece, (size, raw) in zip(pieces, sizes, strict=True):
                self._parts[piece.area] = memoryview(data)[start : start + size], raw
                start += size

    def part(self, area: Window) -> Part:
        """Return what the window holds in a piece."""
        if self._older is not None:  # unpacked each time: many windows are held
            rows, cols = within(area, self._window)
            probabilities, nodata = _whole(self._older)
            return probabilities[:, rows, cols], None if nodata is None else nodata[rows, cols]
        data, size = self._parts[area]
        raw = pa.decompress(data, size, codec="zstd", asbytes=True)
        shape, pixels = (area.height, area.width), area.height * area.width
        if size == pixels:
            return np.frombuffer(raw, np.uint8).reshape(shape), None
        classes = size // (2 * pixels)
        probabilities = np.frombuffer(raw, np.uint16, classes * pixels).reshape(classes, *shape)
        if size == probabilities.nbytes:
            return probabilities, None
        bits = np.frombuffer(raw, np.uint8, offset=probabilities.nbytes)
        return probabilities, np.unpackbits(bits, count=pixels).reshape(shape).astype(bool)


def _whole(data: bytes) -> tuple[NDArray[np.uint16], NDArray[np.bool_] | None]:
    """Return a window that an older version left: it compressed all of it at once."""
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

    def __init__(self, store: Output, image_id: str, grid: Grid) -> None:
        self._store, self._names = store, dict[int, str]()
        for name in sorted(store.files(f"{FOLDER}/{image_id}"), key=generation_in):
            if found := _NAME.fullmatch(name):
                self._names[int(found[1])] = name  # the newest of several
        self._grid, self._pieces = grid, Pieces(grid, TOGETHER)
        self._kept: OrderedDict[int, tuple[PackedWindow, int]] = OrderedDict()

    def read(self, number: int, area: Window) -> Part | None:
        """Return a piece of a window, see `blend.Read`. Raises JobFailedError where the storage fails."""
        if number not in self._kept:
            data = self._store.read(self._names[number]) if number in self._names else None
            if not data:
                return None
            pieces = self._pieces.of_window(number)
            self._kept[number] = PackedWindow(data, self._grid.window(number), pieces), len(data)
        self._kept.move_to_end(number)
        while sum(size for _, size in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return self._kept[number][0].part(area)
