"""Decoding in a separate process, so that a hostile file harms only itself.

One child decodes file after file. It is killed when a file takes too long, its memory is bounded, and when
it dies a new one replaces it. Bytes go over and pixels come back through files in memory that both map. The
child writes the pixels of a table one image after the other into one such file, and the table's column is
that memory: no copy in the parent. A file is used again when its table is released.
"""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

import segray
from segray.errors import ItemError, JobFailedError
from segray.scenes.range_file import Range
from segray.scenes.scene import Scene, Tiling, scene_from
from segray.sources.decode import Decoded, too_large
from segray.sources.decoder_process import READY
from segray.sources.label_image import Stored
from segray.sources.shared_memory import SharedFile, shared_file
from segray.sources.taken import Taken
from segray.tile_overlap import Window

T = TypeVar("T")

_STARTS = 3
_START_S = 120.0
"""Seconds for imports; a node that starts many workers at once is slow."""
_TABLES = 3
"""Maximum number of zero-copy tables at a time: one is filled, Ray holds two."""
_END_S = 10.0
"""Seconds to wait for a process to end that has closed its connection."""
_KEPT_BYTES = 64 << 20
"""A shared file that a large image grew beyond this is given back to the system afterwards."""


class ByteRanges(Protocol):
    """A file that is read by ranges."""

    key: str
    """Unique to a version of a file."""
    size: int

    def read(self, ranges: Sequence[Range]) -> Sequence[bytes | memoryview]:
        """Return the bytes of each range. Raises ItemError where one cannot be read."""

    def ahead(self, groups: Sequence[Sequence[Range]]) -> None:
        """Announce what will be read next, one group at a time."""


