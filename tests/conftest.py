"""Fixtures for all tests: one Ray, and storage servers on loopback, started when a test asks for them."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from segray.cluster import set_environment
from tests import scheduling, servers, warm_workers
from tests.tally import TALLY

set_environment()  # before any test imports Ray
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads cost six times the CPU under load
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, each process of Ray compiles all that it imports
sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of what goes wrong is tried: small by default, large on request (docs/measured.md)."""
    group = parser.getgroup("segray")
    group.addoption("--kills", type=int, default=4, help="seeded kills, of eleven kinds in turn")
    group.addoption("--node-losses", type=int, default=1, help="nodes lost in two- and three-node clusters")
    group.addoption(
        "--storage-runs", type=int, default=1, help="runs over a storage that fails one request in ten"
    )
    group.addoption("--freezes", type=int, default=1, help="runs stopped while another one takes over")
    group.addoption("--starts", type=int, default=1, help="of a Ray of its own under four busy loops")
    group.addoption("--coco-sets", type=int, default=15, help="random sets compared with pycocotools")
    group.addoption("--series", type=int, default=3, help="of 30 looks at a holdout; 200 for the full one")
    group.addoption("--shuffles", type=int, default=1, help="retrainings with shuffled labels")
    group.addoption("--retrainers", type=int, default=3, help="rounds that two retrainers end at once")
    group.addoption("--fault-seed", type=int, default=65, help="the first trial's seed; the others count on")
    group.addoption("--fuzz-files", type=int, default=300, help="mutated images; a fifth as many archives")
    group.addoption("--keys", type=int, default=30_000, help="names in the bucket that is listed")
    group.addoption("--ledger-rows", type=int, default=20_000, help="items of the output that is resumed")
    group.addoption("--tar-mib", type=int, default=240, help="of one tar that is annotated")
    group.addoption(
        "--scene-side",
        type=int,
        default=3_600,
        help="pixels along a side of one large scene, a multiple of 600",
    )
    group.addoption("--preview-images", type=int, default=10_000, help="of a run whose pages are made")
    group.addoption("--tars", type=int, default=5, help="small tars beside it")
    group.addoption("--without-slurm", action="store_true", help="leave Slurm out, where there is no apt")
    group.addoption(
        "--without-browser", action="store_true", help="leave Chromium out, where there is no apt"
    )
    group.addoption("--fuzz-seed", type=int, default=1, help="another seed damages them in other ways")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`, which pyproject.toml asks for."""
    return scheduling.workers(config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> scheduling.Scheduler | None:
    """`--dist loadfile`, likewise."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # `longest_first` has the order
    return scheduling.Scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All processes of xdist's must see one order."""
    config.stash[NEEDS_RAY] = {
        item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())
    }
    if hasattr(config, "workerinput"):
        scheduling.longest_first(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of xdist's hands its counts over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = dict(TALLY)


def pytest_testnodedown(node: Any) -> None:
    """The counts of a process that has ended."""
    TALLY.update(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried against `annotate`, in one line."""
    if TALLY:
        done = ", ".join(f"{count} {what}" for what, count in sorted(TALLY.items()))
        terminalreporter.write_line(f"fault trials: {done}; {TALLY['failed trials']} failed trials")


@pytest.fixture(scope="session")
def fuzz_files(request: pytest.FixtureRequest) -> int:
    """How many mutated images to read; other files in proportion."""
    return int(request.config.getoption("--fuzz-files"))


@pytest.fixture(scope="session")
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    """What the mutations are drawn from."""
    return int(request.config.getoption("--fuzz-seed"))


class SessionRay:
    """The Ray that tests share; it rests while files need none, for idle it takes a fourteenth of a core."""

    def __init__(self) -> None:
        self.wanted = False
        self._ray: Any = None
        self._folder = tempfile.TemporaryDirectory()

    def start(self) -> None:
        """Unless it runs."""
        from segray import own_ray

        self.wanted = True
        if self._ray is None:
            log, port = Path(self._folder.name, "ray.log"), servers.free_port()
            self._ray = own_ray.OwnRay(400, log, threading.Event(), cpus=4, metrics_port=port)
            with mock.patch.object(own_ray, "REPORT_MS", 10_000), warm_workers.used(), warm_workers.lent():
                self._ray.start()

    def stop(self) -> None:
        """If it runs."""
        if self._ray is not None:
            self._ray.stop(keep=False)
            self._ray = None


RAY = SessionRay()
NEEDS_RAY = pytest.StashKey[set[Path]]()
"""The files with a test that does."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of a test."""
    if item.path not in item.config.stash[NEEDS_RAY]:
        RAY.stop()
    elif RAY.wanted:
        RAY.start()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray that `segray annotate`, called in this process, finds running."""
    RAY.start()
    yield
    RAY.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[servers.Server]:
    """S3 (moto), with one bucket that all tests share: write under a prefix of the test's own."""
    with servers.s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[servers.Server]:
    """Azure Blob Storage (Azurite), likewise."""
    with servers.azure_server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[servers.Server]:
    """Google Cloud Storage (gcp-storage-emulator), likewise."""
    with servers.gcs_server() as server:
        yield server


@pytest.fixture(params=["s3", "azure", "gcs"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """Each of the three in turn."""
    found = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(found, servers.Server)
    return found
