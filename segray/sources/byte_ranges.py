"""Byte ranges of a scene (GeoTIFF or JPEG 2000): of a file in memory, or of one in its storage."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from segray.errors import ItemError
from segray.scenes.range_file import Range
from segray.sources.concurrent_requests import as_item_error, request_all
from segray.storage import StorageSettings, open_filesystem

AHEAD = 4
"""Windows that are fetched ahead of the one that is decoded."""
GAP, MOST = 64 << 10, 4 << 20
"""Bytes between two ranges that are read in one request, which takes longer than these bytes do; bytes of
a request, since several at a time fill a network better than one."""
_Answers = dict[Range, bytes | Exception]


class MemoryRanges:
    """A file that was fetched as a whole."""

    def __init__(self, key: str, data: memoryview) -> None:
        self.key, self.size, self.data = key, len(data), data

    def read(self, ranges: Sequence[Range]) -> Sequence[memoryview]:
        """Return a view of the bytes of each range."""
        return [self.data[offset : offset + size] for offset, size in ranges]

    def ahead(self, groups: Sequence[Sequence[Range]]) -> None:
        """Do nothing: the whole file is in memory."""


class FileRanges:
    """A file in its storage; the ranges of one call are read together, each with retries."""

    def __init__(self, uri: str, version: str, address: str, size: int, storage: StorageSettings) -> None:
        self.key, self.size = f"{uri}\0{version}", size
        self._storage = storage
        self._filesystem, self._path = open_filesystem(address, storage, is_listed=True)
        self._coming: dict[Range, Future[_Answers]] = {}
        """Requests that were started ahead."""

    def read(self, ranges: Sequence[Range]) -> Sequence[bytes]:
        """Return the bytes of each range. Raises the ItemError of the first that cannot be read."""
        found = self._request([each for each in ranges if each not in self._coming])
        for each in ranges:
            if each in self._coming:
                found[each] = self._coming.pop(each).result()[each]
        return [_checked(found[each], each[1]) for each in ranges]

    def ahead(self, groups: Sequence[Sequence[Range]]) -> None:
        """Request each group, in a thread, unless it was requested before."""
        for group in groups:
            new = [each for each in group if each not in self._coming]
            if new:
                future = _threads().submit(self._request, new)
                self._coming |= dict.fromkeys(new, future)

    def _request(self, ranges: Sequence[Range]) -> _Answers:
        groups = together(ranges)
        wanted = [{"path": self._path, "start": group[0][0], "end": max(map(sum, group))} for group in groups]
        answers = request_all(self._filesystem, "cat_file", wanted, self._storage) if wanted else []
        found: _Answers = {}
        for group, answer in zip(groups, answers, strict=True):
            for offset, size in group:
                skipped = offset - group[0][0]
                found[offset, size] = (
                    answer if isinstance(answer, Exception) else answer[skipped : skipped + size]
                )
        return found


def together(ranges: Sequence[Range]) -> list[list[Range]]:
    """Return ranges in groups that are read in one request each, both sorted by offset.

    Blocks of a row of a cloud-optimised GeoTIFF follow each other, a few bytes apart.
    """
    groups = list[list[Range]]()
    stop = 0
    for offset, size in sorted(set(ranges)):
        start = groups[-1][0][0] if groups else 0
        if groups and offset - stop <= GAP and offset + size - start <= MOST:
            groups[-1].append((offset, size))
            stop = max(stop, offset + size)
        else:
            groups.append([(offset, size)])
            stop = offset + size
    return groups


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AHEAD)


def _checked(answer: bytes | Exception, size: int) -> bytes:
    if isinstance(answer, Exception):
        raise as_item_error(answer, "the scene")
    if len(answer) != size:
        raise ItemError("truncated", "the file is shorter than it was when it was listed")
    return answer
