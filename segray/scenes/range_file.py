"""A file object that reads byte ranges, each fetched once: GDAL opens it in the decoder process.

The bytes are in a bucket, on disk or in memory; `fetch` gets several ranges at a time, so that a window costs
one round trip for any number of blocks, and receives the next ranges in advance, so that most of them are
already there when they are read.
"""

import io
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

Range = tuple[int, int]
"""Offset and number of bytes."""


class Fetch(Protocol):
    """Function that reads byte ranges."""

    def __call__(self, ranges: Sequence[Range], ahead: Sequence[Sequence[Range]] = ()) -> Sequence[bytes]:
        """Return the bytes of each range; `ahead`: groups of ranges that will be read next, in order."""


CHUNK = 64 << 10
"""Ranges that were not prefetched (headers, directories, masks) are read in pieces of this many bytes."""
KEPT_BYTES = 96 << 20
"""Size of the cache in encoded bytes: a square of tiles shares blocks with its neighbours."""

AHEAD_BYTES = 32 << 20
"""Maximum number of bytes to prefetch beyond the ranges that are read now."""


class RangeFile(io.RawIOBase):
    """Readable and seekable file with a cache; `prefetch` fetches ranges that will be read."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self.size = size
        self._fetch = fetch
        self._position = 0
        self._blocks: OrderedDict[Range, bytes] = OrderedDict()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0

    def prefetch(self, ranges: Sequence[Range], ahead: Sequence[Sequence[Range]] = ()) -> None:
        """Fetch together the ranges that are not cached. A read must then be exactly one of them.

        ahead: the ranges of later calls, one group each.
        """
        for each in ranges:
            if each in self._blocks:
                self._blocks.move_to_end(each)
        missing = sorted({each for each in ranges if each not in self._blocks and each[1] > 0})
        later = self._uncached(ahead, set(missing)) if missing else []
        for each, data in zip(missing, self._fetch(missing, later) if missing else (), strict=True):
            self._blocks[each] = data
            self._held += len(data)
        while self._held > KEPT_BYTES and len(self._blocks) > len(ranges):
            _, dropped = self._blocks.popitem(last=False)
            self._held -= len(dropped)

    def _uncached(self, groups: Sequence[Sequence[Range]], asked: set[Range]) -> list[list[Range]]:
        """Return the ranges of the groups that are neither cached nor requested, up to `AHEAD_BYTES`."""
        left, found = AHEAD_BYTES, []
        for group in groups:
            new = sorted({each for each in group if each not in self._blocks and each[1] > 0} - asked)
            left -= sum(size for _, size in new)
            if left < 0:
                break
            found += [new] if new else []
        return found

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it, as `io.IOBase.seek`."""
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        )
        return self._position

    def tell(self) -> int:
        """Return the position, as `io.IOBase.tell`."""
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes from the position on, fewer at the end of the file."""
        left = max(self.size - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        data = self._blocks.get((self._position, size)) or self._by_chunks(self._position, size)
        self._position += len(data)
        return data

    def _by_chunks(self, start: int, size: int) -> bytes:
        if not size:
            return b""
        first, last = start // CHUNK, (start + size - 1) // CHUNK
        missing = [number for number in range(first, last + 1) if number not in self._chunks]
        ranges = [(number * CHUNK, min(CHUNK, self.size - number * CHUNK)) for number in missing]
        self._chunks.update(zip(missing, self._fetch(ranges) if ranges else (), strict=True))
        data = b"".join(self._chunks[number] for number in range(first, last + 1))
        while len(self._chunks) * CHUNK > KEPT_BYTES:
            self._chunks.popitem(last=False)
        return data[start - first * CHUNK :][:size]
