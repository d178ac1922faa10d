"""A remote file as a Python file object: ranges fetched ahead, each retried where it broke off.

A lost connection costs one range, not the archive: the next request begins at the same offset.
"""

import io
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, cast

from fsspec.spec import AbstractFileSystem

from segray.retries import retrying
from segray.sources.item import Source
from segray.storage import StorageSettings, open_filesystem

FIRST_BYTES = 256 << 10
"""Size of the range fetched after a seek; it doubles while reading is sequential."""
MOST_BYTES = 8 << 20


def open_source(source: Source, storage: StorageSettings) -> IO[bytes]:
    """Open a file for reading and seeking: local ones directly, remote ones through a `RangeReader`.

    Raises what the storage raises, after transient errors have been retried.
    """
    filesystem, path = open_filesystem(source.address, storage, is_listed=True)
    if filesystem.protocol in ("file", ("file", "local")):
        return cast(IO[bytes], open(path, "rb", buffering=1 << 20))  # noqa: PTH123 - the caller closes it
    size = source.size
    if size < 0:
        size = int(retrying(lambda: filesystem.info(path), storage)["size"] or 0)
    raw = RangeReader(filesystem, path, size, storage)
    return cast(IO[bytes], io.BufferedReader(raw, buffer_size=1 << 20))


class RangeReader(io.RawIOBase):
    """Reads `size` bytes of `path`; holds one range and, when reading is sequential, prefetches the next."""

    def __init__(
        self, filesystem: AbstractFileSystem, path: str, size: int, storage: StorageSettings
    ) -> None:
        super().__init__()
        self._filesystem, self._path, self._size, self._storage = filesystem, path, size, storage
        self._position = 0
        self._start, self._range = 0, b""
        self._span = FIRST_BYTES
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._pool = ThreadPoolExecutor(1, "segray-read-ahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._size or len(buffer) == 0:
            return 0
        if not self._start <= self._position < self._start + len(self._range):
            self._load(self._position)
        offset = self._position - self._start
        piece = memoryview(self._range)[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _load(self, position: int) -> None:
        in_order = position == self._start + len(self._range)
        self._span = min(2 * self._span, MOST_BYTES) if in_order else FIRST_BYTES
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == position:
            self._range = ahead[1].result()
        else:
            self._range = self._fetch(position, self._span)
        self._start = position
        following = position + len(self._range)
        if in_order and following < self._size:
            self._ahead = (following, self._pool.submit(self._fetch, following, self._span))

    def _fetch(self, start: int, span: int) -> bytes:
        end = min(start + span, self._size)
        data = retrying(lambda: self._filesystem.cat_file(self._path, start=start, end=end), self._storage)
        if not data:
            raise ConnectionError(f"the storage returned nothing for bytes {start} to {end}")
        return bytes(data)
