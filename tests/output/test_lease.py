"""One live run an output, whoever dies and whatever their clocks say."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segray import schema
from segray.errors import JobFailedError, SettingsError
from segray.output.lease import NAME, Holder, Lease, newest_generation
from segray.output.store import Store
from segray.storage import LeaseSettings, StorageSettings
from tests.faults import failing, ignoring
from tests.servers import Server

RENEW_S, EXPIRES_S = 0.3, 2.0
QUICK = LeaseSettings(renew_s=RENEW_S, expires_s=EXPIRES_S)
DAY_S = 86_400.0
ELSEWHERE = {"run_id": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1", "generation": 7}

HOLD = """
import sys, time
from segray.output.lease import Lease
from segray.output.store import Store
from segray.storage import StorageSettings
with Lease(Store(sys.argv[1], StorageSettings.model_validate_json(sys.argv[2]))):
    print("held", flush=True)
    time.sleep(60)
"""
AWAY = HOLD.replace("with Lease", "import socket\nsocket.gethostname = lambda: 'elsewhere'\nwith Lease")


def quick(storage: StorageSettings | None = None) -> StorageSettings:
    return (storage or StorageSettings()).model_copy(update={"lease": QUICK})


def make_lock(root: Path | str, storage: StorageSettings | None = None) -> Lease[Store]:
    return Lease(Store(str(root), quick(storage)))


@contextmanager
def holding(root: Path, code: str = HOLD) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lease."""
    told = quick().model_dump_json()
    with subprocess.Popen([sys.executable, "-c", code, str(root), told], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            yield holder
        finally:
            holder.kill()


def left_behind(root: Path, **fields: Any) -> None:
    """A lease of a run on another machine."""
    (root / "_segray").mkdir(exist_ok=True)
    (root / NAME).write_text(json.dumps(ELSEWHERE | fields))


def lease_in(root: Path) -> Holder:
    return Holder.of((root / NAME).read_bytes())


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_its_death(tmp_path: Path) -> None:
    with holding(tmp_path) as holder:
        started = time.monotonic()
        with pytest.raises(SettingsError, match=f"another run .process {holder.pid} "):
            make_lock(tmp_path).__enter__()
        assert time.monotonic() - started < EXPIRES_S
        holder.kill()  # and nobody waits for it: it stays as a zombie
        while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        started = time.monotonic()
        with make_lock(tmp_path):
            assert lease_in(tmp_path).pid == os.getpid()
            assert time.monotonic() - started < EXPIRES_S
    assert lease_in(tmp_path).released


def test_the_generation_only_grows(tmp_path: Path) -> None:
    generations = []
    for _ in range(3):
        with make_lock(tmp_path) as lock:
            generations.append(newest_generation(lock.store))
    assert [*generations, newest_generation(lock.store)] == [1, 2, 3, 3]
    left_behind(tmp_path)
    with make_lock(tmp_path) as lock:
        assert newest_generation(lock.store) == 8


@pytest.mark.parametrize("skew_s", [-DAY_S, -100.0, 0.0, DAY_S])
def test_a_clock_of_another_machine_decides_nothing(
    skew_s: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(tmp_path, renewed_at=time.time() + skew_s)
    started = time.monotonic()
    with make_lock(tmp_path) as lock:
        assert EXPIRES_S <= time.monotonic() - started < 5 * EXPIRES_S
        lock.check()
    told = capsys.readouterr().err
    assert "is held by another run on elsewhere; polling whether it is alive, up to 2 s" in told
    assert re.search(r"unchanged for \d s of 2 s", told)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"run_id": 3}', b"\xff"])
def test_a_damaged_lease_is_watched_too(content: bytes, tmp_path: Path) -> None:
    left_behind(tmp_path)
    (tmp_path / NAME).write_bytes(content)
    started = time.monotonic()
    with make_lock(tmp_path):
        assert time.monotonic() - started >= EXPIRES_S


def test_the_holder_says_how_long_it_may_be_silent(tmp_path: Path) -> None:
    left_behind(tmp_path, expires_s=2)  # a whole number, as another program may write it
    started = time.monotonic()
    with make_lock(tmp_path):
        assert time.monotonic() - started >= 2.0


def test_a_watched_run_that_lives_is_refused_at_once(tmp_path: Path) -> None:
    with holding(tmp_path, AWAY):
        started = time.monotonic()
        with pytest.raises(SettingsError, match=r"on elsewhere.; its lease was renewed just now"):
            make_lock(tmp_path).refuse_second_run()
        assert time.monotonic() - started < EXPIRES_S
        started = time.monotonic()
        make_lock(tmp_path).refuse_second_run(watches=False)  # as a dry run, which writes nothing
        assert time.monotonic() - started < RENEW_S


def test_a_watched_run_that_ends_makes_room_at_once(tmp_path: Path) -> None:
    left_behind(tmp_path, expires_s=60.0)
    threading.Timer(0.3, left_behind, [tmp_path], {"expires_s": 60.0, "released": True}).start()
    started = time.monotonic()
    with make_lock(tmp_path):
        assert time.monotonic() - started < 5.0


def test_a_lease_is_watched_once_a_start(tmp_path: Path) -> None:
    left_behind(tmp_path)
    lock = make_lock(tmp_path)
    lock.refuse_second_run()
    started = time.monotonic()
    with lock:
        assert time.monotonic() - started < EXPIRES_S


@pytest.mark.parametrize("kind", ["disk", "azure"])
def test_of_many_that_take_over_at_once_one_does(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "disk":
        left_behind(tmp_path)
        locks = [make_lock(tmp_path) for _ in range(4)]
    else:  # where nothing is read again after a take-over
        server: Server = request.getfixturevalue("azure_server")
        server.put(f"lock/{tmp_path.name}/{NAME}", json.dumps(ELSEWHERE).encode())
        locks = [make_lock(server.url(f"lock/{tmp_path.name}"), server.storage) for _ in range(4)]
    results: list[bool] = []

    def take(lock: Lease[Store]) -> None:
        try:
            with lock:
                results.append(True)
                time.sleep(3 * EXPIRES_S)
        except SettingsError:
            results.append(False)

    threads = [threading.Thread(target=take, args=[lock]) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]


def test_a_run_that_lost_its_lease_writes_nothing_more(tmp_path: Path) -> None:
    rows = schema.ANNOTATED.empty_table()
    with make_lock(tmp_path) as lock:
        lock.check()
        lock.store.commit(rows)
        left_behind(tmp_path, run_id="another", generation=9)
        time.sleep(3 * RENEW_S)
        writes = [
            lambda: lock.store.commit(rows),
            lambda: lock.store.write("run.json", b"{}"),
            lambda: lock.store.put_file("x", Path(__file__)),
            lambda: lock.store.delete("_segray/staging/000001.parquet"),
            lambda: lock.store.delete_folder("_segray/staging"),
            lambda: lock.store.merge([]),
            lock.check,
        ]
        before = sorted(tmp_path.rglob("*"))
        for write in writes:
            with pytest.raises((JobFailedError, ValueError), match=r"took over .*|unpack"):
                write()
    assert sorted(tmp_path.rglob("*")) == before
    assert lease_in(tmp_path).run_id == "another"


def test_a_run_that_slept_asks_before_it_writes(tmp_path: Path) -> None:
    """Stopped for longer than a lease lives: it goes on when nobody came, and stops when somebody did."""
    with holding(tmp_path, SLEEPER) as sleeper:
        for takes_over in (False, True):
            sleeper.send_signal(signal.SIGSTOP)
            time.sleep(2 * EXPIRES_S)
            if takes_over:
                left_behind(tmp_path, run_id="another")
            sleeper.send_signal(signal.SIGCONT)
            time.sleep(4 * RENEW_S)
        sleeper.send_signal(signal.SIGTERM)
        assert sleeper.stdout is not None
        said = sleeper.stdout.read().decode().splitlines()
    assert said[-1] == "stops"
    assert said.count("stops") == 1
    assert int(said[-2]) > 3  # it wrote on after the first sleep


SLEEPER = (
    HOLD.replace("with Lease", "from segray.errors import JobFailedError\nwith Lease")
    .replace(
        "(Store(sys.argv[1], StorageSettings.model_validate_json(sys.argv[2]))):",
        "(Store(sys.argv[1], StorageSettings.model_validate_json(sys.argv[2]))) as lock:",
    )
    .replace(
        "    time.sleep(60)",
        "    for number in range(1000):\n"
        "        try:\n"
        "            lock.check()\n"
        "        except JobFailedError:\n"
        "            print('stops', flush=True)\n"
        "            break\n"
        "        print(number, flush=True)\n"
        "        time.sleep(0.05)",
    )
)


def test_a_holder_without_storage_stops_before_others_may_take_over(
    tmp_path: Path, s3_server: Server
) -> None:
    with failing(s3_server, 503, times=0) as proxy:
        storage = s3_server.storage_at(proxy.endpoint).model_copy(update={"attempts": 1})
        with make_lock(s3_server.url(f"lock/{tmp_path.name}"), storage) as lock:
            lock.check()
            proxy.left = 1_000_000
            time.sleep(EXPIRES_S - RENEW_S)
            with pytest.raises(JobFailedError, match=r"took over .*, or may have"):
                lock.check()
            proxy.left = 0


def test_a_disk_that_is_full_at_the_end_makes_room_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process, too, which is alive."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, make_lock(tmp_path):
        patch.setattr(os, "replace", full)
    with make_lock(tmp_path):
        pass


def test_on_every_storage(server: Server, tmp_path: Path) -> None:
    """Made, renewed, refused, taken over, given back, taken again."""
    url = server.url(f"lock/{tmp_path.name}")
    name = f"lock/{tmp_path.name}/{NAME}"
    with make_lock(url, server.storage) as lock:
        first = server.get(name)
        time.sleep(3 * RENEW_S)
        assert json.loads(server.get(name))["renewals"] > json.loads(first)["renewals"]
        lock.check()
        with pytest.raises(SettingsError, match="is being written by another run"):
            make_lock(url, server.storage).refuse_second_run()
        server.put(name, json.dumps(ELSEWHERE).encode())
        time.sleep(3 * RENEW_S)
        with pytest.raises(JobFailedError, match=r"took over "):
            lock.check()
    assert json.loads(server.get(name)) == ELSEWHERE
    with make_lock(url, server.storage):
        assert json.loads(server.get(name))["generation"] == 8
    with make_lock(url, server.storage):
        assert json.loads(server.get(name))["generation"] == 9
    assert json.loads(server.get(name))["released"] is True
    assert server.names(f"lock/{tmp_path.name}/") == [name]


@pytest.mark.parametrize(
    ("kind", "condition"),  # Azure signs the headers, and honours them itself
    [
        ("s3", "If-None-Match"),
        ("s3", "If-Match"),
        ("gcs", "ifGenerationMatch=0"),
        ("gcs", "ifGenerationMatch"),
    ],
)
def test_a_storage_that_ignores_conditions_is_refused_by_name(
    kind: str, condition: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(f"{kind}_server")
    url = server.url(f"lock/{tmp_path.name}")
    with ignoring(server, condition) as proxy:
        storage = server.storage_at(proxy.endpoint)
        with pytest.raises(SettingsError, match=rf"lock/{tmp_path.name} ignores {condition},"):
            make_lock(url, storage).__enter__()
        assert server.names(f"lock/{tmp_path.name}/") == []
        trusting = storage.model_copy(update={"lease": QUICK.model_copy(update={"probe": False})})
        with Lease(Store(url, trusting)) as lock:
            lock.check()


def test_a_storage_that_knows_no_conditions_is_refused(tmp_path: Path, s3_server: Server) -> None:
    with failing(s3_server, 501, times=0) as proxy:
        lock = make_lock(s3_server.url(f"lock/{tmp_path.name}"), s3_server.storage_at(proxy.endpoint))
        proxy.only = "PUT"
        proxy.left = 1_000_000
        with pytest.raises(SettingsError, match=r"output: cannot write .*NotImplemented"):
            lock.__enter__()


def test_what_must_be_renewed_in_time_is_checked() -> None:
    with pytest.raises(ValueError, match="expires_s 30 is below three times renew_s 15"):
        LeaseSettings(expires_s=30)
