"""A file in a distant bucket by ranges, some of them asked for before they are read."""

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from segray.errors import ItemError
from segray.sources.byte_ranges import GAP, MOST, FileRanges, together
from tests.faults import Proxy, distant
from tests.servers import Server

DATA = bytes(range(256)) * 400
LATENCY_S = 0.3


@pytest.fixture
def proxy(s3_server: Server) -> Iterator[Proxy]:
    s3_server.put("ranges/scene.tif", DATA)
    with distant(s3_server, LATENCY_S) as proxy:
        yield proxy


def file_of(server: Server, proxy: Proxy, name: str = "scene.tif", size: int = len(DATA)) -> FileRanges:
    url = server.url(f"ranges/{name}")
    return FileRanges(url, "1", url, size, server.storage_at(proxy.endpoint))


def test_what_was_asked_for_ahead_is_read_once(s3_server: Server, proxy: Proxy) -> None:
    file = file_of(s3_server, proxy)
    groups = [[(0, 100), (5000, 7)], [(5000, 7), (900, 50)], [(100, 3)]]
    file.ahead(groups)
    time.sleep(2 * LATENCY_S)
    wanted = [(900, 50), (0, 100), (70, 20), (5000, 7)]
    assert file.read(wanted) == [DATA[offset : offset + size] for offset, size in wanted]
    assert file.read([(100, 3)]) == [DATA[100:103]]
    asked = [(0, 5007), (900, 50), (100, 3), (70, 20)]
    assert Counter(proxy.ranges) == Counter((offset, offset + size - 1) for offset, size in asked)


def test_neighbours_are_one_request(s3_server: Server, proxy: Proxy) -> None:
    file = file_of(s3_server, proxy)
    wanted = [(500, 100), (0, 300), (304, 190), (304 + 190 + GAP + 200, 50), (20, 10)]
    assert file.read(wanted) == [DATA[offset : offset + size] for offset, size in wanted]
    last = wanted[3][0]
    assert Counter(proxy.ranges) == Counter([(0, 599), (last, last + 49)])


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_each_range_once_and_are_small(seed: int) -> None:
    random = np.random.default_rng(seed)
    ranges = [(int(start), int(size)) for start, size in zip(
        random.integers(0, 60_000_000, 300), random.integers(1, 400_000, 300), strict=True)]  # fmt: skip
    ranges.append((70_000_000, 2 * MOST))
    groups = together(ranges)
    assert [each for group in groups for each in group] == sorted(set(ranges))
    stops = [max(map(sum, group)) for group in groups]
    for group, stop in zip(groups, stops, strict=True):
        assert len(group) == 1 or stop - group[0][0] <= MOST
        covered = group[0][0]
        for offset, size in group:
            assert offset - covered <= GAP
            covered = max(covered, offset + size)
    for before, after, stop in zip(groups, groups[1:], stops, strict=False):
        apart = after[0][0] - stop > GAP
        assert apart or max(stop, sum(after[0])) - before[0][0] > MOST, "they could be one"


def test_the_wait_is_over_when_it_is_read(s3_server: Server, proxy: Proxy) -> None:
    file = file_of(s3_server, proxy)
    file.read([(0, 1)])
    started = time.monotonic()
    file.ahead([[(number * 10, 10)] for number in range(4)])
    for number in range(4):
        file.read([(number * 10, 10)])
    assert time.monotonic() - started < 3 * LATENCY_S


def test_errors_come_when_it_is_read(s3_server: Server, proxy: Proxy) -> None:
    gone = file_of(s3_server, proxy, "gone.tif")
    gone.ahead([[(0, 10)]])
    with pytest.raises(ItemError, match="not there"):
        gone.read([(0, 10)])
    short = file_of(s3_server, proxy, size=2 * len(DATA))
    short.ahead([[(len(DATA) - 5, 10)]])
    with pytest.raises(ItemError, match="shorter than it was"):
        short.read([(len(DATA) - 5, 10)])
