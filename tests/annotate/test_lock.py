"""One live run an output, whoever dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segray.bulk import lock as lock_module
from segray.bulk.lock import NAME, Lock
from segray.bulk.store import Store
from segray.errors import JobFailedError, SettingsError
from segray.storage import StorageSettings

HOLD = """
import sys, time
from segray.bulk.lock import Lock
from segray.bulk.store import Store
from segray.storage import StorageSettings
with Lock(Store(sys.argv[1], StorageSettings())):
    print("held", flush=True)
    time.sleep(60)
"""


def make_lock(root: Path) -> Lock:
    return Lock(Store(str(root), StorageSettings()))


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_its_death(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SettingsError, match=f"another run .process {holder.pid} "):
            make_lock(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.wait()
    with make_lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / NAME).exists()


def test_a_lease_of_another_machine_counts_until_it_expires(tmp_path: Path) -> None:
    lease = {"run_id": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}
    (tmp_path / "_segray").mkdir()
    (tmp_path / NAME).write_text(json.dumps(lease | {"renewed_at": time.time()}))
    with pytest.raises(SettingsError, match="elsewhere"):
        make_lock(tmp_path).refuse_second_run()
    (tmp_path / NAME).write_text(json.dumps(lease | {"renewed_at": time.time() - lock_module.EXPIRES_S - 1}))
    with make_lock(tmp_path) as lock:
        lock.check()


def test_a_run_that_lost_its_lease_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "RENEW_S", 0.05)
    with make_lock(tmp_path) as lock:
        time.sleep(0.2)
        lock.check()
        (tmp_path / NAME).write_text(json.dumps({"run_id": "another"}))
        time.sleep(0.3)
        with pytest.raises(JobFailedError, match=r"took .* over"):
            lock.check()
    assert json.loads((tmp_path / NAME).read_text()) == {"run_id": "another"}