class Room:
    """The pixels of one table, one image after the other, in a shared file."""

    def __init__(self, file: SharedFile, number: int) -> None:
        self.file, self.number = file, number
        self.used = 0
        self._borrowed: weakref.ref[npt.NDArray[np.uint8]] | None = None

    @property
    def is_free(self) -> bool:
        """Return whether nobody reads the pixels any more."""
        return self._borrowed is None or self._borrowed() is None

    def begin(self) -> "Room":
        """Discard the pixels."""
        if self.file.mapped > _KEPT_BYTES:
            self.file.empty()
        self.used, self._borrowed = 0, None
        return self

    def put(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Append a copy of an image's pixels, uint8 (height, width, 3)."""
        np.copyto(self.file.place(self.used, pixels.nbytes), pixels.reshape(-1))
        self.used += pixels.nbytes

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return all pixels, (used,) uint8; while the array lives, the room is not free."""
        pixels = self.file.place(0, self.used)
        self._borrowed = weakref.ref(pixels)
        return pixels


class DecodeSandbox:
    """`with DecodeSandbox() as sandbox: sandbox.decode(data, max_pixels)`; the child starts when needed."""

    def __init__(
        self,
        timeout_s: float = 30.0,
        program: str = "segray.sources.decoder_process",
        *,
        location: bool = False,
    ) -> None:
        """Store the settings; location: images come with where and when they were taken."""
        self.timeout_s, self._location = timeout_s, location
        self._program = program
        self._child: _Child | None = None
        self._source = SharedFile(shared_file())
        self._scratch, *self._rooms = (
            Room(SharedFile(shared_file()), number) for number in range(_TABLES + 1)
        )

    def __enter__(self) -> "DecodeSandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; the next `decode` starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def room(self) -> "Room":
        """Return a room for a new table. If tables hold all of them, make one more, and a new child."""
        for room in self._rooms:
            if room.is_free:
                return room.begin()
        self.close()
        self._rooms.append(Room(SharedFile(shared_file()), len(self._rooms) + 1))
        return self._rooms[-1]

    def decode(self, data: bytes | memoryview, max_pixels: int, room: "Room | None" = None) -> Decoded:
        """Decode as `decode_rgb`; also raises ItemError `timeout`, `memory` and `crashed` (after a second
        try).

        The pixels are in an array of their own, or in `room`, behind its `used` bytes.
        """
        if room is not None:
            return self._decode(data, max_pixels, room)
        decoded = self._decode(data, max_pixels, self._scratch.begin())
        return replace(decoded, pixels=decoded.pixels.copy())

    def stored(self, data: bytes, max_pixels: int, *, coloured: bool = False) -> Stored:
        """Decode a label image as `read_stored`; also raises ItemError as `decode` does."""
        room = self._scratch.begin()
        return self._twice(lambda child: child.stored(data, max_pixels, coloured, self.timeout_s, room))

    def volume(
        self, data: bytes | memoryview, max_voxels: int, room: "Room | None" = None
    ) -> npt.NDArray[np.uint8]:
        """Read a NIfTI file or a TIFF stack; return place and voxels as `sources.volume.unpacked` takes them.

        They are in an array of their own, or in `room`, behind its `used` bytes. Raises ItemError as
        `read_volume` does, and as `decode`.
        """
        place = room or self._scratch.begin()
        found = self._twice(lambda child: child.volume(data, max_voxels, self.timeout_s, place))
        return found if room is not None else found.copy()

    def describe(self, file: "ByteRanges", tiling: Tiling) -> Scene | None:
        """Return the scene of a GeoTIFF; None for an ordinary image. Raises ItemError as `decode` does."""
        return self._twice(lambda child: child.describe(file, tiling, self.timeout_s))

    def whole(self, file: "ByteRanges", scene: Scene, max_pixels: int, room: "Room | None" = None) -> Decoded:
        """Read a whole scene as one image. Raises ItemError as `decode` does."""
        height, width = scene.height, scene.width
        if height * width > max_pixels:
            raise too_large(width, height, max_pixels)
        place = room or self._scratch.begin()
        found = self.window(file, replace(scene, tile=max(height, width), overlap=0), 0, place)
        if found is None:  # no data in it: black, as in a scene
            pixels = place.file.place(place.used, 3 * height * width).reshape(height, width, 3)
            pixels[:] = 0
        else:
            pixels = found.pixels
        return Decoded(pixels if room is not None else pixels.copy(), 1, note=scene.told)

    def window(
        self, file: "ByteRanges", scene: Scene, part: int | Window, room: Room, ahead: Sequence[int] = ()
    ) -> Decoded | None:
        """Return a tile, its pixels in `room` behind its `used` bytes; None where the tile holds no data.

        part: index of a tile, or any window of the scene. ahead: the tiles that come next. Raises ItemError
        as `decode` does, and what reading `file` raises.
        """
        window = scene.grid.window(part) if isinstance(part, int) else part
        return self._twice(lambda child: child.window(file, scene, (window, *ahead), self.timeout_s, room))

    def _decode(self, data: bytes | memoryview, max_pixels: int, room: Room) -> Decoded:
        request = {"max_pixels": max_pixels, "location": self._location}
        return self._twice(lambda child: child.decode(data, request, self.timeout_s, room))

    def _twice(self, work: Callable[["_Child"], T]) -> T:
        fresh = self._child is None
        try:
            return self._try(work)
        except _ChildDiedError:
            self.close()
        except ItemError as error:
            if error.error_type != "memory" or fresh:
                raise  # else memory leaked by earlier files may have filled the child
        try:
            return self._try(work)
        except _ChildDiedError as death:
            self.close()
            raise death.as_item_error() from None

    def _try(self, work: Callable[["_Child"], T]) -> T:
        if self._child is None:
            self._child = self._new_child()
        try:
            return work(self._child)
        except ItemError as error:
            if error.error_type in ("timeout", "memory"):
                self.close()
            raise

    def _new_child(self) -> "_Child":
        """Start a child; one that the system killed during its start gets a second and a third try."""
        targets = [each.file for each in (self._scratch, *self._rooms)]
        for _ in range(_STARTS - 1):
            with contextlib.suppress(_ChildDiedError):
                return _Child(self._program, self._source, targets)
        try:
            return _Child(self._program, self._source, targets)
        except _ChildDiedError as death:
            raise JobFailedError(f"the decoder process is killed while it starts: {death}") from None


class _ChildDiedError(Exception):
    """The child ended without a reply."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status

    def as_item_error(self) -> ItemError:
        if self.status == -signal.SIGKILL:  # not by us: the system was short of memory
            return ItemError("memory", "the system killed the decoder, most likely for want of memory")
        with contextlib.suppress(ValueError):
            name = signal.Signals(-self.status).name
            return ItemError("crashed", f"the decoder died of {name} on this file, twice")
        return ItemError("crashed", f"the decoder ended with status {self.status} on this file, twice")


class _Child:
    """The process and the connection to it."""

    def __init__(self, program: str, source: SharedFile, targets: list[SharedFile]) -> None:
        self._source = source
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), source.descriptor, *(file.descriptor for file in targets))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", program, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # until it is ready
                env=_environment(),
            )
        self._connection = Connection(ours.detach())
        self._await_start()

    def _await_start(self) -> None:
        """Wait until the child is ready.

        Raises JobFailedError if it cannot start, _ChildDiedError if killed.
        """
        with contextlib.suppress(EOFError, ConnectionError):
            if self._connection.poll(_START_S) and self._connection.recv_bytes() == READY:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)  # the connection may close before the status is set
        ended = self._process.poll()
        self._process.kill()
        _, said = self._process.communicate()
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        if ended is not None and ended < 0:
            self._connection.close()
            raise _ChildDiedError(ended)
        raise JobFailedError(f"the decoder process does not start: {last or 'no word from it'}")

    def decode(
        self, data: bytes | memoryview, request: dict[str, Any], timeout_s: float, room: Room
    ) -> Decoded:
        """Decode to `room`, behind its `used` bytes; request: `max_pixels` and `location`."""
        request = {**request, "target": room.number, "offset": room.used}
        answer = self._ask_of_bytes(request, data, timeout_s)
        shape = (answer["height"], answer["width"], 3)
        pixels = room.file.place(room.used, math.prod(shape))
        taken = answer["taken"] and Taken.from_json(answer["taken"])
        return Decoded(pixels.reshape(shape), answer["frames"], note=answer["note"], taken=taken)

    def stored(self, data: bytes, max_pixels: int, coloured: bool, timeout_s: float, room: Room) -> Stored:
        """Return the stored numbers in an array of their own; they came through `room`, which is empty."""
        request = {"max_pixels": max_pixels, "target": room.number, "coloured": coloured}
        answer = self._ask_of_bytes(request, data, timeout_s)
        shape, dtype = answer["shape"], np.dtype(answer["dtype"])
        values = room.file.place(0, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape).copy()
        return Stored(values, answer["white"], answer["lossy"], answer["form"])

    def volume(
        self, data: bytes | memoryview, max_voxels: int, timeout_s: float, room: Room
    ) -> npt.NDArray[np.uint8]:
        """Read a volume to `room`, behind its `used` bytes."""
        request = {"volume": True, "max_pixels": max_voxels, "target": room.number, "offset": room.used}
        answer = self._ask_of_bytes(request, data, timeout_s)
        return room.file.place(room.used, answer["bytes"])

    def _ask_of_bytes(
        self, request: dict[str, Any], data: bytes | memoryview, timeout_s: float
    ) -> dict[str, Any]:
        """Return the reply to a request about an encoded image. Raises ItemError where it is one."""
        np.copyto(self._source.place(0, len(data)), np.frombuffer(data, np.uint8))
        answer = self._ask({**request, "size": len(data), "timeout_s": timeout_s}, timeout_s)
        if len(data) > _KEPT_BYTES:
            self._source.empty()
        if "error_type" in answer:
            raise ItemError(answer["error_type"], answer["reason"])
        return answer

    def describe(self, file: ByteRanges, tiling: Tiling, timeout_s: float) -> Scene | None:
        """Return the scene, or None for an image."""
        answer = self._ask_of_scene({"scene": None, "tiling": asdict(tiling), "pixels": 0}, file, timeout_s)
        return None if answer["found"] is None else scene_from(answer["found"])

    def window(
        self, file: ByteRanges, scene: Scene, tiles: tuple[Any, ...], timeout_s: float, room: Room
    ) -> Decoded | None:
        """Read a window, the first of `tiles`, into `room`, behind its `used` bytes; the rest come next."""
        window, *ahead = tiles
        request: dict[str, Any] = {
            "scene": scene.to_json(),
            "pixels": window.height * window.width,
        }
        request |= {"window": astuple(window), "ahead": ahead}
        request |= {"target": room.number, "offset": room.used}
        answer = self._ask_of_scene(request, file, timeout_s)
        if answer["empty"]:
            return None
        shape = (answer["height"], answer["width"], 3)
        pixels = room.file.place(room.used, math.prod(shape)).reshape(shape)
        return Decoded(pixels, 1, answer["nodata"])

    def _ask_of_scene(self, request: dict[str, Any], file: ByteRanges, timeout_s: float) -> dict[str, Any]:
        """Return the reply, after serving the ranges that it requests. Raises what reading them raises."""
        failure: ItemError | None = None
        message: Any = {**request, "key": file.key, "size": file.size, "timeout_s": timeout_s}
        while "ranges" in (answer := self._ask(message, timeout_s)):
            try:
                file.ahead([[(offset, size) for offset, size in group] for group in answer["ahead"]])
                message = self._put(file.read([(offset, size) for offset, size in answer["ranges"]]))
            except ItemError as error:
                failure, message = error, None
        if failure is not None:
            raise failure
        if "error_type" in answer:
            raise ItemError(answer["error_type"], answer["reason"])
        return answer

    def _put(self, pieces: Sequence[bytes | memoryview]) -> list[int]:
        """Write the pieces one after the other to the child's input; return their sizes."""
        sizes = [len(piece) for piece in pieces]
        room, start = self._source.place(0, sum(sizes)), 0
        for piece, size in zip(pieces, sizes, strict=True):
            room[start : start + size] = np.frombuffer(piece, np.uint8)
            start += size
        return sizes

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._connection.close()

    def _ask(self, request: Any, timeout_s: float) -> dict[str, Any]:
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            if not self._connection.poll(timeout_s):
                raise ItemError("timeout", f"decoding it took longer than {timeout_s:g} s")
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise _ChildDiedError(self._status()) from None
        return answer

    def _status(self) -> int:
        """Return the child's exit status; kill a child that no longer replies."""
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return 0


def _environment() -> dict[str, str]:
    """Return our environment, plus the path of this package, minus threads: many decoders share the machine.

    An empty part of PYTHONPATH would be the working folder, which may hold images.
    """
    home = str(Path(segray.__file__).parents[1])
    paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    quiet = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    quiet |= {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "134217728"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}
