"""The child process of `DecodeSandbox`: decodes one file after another, and may die doing so.

Started as `python -m segray.sources.decoder_process CONNECTION INPUT OUTPUT...` (inherited descriptors).
A request is a JSON message; the encoded bytes are in INPUT, the pixels go to the OUTPUT that it names: files
in memory that the parent maps too. The end of the connection ends the process.

A label image becomes its stored numbers, of any depth, instead of RGB; a volume its place and voxels.

A scene is read by window: instead of its bytes, the child asks the parent for byte ranges, as often as
needed. So it has neither network nor credentials.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from segray.errors import ItemError
from segray.scenes.range_file import Range
from segray.sources.decode import Decoded, Place, decode_rgb
from segray.sources.label_image import read_stored
from segray.sources.names import one_line
from segray.sources.shared_memory import SharedFile


class Decoder(Protocol):
    """Encoded bytes, maximum pixels, allocator of the pixels -> decoded image."""

    def __call__(self, data: bytes, max_pixels: int, place: Place, *, location: bool) -> Decoded:
        """Decode an image; location: see `decode_rgb`."""


READY = b"ready"
BASE_BYTES = 256 << 20
"""Address space that a decoder may take in addition to what grows with the image."""
SCENE_BYTES = 1 << 30
"""The same for scenes: GDAL and its caches, and the blocks around a window, which may be large strips."""
BYTES_PER_PIXEL = 32
"""Bytes a pixel, measured at 16 megapixels, Pillow's copies and ours included: 14 for JPEG, PNG and TIFF, 23
for WebP, 28 for the largest, lossless JPEG 2000 with alpha."""


def serve(decode: Decoder) -> None:
    """Answer requests with `decode` until the parent closes the connection."""
    connection, source = Connection(int(sys.argv[1])), SharedFile(int(sys.argv[2]))
    scenes = _Scenes(connection, source)
    targets = [SharedFile(int(descriptor)) for descriptor in sys.argv[3:]]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.nice(4)  # the model comes first: where one of its threads waits for a core, all of them wait
    _volunteer_for_oom_killer()
    resource.setrlimit(
        resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )  # no core files
    own_bytes = _address_space()
    connection.send_bytes(READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libpng complain there; ends the parent's pipe
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        # should the parent be killed while a file hangs us, the alarm's default action ends this process
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + 5)
        shared = sum(file.mapped for file in (source, *targets))
        if "scene" in request:
            _limit_memory(own_bytes + SCENE_BYTES + shared + BYTES_PER_PIXEL * request["pixels"])
            work = partial(scenes.answer, request, targets)
        else:
            growing = 4 * request["size"] + BYTES_PER_PIXEL * request["max_pixels"]
            _limit_memory(own_bytes + BASE_BYTES + shared + growing)
            target = targets[request["target"]]
            if "volume" in request:
                work = partial(_volume, source, request, target)
            elif "coloured" in request:
                work = partial(_stored, source, request, target)
            else:
                work = partial(_decoded, decode, source, request, target)
        answer = _answer(work)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(answer).encode())


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except ItemError as error:
        return {"error_type": error.error_type, "reason": one_line(error.reason)}
    except MemoryError:
        return {"error_type": "memory", "reason": "decoding it needs more memory than a decoder may have"}
    except Exception as error:  # noqa: BLE001 - a bug of ours must not look like an unknown crash
        return {"error_type": "crashed", "reason": f"the decoder failed: {type(error).__name__}: {error}"}


def _decoded(
    decode: Decoder, source: SharedFile, request: dict[str, int], target: SharedFile
) -> dict[str, Any]:
    data = source.place(0, request["size"]).tobytes()
    decoded = decode(
        data,
        request["max_pixels"],
        lambda size: target.place(request["offset"], size),
        location=bool(request["location"]),
    )
    height, width, _ = decoded.pixels.shape
    taken = None if decoded.taken is None else asdict(decoded.taken)
    return {
        "height": height,
        "width": width,
        "frames": decoded.frames,
        "note": decoded.note,
        "taken": taken,
    }


def _stored(source: SharedFile, request: dict[str, Any], target: SharedFile) -> dict[str, Any]:
    data = source.place(0, request["size"]).tobytes()
    stored = read_stored(data, request["max_pixels"], coloured=request["coloured"])
    values = np.ascontiguousarray(stored.values)
    target.place(0, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
    about = {"white": stored.white, "lossy": stored.lossy, "form": stored.form}
    return {"shape": values.shape, "dtype": values.dtype.str, **about}


def _volume(source: SharedFile, request: dict[str, Any], target: SharedFile) -> dict[str, Any]:
    from segray.sources.volume import packed, read_volume

    volume = read_volume(source.place(0, request["size"]).tobytes(), request["max_pixels"])
    data = np.frombuffer(packed(volume), np.uint8)
    target.place(request["offset"], data.nbytes)[:] = data
    return {"bytes": data.nbytes}


class _Scenes:
    """The open scene, until another one is requested."""

    def __init__(self, connection: Connection, source: SharedFile) -> None:
        self._connection, self._source = connection, source
        self._key, self._reader = "", cast(Any, None)

    def answer(self, request: dict[str, Any], targets: list[SharedFile]) -> dict[str, Any]:
        """Return the scene's description; with `window` in the request: read its pixels into the target."""
        from segray.scenes.nodata import packed_nodata
        from segray.scenes.scene import Tiling, scene_from
        from segray.tile_overlap import Window

        reader = self._open(request["key"], request["size"])
        if "tiling" in request:
            scene = reader.describe(Tiling(**request["tiling"]))
            return {"found": None if scene is None else scene.to_json()}
        scene = scene_from(request["scene"])
        window = Window(*request["window"])
        found = reader.window(scene, window, [scene.grid.window(tile) for tile in request["ahead"]])
        answer: dict[str, Any] = {"height": window.height, "width": window.width, "empty": found is None}
        if found is not None:
            pixels, valid = found
            place = targets[request["target"]].place(request["offset"], pixels.nbytes)
            place[:] = pixels.reshape(-1)
            answer["nodata"] = None if valid is None else packed_nodata(valid)
        return answer

    def _open(self, key: str, size: int) -> Any:
        from segray.scenes.reading import SceneReader

        if key != self._key or self._reader is None:
            if self._reader is not None:
                self._reader.close()
            self._key, self._reader = key, None
            self._reader = SceneReader(size, self._fetch)
        return self._reader

    def _fetch(self, ranges: Sequence[Range], ahead: Sequence[Sequence[Range]] = ()) -> list[bytes]:
        """Request byte ranges, which the parent writes one after the other to INPUT.

        Raises OSError on failure.
        """
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # time spent in the storage does not count
        self._connection.send_bytes(json.dumps({"ranges": ranges, "ahead": ahead}).encode())
        sizes = json.loads(self._connection.recv_bytes())
        signal.setitimer(signal.ITIMER_REAL, left)
        if sizes is None:
            self._key = ""  # GDAL's cache of it is incomplete
            raise OSError("the storage gave an error")
        ends = np.cumsum([0, *sizes]).tolist()
        data = self._source.place(0, ends[-1])
        return [data[start:stop].tobytes() for start, stop in pairwise(ends)]


def _volunteer_for_oom_killer() -> None:
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("1000")


def _address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


def _limit_memory(size: int) -> None:
    """Limit the address space; it can be raised again because only the soft limit is set."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    with contextlib.suppress(ValueError, OSError):  # systems without this limit
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    serve(decode_rgb)
