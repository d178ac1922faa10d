"""Decoding in a process of its own, so that a hostile file can take nothing along but itself.

One child decodes file after file. It is killed when a file takes too long, its memory is bounded, and when
it dies a fresh one takes its place. Bytes go over and pixels come back through files in memory that both
map. The child puts the pixels of a table one behind the other into one such file, and the table's column is
that memory: no copy on this side. A file is used again when its table is gone.
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
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import segray
from segray.columns import byte_views
from segray.errors import ItemError, JobFailedError
from segray.schema import DECODED
from segray.sources.decode import Decoded
from segray.sources.decoder_process import READY
from segray.sources.rows import TABLE_ROWS
from segray.sources.shared import SharedFile, shared_file

TABLE_BYTES = 48 << 20
_STARTS = 3
_START_S = 120.0
"""Seconds for imports; a node that starts many workers at once is slow."""
_TABLES = 3
"""Tables that are made without a copy at a time: one is filled, Ray holds on to two."""
_END_S = 10.0
"""Seconds for a process to end that has closed its connection."""
_KEPT_BYTES = 64 << 20
"""A shared file that a big picture made larger than this is given back to the system afterwards."""


class Room:
    """Where the pixels of one table lie, one picture behind the other."""

    def __init__(self, file: SharedFile, number: int) -> None:
        self.file, self.number = file, number
        self.used = 0
        self._borrowed: weakref.ref[npt.NDArray[np.uint8]] | None = None

    @property
    def is_free(self) -> bool:
        """Whether nobody reads what was last put there."""
        return self._borrowed is None or self._borrowed() is None

    def begin(self) -> "Room":
        """Forget what was put there."""
        if self.file.mapped > _KEPT_BYTES:
            self.file.empty()
        self.used, self._borrowed = 0, None
        return self

    def put(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Add a picture that lies elsewhere."""
        np.copyto(self.file.place(self.used, pixels.nbytes), pixels.reshape(-1))
        self.used += pixels.nbytes

    def pixels(self) -> npt.NDArray[np.uint8]:
        """All pictures; while the array lives, the room is not free."""
        pixels = self.file.place(0, self.used)
        self._borrowed = weakref.ref(pixels)
        return pixels


class DecodeSandbox:
    """`with DecodeSandbox() as sandbox: sandbox.decode(data, max_pixels)`; the child starts when needed."""

    def __init__(self, timeout_s: float = 30.0, program: str = "segray.sources.decoder_process") -> None:
        self.timeout_s = timeout_s
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
        """A room for a new table. If tables hold them all, there will be one more, and a new child."""
        for room in self._rooms:
            if room.is_free:
                return room.begin()
        self.close()
        self._rooms.append(Room(SharedFile(shared_file()), len(self._rooms) + 1))
        return self._rooms[-1]

    def decode(self, data: bytes | memoryview, max_pixels: int, room: "Room | None" = None) -> Decoded:
        """As `decode_rgb`; also raises ItemError `timeout`, `memory` and `crashed` (after a second try).

        The pixels lie in an array of their own, or in `room`, behind its `used` bytes.
        """
        if room is not None:
            return self._decode(data, max_pixels, room)
        decoded = self._decode(data, max_pixels, self._scratch.begin())
        return Decoded(decoded.pixels.copy(), decoded.frames)

    def _decode(self, data: bytes | memoryview, max_pixels: int, room: Room) -> Decoded:
        fresh = self._child is None
        try:
            return self._try(data, max_pixels, room)
        except _ChildDiedError:
            self.close()
        except ItemError as error:
            if error.error_type != "memory" or fresh:
                raise  # else what earlier files left behind in the child may have filled it
        try:
            return self._try(data, max_pixels, room)
        except _ChildDiedError as death:
            self.close()
            raise death.as_item_error() from None

    def _try(self, data: bytes | memoryview, max_pixels: int, room: Room) -> Decoded:
        if self._child is None:
            self._child = self._new_child()
        try:
            return self._child.decode(data, max_pixels, self.timeout_s, room)
        except ItemError as error:
            if error.error_type in ("timeout", "memory"):
                self.close()
            raise

    def _new_child(self) -> "_Child":
        """One that the system killed while it started gets a second and a third try."""
        targets = [each.file for each in (self._scratch, *self._rooms)]
        for _ in range(_STARTS - 1):
            with contextlib.suppress(_ChildDiedError):
                return _Child(self._program, self._source, targets)
        try:
            return _Child(self._program, self._source, targets)
        except _ChildDiedError as death:
            raise JobFailedError(f"the decoder process is killed while it starts: {death}") from None


