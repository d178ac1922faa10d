"""Compare-and-swap on real servers and on disks: of two writers with one version one wins."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segray.compare_and_swap import ChangedError, read_versioned, replace_atomically, stale_version
from segray.retries import retrying
from segray.storage import StorageSettings, open_filesystem
from tests.faults import failing
from tests.servers import Server


def replaced_once(url: str, storage: StorageSettings) -> None:
    """Write, replace, replace on the version before, and on none."""
    filesystem, path = open_filesystem(url, storage)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, b"1")
    first = read_versioned(filesystem, path)
    replace_atomically(filesystem, path, b"2", first.version)
    second = read_versioned(filesystem, path)
    assert (first.data, second.data) == (b"1", b"2")
    for version in (first.version, stale_version(filesystem) or ""):
        with pytest.raises(ChangedError):
            replace_atomically(filesystem, path, b"3", version)
    assert filesystem.cat_file(path) == b"2"
    filesystem.rm_file(path)
    with pytest.raises(ChangedError):
        replace_atomically(filesystem, path, b"3", second.version)
    assert not filesystem.exists(path)
    with pytest.raises(FileNotFoundError):
        read_versioned(filesystem, path)


def one_winner(url: str, storage: StorageSettings) -> None:
    """Eight writers hold the same version: one writes, and its contents stay."""
    filesystem, path = open_filesystem(url, storage)
    filesystem.pipe_file(path, b"before")
    version = read_versioned(filesystem, path).version

    def replace(caller: int) -> bytes | None:
        try:
            replace_atomically(filesystem, path, b"%d" % caller * 1000, version)
        except ChangedError:
            return None
        return b"%d" % caller * 1000

    with ThreadPoolExecutor(8) as pool:
        won = [data for data in pool.map(replace, range(8)) if data is not None]
    assert won == [filesystem.cat_file(path)]


def test_what_changed_is_not_replaced(server: Server) -> None:
    replaced_once(server.url("swap/a ü?b#1.json"), server.storage)


def test_what_changed_is_not_replaced_on_disk(tmp_path: Path) -> None:
    replaced_once(str(tmp_path / "swap/a ü.json"), StorageSettings())


def test_what_changed_is_not_replaced_elsewhere() -> None:
    replaced_once("memory://swap/a.json", StorageSettings())


@pytest.mark.parametrize("kind", ["azure", "gcs"])  # moto compares and writes in two steps
def test_one_of_many_replaces(kind: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(f"{kind}_server")
    one_winner(server.url("swap/many"), server.storage)


COUNT_UP = """
import sys
from segray.compare_and_swap import ChangedError, read_versioned, replace_atomically
from segray.storage import StorageSettings, open_filesystem
filesystem, path = open_filesystem(sys.argv[1], StorageSettings())
for _ in range(30):
    while True:
        data, version = read_versioned(filesystem, path)
        try:
            replace_atomically(filesystem, path, str(int(data) + 1).encode(), version)
            break
        except ChangedError:
            pass
"""


def test_no_increment_of_many_processes_is_lost_on_disk(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_bytes(b"0")
    command = [sys.executable, "-c", COUNT_UP, str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_bytes() == b"90"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".counter.guard", "counter"]


def test_a_lost_answer_to_ones_own_replacement_is_no_change(server: Server) -> None:
    server.put("swap/lost", b"1")
    with failing(server, "lost", times=0) as proxy:
        storage = server.storage_at(proxy.endpoint)
        filesystem, path = open_filesystem(server.url("swap/lost"), storage)
        version = read_versioned(filesystem, path).version
        proxy.left = 1
        retrying(lambda: replace_atomically(filesystem, path, b"2", version), storage)
        assert proxy.failed["lost"] == 1
    assert server.get("swap/lost") == b"2"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_no_change(status: int, server: Server) -> None:
    server.put("swap/mine", b"1")
    with failing(server, status, times=0) as proxy:
        filesystem, path = open_filesystem(server.url("swap/mine"), server.storage_at(proxy.endpoint))
        version = read_versioned(filesystem, path).version
        proxy.left = 1
        with pytest.raises(Exception, match=r"(?i)denied|forbidden|auth|invalid|access") as caught:
            replace_atomically(filesystem, path, b"2", version)
        assert not isinstance(caught.value, ChangedError)
    assert server.get("swap/mine") == b"1"


def test_a_guard_that_is_held_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("segray.compare_and_swap._GUARD_S", 0.1)
    (tmp_path / "x").write_bytes(b"1")
    filesystem, path = open_filesystem(str(tmp_path / "x"), StorageSettings())
    version = read_versioned(filesystem, path).version
    with (tmp_path / ".x.guard").open("ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="is locked by another process"):
            replace_atomically(filesystem, path, b"2", version)
        assert time.monotonic() - started < 2
    replace_atomically(filesystem, path, b"2", version)
