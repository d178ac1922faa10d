"""A writer that stops anywhere, and wakes when another run holds the output, does no harm.

`--freezes` is for real processes, see `test_freezes`; here a run stops before each of its requests in turn.
"""

import errno
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segray.errors import JobFailedError
from segray.output.folder import UNPUBLISHED
from segray.output.lease import Lease, follow
from segray.output.store import Store
from segray.predict.blend import Pieces
from segray.predict.maps import TOGETHER
from segray.predict.windows import FOLDER, Windows, packed_window, window_name
from segray.storage import LeaseSettings, StorageSettings
from segray.tile_overlap import Grid
from tests.bulk.fencing import Attempt, listed, overlapping, record, visible, without_model
from tests.faults import Proxy, failing
from tests.servers import Server

NOTHING = "nothing to do, finished before"


@pytest.fixture
def yesterday(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(Sources of today, output of yesterday): one has changed since, one is gone, a tile was rejected."""
    without_model(monkeypatch)
    sources = listed(tmp_path / "sources", "old gone scene")
    Attempt(str(tmp_path / "yesterday"), sources).run()
    (sources / "gone.png").unlink()
    for name in ("old", "new", "newer"):
        (sources / f"{name}.png").write_text(name)
    return sources, tmp_path / "yesterday"


def whole(attempt: Attempt) -> tuple[list[str], dict[str, Any]]:
    """(Requests, rows) of an undisturbed run."""
    assert attempt.run()[1] != NOTHING
    return list(attempt.asked), visible(attempt.url)


def is_write(request: str) -> bool:
    return not request.startswith(("read", "list"))


def check(url: str, sources: Path, first: str, second: dict[str, Any] | None) -> None:
    """A third run has nothing to do."""
    assert record(url) == second
    assert Attempt(url, sources).run() == (second, NOTHING)
    assert not list(Path(url).glob("_segray/*/*"))
    assert re.search(f"this one stops|^done|{NOTHING}|is being written by another run", first)


def test_a_run_that_stops_anywhere_while_another_one_finishes(
    yesterday: tuple[Path, Path], tmp_path: Path
) -> None:
    sources, before = yesterday
    shutil.copytree(before, tmp_path / "whole")
    asked, rows = whole(Attempt(str(tmp_path / "whole"), sources, retry=True))
    ends = []
    for at, request in enumerate(asked, 1):
        if not is_write(request) and at % 9:
            continue  # as harmless as where it stops before the request that comes next
        url = str(shutil.copytree(before, tmp_path / f"at-{at}"))
        first, second = Attempt(url, sources, retry=True, at=at), Attempt(url, sources, retry=True)
        end, said = overlapping(first, second)
        assert visible(url) == rows, f"stopped before request {at}, {request}"
        check(url, sources, end, said)
        ends.append(end)
    assert sum("this one stops" in end for end in ends) > 30


def test_a_run_that_wakes_in_the_middle_of_another_one(
    yesterday: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At ten moments for each of `--freezes`."""
    sources, before = yesterday
    shutil.copytree(before, tmp_path / "whole")
    asked, rows = whole(Attempt(str(tmp_path / "whole"), sources, retry=True))
    chance = random.Random(int(request.config.getoption("--fault-seed")))
    writes = [at for at, what in enumerate(asked, 1) if is_write(what)]
    for trial in range(10 * int(request.config.getoption("--freezes"))):
        at, until = chance.choice(writes), chance.randint(1, len(asked))
        url = str(shutil.copytree(before, tmp_path / f"{trial}"))
        first = Attempt(url, sources, retry=True, at=at)
        end, said = overlapping(first, Attempt(url, sources, retry=True, at=until))
        where = f"stopped before {asked[at - 1]}, woken before request {until} of the second"
        assert visible(url) == rows, where
        check(url, sources, end, said)
        shutil.rmtree(url)


def test_a_run_of_another_identity_that_wakes_before_its_first_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_model(monkeypatch)
    sources = listed(tmp_path / "sources", "a b scene")
    asked, rows = whole(Attempt(str(tmp_path / "whole"), sources))
    first_commit = next(at for at, what in enumerate(asked, 1) if what.startswith("move /_segray/staging"))
    ends = []
    for at in range(1, first_commit + 1):
        if not is_write(asked[at - 1]) and at % 3:
            continue
        url = str(tmp_path / f"at-{at}")
        second = Attempt(url, sources, identity="another")
        end, said = overlapping(Attempt(url, sources, at=at), second)
        assert visible(url) == rows
        assert record(url) == said
        assert record(url)["identity"]["weights"] == "another"
        assert Attempt(url, sources, identity="another").run()[1] == NOTHING
        assert re.search("this one stops|was made with other settings", end)
        ends.append(end)
    assert sum("this one stops" in end for end in ends) > 3


def test_outputs_of_versions_without_generations_in_their_names_go_on(
    yesterday: tuple[Path, Path], tmp_path: Path
) -> None:
    sources, before = yesterday
    shutil.copytree(before, tmp_path / "whole")
    rows = whole(Attempt(str(tmp_path / "whole"), sources, retry=True))[1]
    for path in before.rglob("*-g1.parquet"):
        path.rename(path.with_name(path.name.replace("-g1", "")))
    names = {path.name for path in before.rglob("*.parquet")}
    assert names
    assert not any("-g" in name for name in names)
    assert whole(Attempt(str(before), sources, retry=True))[1] == rows
    assert all("-g2" in path.name for path in before.rglob("*.parquet"))


# --- one write ---------------------------------------------------------------------------------------


class Stopping(Store):
    """Stops before its `at`-th request from now on."""

    at = 0
    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def _request(self, what: str, path: str, call: Callable[[], Any]) -> Any:
        self.at -= 1
        if self.at == 0:
            self.meanwhile()
        return super()._request(what, path, call)


QUICK = LeaseSettings(renew_s=0.1, expires_s=0.5)
WRITES: dict[str, Callable[[Store], object]] = {
    "write": lambda store: store.write("run.json", b"of the first"),
    "copy": lambda store: store.copy("other", "run.json"),
    "retract": lambda store: store.retract("run.json"),
}


def late(url: str, storage: StorageSettings, kind: str) -> int:
    """One write of a worker, stopped before each of its requests; returns of how many it was told."""
    storage = storage.model_copy(update={"lease": QUICK})
    told = at = 0
    while True:
        at += 1
        here = f"{url}/{kind}-{at}"
        Store(here, storage).put("other", b"another object")
        Store(here, storage).put("run.json", b"of before")
        with Lease(Store(here, storage)) as lock:
            store = Stopping(here, storage)
            follow(store, lock.generation)

        def meanwhile(here: str = here) -> None:
            with Lease(Store(here, storage)) as second:
                second.store.write("run.json", b"of the second")

        store.at, store.meanwhile = at, meanwhile
        try:
            WRITES[kind](store)
        except JobFailedError as error:
            told += "this one stops" in str(error)
        if store.at > 0:
            return told
        after = Store(here, storage)
        assert after.read("run.json") == b"of the second", f"{kind}, request {at}"
        with Lease(after):
            assert after.files(UNPUBLISHED) == {}


@pytest.mark.parametrize("kind", WRITES)
def test_a_late_write_of_a_worker(kind: str, tmp_path: Path) -> None:
    assert late(str(tmp_path), StorageSettings(), kind) >= 2


@pytest.mark.parametrize("kind", WRITES)
def test_a_late_write_of_a_worker_on_every_storage(kind: str, server: Server, tmp_path: Path) -> None:
    assert late(server.url(f"late/{tmp_path.name}"), server.storage, kind) >= 2


class Losing(Store):
    """The first answer to each of its requests is lost."""

    proxy: Proxy

    def _request(self, what: str, path: str, call: Callable[[], Any]) -> Any:
        self.proxy.left = 1
        return super()._request(what, path, call)


def test_an_answer_that_is_lost_is_no_take_over(tmp_path: Path, server: Server) -> None:
    name = f"lost/{tmp_path.name}"
    with failing(server, "lost", times=0) as proxy:
        store = Losing(server.url(name), server.storage_at(proxy.endpoint))
        store.proxy = proxy
        store.write("run.json", b"1")
        store.copy("run.json", "copy")
        store.retract("run.json")
        assert proxy.failed["lost"] >= 7
    assert server.names(name) == [f"{name}/copy"]
    assert server.get(f"{name}/copy") == b"1"


def test_an_answer_that_is_lost_on_a_disk_is_no_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS loses them: the rename was done, and is asked for again."""
    rename, lost = os.replace, list[Path]()

    def replace(source: Path, target: Path) -> None:
        rename(source, target)
        if not lost:
            lost.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", replace)
    Store(str(tmp_path), StorageSettings()).write("x", b"1")
    assert lost == [tmp_path / "x"]
    assert (tmp_path / "x").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["disk", "s3", "azure", "gcs"])
def test_a_late_removal_of_windows_leaves_those_of_a_later_run(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, storage = str(tmp_path / "out"), StorageSettings()
    if kind != "disk":
        server: Server = request.getfixturevalue(f"{kind}_server")
        url, storage = server.url(f"windows/{tmp_path.name}"), server.storage
    stores = [Store(url, storage) for _ in range(3)]
    values = [np.full((2, 4, 4), number, np.uint16) for number in range(3)]
    grid = Grid(4, 32, 4, 0)
    pieces = Pieces(grid, TOGETHER).of_window(7)
    for generation, (store, value) in enumerate(zip(stores, values, strict=True)):
        store.generation = generation  # 0: of a version without generations in names
        data = packed_window(value, None, grid.window(7), pieces, labels=False)
        store.put(window_name("x", 7, generation), data)
    for store, newest in zip(stores, (2, 2, None), strict=True):
        store.delete_folder(FOLDER)
        found = Windows(store, "x", grid).read(7, grid.window(7))
        assert (None if found is None else found[0].max()) == newest
    assert not stores[0].filesystem.exists(f"{stores[0].root}/{FOLDER}")