class _ChildDiedError(Exception):
    """The child ended without an answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status

    def as_item_error(self) -> ItemError:
        if self.status == -signal.SIGKILL:  # not ours: the system was short of memory
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
                [sys.executable, "-m", program, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # until it is ready
                env=_environment(),
            )
        self._connection = Connection(ours.detach())
        self._await_start()

    def _await_start(self) -> None:
        """A child that cannot even start is no item's fault. Raises _ChildDiedError if it was killed."""
        with contextlib.suppress(EOFError, ConnectionError):
            if self._connection.poll(_START_S) and self._connection.recv_bytes() == READY:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)  # its end may be seen before its status
        ended = self._process.poll()
        self._process.kill()
        _, said = self._process.communicate()
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        if ended is not None and ended < 0:
            self._connection.close()
            raise _ChildDiedError(ended)
        raise JobFailedError(f"the decoder process does not start: {last or 'no word from it'}")

    def decode(self, data: bytes | memoryview, max_pixels: int, timeout_s: float, room: Room) -> Decoded:
        """The pixels lie in `room` behind its `used` bytes."""
        np.copyto(self._source.place(0, len(data)), np.frombuffer(data, np.uint8))
        request = {"size": len(data), "max_pixels": max_pixels, "timeout_s": timeout_s}
        answer = self._ask({**request, "target": room.number, "offset": room.used}, timeout_s)
        if len(data) > _KEPT_BYTES:
            self._source.empty()
        if "error_type" in answer:
            raise ItemError(answer["error_type"], answer["reason"])
        shape = (answer["height"], answer["width"], 3)
        pixels = room.file.place(room.used, math.prod(shape))
        return Decoded(pixels.reshape(shape), answer["frames"])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._connection.close()

    def _ask(self, request: dict[str, float], timeout_s: float) -> dict[str, Any]:
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            if not self._connection.poll(timeout_s):
                raise ItemError("timeout", f"decoding it took longer than {timeout_s:g} s")
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise _ChildDiedError(self._status()) from None
        return answer

    def _status(self) -> int:
        """How the child ended; one that only stopped talking is ended here."""
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return 0


def _environment() -> dict[str, str]:
    """Ours, plus where this package lies, minus threads: many decoders share the machine."""
    home = str(Path(segray.__file__).parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    quiet |= {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "134217728"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def decode_table(
    table: pa.Table,
    sandbox: DecodeSandbox,
    max_pixels: int,
    target_bytes: int = TABLE_BYTES,
    most_rows: int = TABLE_ROWS,
) -> Iterator[pa.Table]:
    """FETCHED -> tables of DECODED, a row for each row and in order; error and control rows pass through.

    A table is cut at `most_rows`, and before its pixels would exceed `target_bytes` (one picture may, alone):
    pictures have the same size in every run, so the cuts are the same too.
    """
    start, pictures, room = 0, list[Decoded | ItemError | None](), sandbox.room()
    for row, data in enumerate(byte_views(table["data"])):
        if len(pictures) == most_rows:
            yield _table(table.slice(start, most_rows), pictures, room)
            start, pictures, room = row, [], sandbox.room()
        picture: Decoded | ItemError | None = None
        if data is not None:
            picture = _decoded(data, sandbox, max_pixels, room)
        if isinstance(picture, Decoded):
            if room.used and room.used + picture.pixels.nbytes > target_bytes:
                full = _table(table.slice(start, row - start), pictures, room)
                start, pictures, room = row, [], sandbox.room()
                room.put(picture.pixels)
                yield full
                del full  # its room is wanted
            else:
                room.used += picture.pixels.nbytes
        pictures.append(picture)
    if pictures:
        yield _table(table.slice(start), pictures, room)


def _decoded(
    data: npt.NDArray[np.uint8], sandbox: DecodeSandbox, max_pixels: int, room: Room
) -> Decoded | ItemError:
    """The picture, behind the others in `room`, or why there is none."""
    try:
        return sandbox.decode(data.data, max_pixels, room)
    except ItemError as error:
        return error


def _table(fetched: pa.Table, pictures: list[Decoded | ItemError | None], room: Room) -> pa.Table:
    """The rows of `fetched` with their pictures in place of the encoded bytes."""
    found = [picture if isinstance(picture, Decoded) else None for picture in pictures]
    errors = [picture if isinstance(picture, ItemError) else None for picture in pictures]
    columns = {name: fetched[name] for name in DECODED.names if name in fetched.schema.names}
    columns["height"] = [None if one is None else one.pixels.shape[0] for one in found]
    columns["width"] = [None if one is None else one.pixels.shape[1] for one in found]
    columns["frames"] = [None if one is None else one.frames for one in found]
    columns["pixels"] = _pixel_column(found, room)
    for name, attribute in (("error_type", "error_type"), ("error", "reason")):
        known = fetched[name].to_pylist()
        columns[name] = [
            old if new is None else getattr(new, attribute) for old, new in zip(known, errors, strict=True)
        ]
    return pa.table(
        [
            pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list) else columns[f.name]
            for f in DECODED
        ],
        schema=DECODED,
    )


def _pixel_column(found: list[Decoded | None], room: Room) -> pa.LargeBinaryArray:
    """The room's pixels as a column, without a copy."""
    sizes = [0 if one is None else one.pixels.nbytes for one in found]
    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    valid = pa.array([one is not None for one in found]).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(room.pixels())]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(found), buffers)
