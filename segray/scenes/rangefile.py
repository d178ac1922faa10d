"""A file that is read by ranges, each fetched once: what GDAL opens in the decoder process.

The bytes lie in a bucket, on disk or in memory; `fetch` gets several ranges at a time, so that a window costs
one round trip however many blocks it lies in, and hears which ones come next, so that most of it is over when
they are asked for.
"""

import io
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

Range = tuple[int, int]
"""Offset and number of bytes."""


class Fetch(Protocol):
    """How the bytes are had."""

    def __call__(self, ranges: Sequence[Range], ahead: Sequence[Sequence[Range]] = ()) -> Sequence[bytes]:
        """The bytes of each range; `ahead`: groups of ranges that will be asked for next, in order."""


CHUNK = 64 << 10
"""What nobody announced (headers, directories, masks) is read in pieces of this size."""
KEPT_BYTES = 96 << 20
"""Encoded bytes that are kept: a square of tiles shares blocks with its neighbours."""

AHEAD_BYTES = 32 << 20
"""So much may be under way beside what is read."""


class RangeFile(io.RawIOBase):
    """Readable and seekable; `prefetch` announces what will be read."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self.size = size
        self._fetch = fetch
        self._position = 0
        self._blocks: OrderedDict[Range, bytes] = OrderedDict()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0

    def prefetch(self, ranges: Sequence[Range], ahead: Sequence[Sequence[Range]] = ()) -> None:
        """Fetch, together, those of the ranges that are not here. What is read must be one of them, whole.

        ahead: what later calls will ask for, a group each.
        """
        for each in ranges:
            if each in self._blocks:
                self._blocks.move_to_end(each)
        missing = sorted({each for each in ranges if each not in self._blocks and each[1] > 0})
        later = self._not_here(ahead, set(missing)) if missing else []
        for each, data in zip(missing, self._fetch(missing, later) if missing else (), strict=True):
            self._blocks[each] = data
            self._held += len(data)
        while self._held > KEPT_BYTES and len(self._blocks) > len(ranges):
            _, dropped = self._blocks.popitem(last=False)
            self._held -= len(dropped)

    def _not_here(self, groups: Sequence[Sequence[Range]], asked: set[Range]) -> list[list[Range]]:
        """Of the groups, what is neither here nor asked for, as far as `AHEAD_BYTES` reach."""
        left, found = AHEAD_BYTES, []
        for group in groups:
            new = sorted({each for each in group if each not in self._blocks and each[1] > 0} - asked)
            left -= sum(size for _, size in new)
            if left < 0:
                break
            found += [new] if new else []
        return found

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        )
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """From here on; short at the end of the file."""
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
