"""Attempts of one job that overlap: one stops before its k-th request to the storage and goes on later.

The job is the real one, from the lease to run.json, over the requests that the storage really gets; only the
model is not there: answers come from a table.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.annotate.settings import AnnotateSettings
from segray.bulk import committer as committer_module
from segray.bulk import job, pipeline
from segray.bulk.background_listing import BackgroundListing
from segray.bulk.committer import Committer, commit
from segray.bulk.ledger_db import LedgerDb
from segray.bulk.task import BulkTask
from segray.cluster import RayStart
from segray.errors import SegrayError
from segray.output import lease as lease_module
from segray.output.lease import NAME, Lease
from segray.output.progress import Progress
from segray.output.store import Store
from segray.sources.item import Source, image_id
from segray.storage import StorageSettings, open_filesystem
from tests.bulk.tables import answer, table
from tests.bulk.test_kept_tiles import SCENE, TILES, Joining

T = TypeVar("T")
LONG_S = 1000.0
"""How long whoever stops seems to have slept; longer than any lease lives."""
BAD_TILE = 2


class StoppedStore(Store):
    """Before its `at`-th request to the storage the process stops; it goes on when `wakes` returns."""

    at, done = 0, 0
    wakes: Callable[[], object]
    asked: list[str]

    def _request(self, what: str, path: str, call: Callable[[], T]) -> T:
        self.done += 1
        self.asked = [*getattr(self, "asked", []), f"{what} {path.removeprefix(self.root)}"]
        if self.done == self.at:
            self.wakes()
        return super()._request(what, path, call)


@dataclass
class Attempt:
    """`segray annotate SOURCES --output URL`, without Ray."""

    url: str
    sources: Path
    storage: StorageSettings = field(default_factory=StorageSettings)
    identity: str = "one"
    retry: bool = False
    at: int = 0
    """Before which request it stops; 0: never."""
    meanwhile: Callable[["Attempt"], object] = lambda _: None
    asked: Sequence[str] = ()
    """Every request that it made."""

    def run(self) -> tuple[dict[str, Any], str]:
        """What run.json says, and what was done in a word."""
        options = {"sources": [str(self.sources)], "output": self.url, "commit_every_s": 0.001}
        settings = AnnotateSettings.model_validate(options | {"retry_rejected": self.retry})
        store = self.store = StoppedStore(self.url, self.storage)
        store.at, store.wakes = self.at, lambda: self.meanwhile(self)
        self.lease = Lease(store)
        try:
            with ExitStack() as stack:
                ledger = stack.enter_context(LedgerDb())
                background = stack.enter_context(
                    BackgroundListing([str(self.sources)], StorageSettings(), ledger)
                )
                verb, identity = Joining(settings), {"verb": "annotate", "weights": self.identity}
                ray = RayStart(settings.ray, Path("no-messages"))  # which is not started
                prepared = job.Prepared(verb, self.lease, Model(), "cpu", "fp32", identity, ray)
                job._check_identity(store, identity, settings)
                record, did = job._run(prepared, ledger, background, stack.enter_context(self.lease))
                return json.loads(json.dumps(record)), did
        finally:
            self.asked = store.asked

    def sleeps(self) -> None:
        """Its lease looks like one of another machine, and runs out."""
        filesystem, root = open_filesystem(self.url, self.storage)
        self.lease._renewed -= LONG_S
        if filesystem.exists(f"{root}/{NAME}"):
            lease = json.loads(filesystem.cat_file(f"{root}/{NAME}"))
            if lease["run_id"] == self.lease.run_id:
                lease |= {"host": "elsewhere", "expires_s": 0.01}
                filesystem.pipe_file(f"{root}/{NAME}", json.dumps(lease).encode())


def ending(attempt: Attempt) -> str:
    """Its last word."""
    try:
        return attempt.run()[1]
    except SegrayError as error:
        return str(error)


def overlapping(first: Attempt, second: Attempt) -> tuple[str, dict[str, Any] | None]:
    """When `first` stops, `second` runs as far as it goes, and on from there when `first` has ended.

    Returns the last word of the first, and what the second says in run.json; None where it failed.
    """
    reached, ended = threading.Event(), threading.Event()
    said: list[dict[str, Any]] = []

    def work() -> None:
        try:
            said.append(second.run()[0])
        finally:
            reached.set()

    def meanwhile(_: Attempt) -> None:
        first.sleeps()
        thread.start()
        reached.wait()

    def halfway(_: Attempt) -> None:
        reached.set()
        ended.wait()

    thread = threading.Thread(target=work)
    first.meanwhile, second.meanwhile = meanwhile, halfway
    end = ending(first)
    ended.set()
    thread.join()
    return end, said[0] if said else None


class Model:
    """Its name."""

    name = digest = "none"
    categories = MappingProxyType[int, str]({})
    resized_to = band_ranges = None


def process(
    work: pipeline.Work, committer: Committer, progress: Progress, known_total: Callable[[], int | None]
) -> None:
    """In the place of Ray's."""
    commit(results(work.task, work.ledger), committer, progress, known_total)


def results(task: BulkTask, ledger: LedgerDb) -> Generator[pa.Table, None, None]:
    """What a model would say."""
    done = ledger.done_tiles()
    for source in list(ledger.todo_files()):
        if Path(source.uri).stem != "scene":
            yield table(answer(source.uri, source.version))
            continue
        item = image_id(source.uri, None, 0, source.version)
        for number in sorted(set(TILES) - set(done.get(item, []))):
            yield table(tile(source, number, bad=not task.settings.retry_rejected))


def tile(source: Source, number: int, *, bad: bool) -> dict[str, Any]:
    """A tile's answer; one cannot be read at first."""
    window = SCENE.grid.window(number)
    row = answer(source.uri, source.version, 0, "storage" if bad and number == BAD_TILE else None)
    size = {"height": window.height, "width": window.width}
    return row | size | {"tile": number, "scene": SCENE.to_json()}


def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come from a table, two commits make a part, no power fails, no other machine is near."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.01)
    monkeypatch.setattr(job, "_ready", lambda _: object())
    monkeypatch.setattr(pipeline, "process", process)
    monkeypatch.setattr(committer_module, "MERGE_BYTES", 20_000)


def listed(folder: Path, names: str) -> Path:
    """Empty files: nobody reads them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names.split():
        (folder / f"{name}.png").touch()
    return folder


def visible(url: str, storage: StorageSettings | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of all tables, as plain globs find them, sorted."""
    filesystem, root = open_filesystem(url, storage or StorageSettings())
    found = {}
    for folder in ("images", "instances", "tiles"):
        rows: list[dict[str, Any]] = []
        for path in filesystem.glob(f"{root}/{folder}/*.parquet"):
            rows += pq.read_table(pa.BufferReader(filesystem.cat_file(path))).to_pylist()
        found[folder] = sorted(rows, key=lambda row: str(sorted(row.items(), key=lambda each: each[0])))
    return found


def record(url: str, storage: StorageSettings | None = None) -> dict[str, Any]:
    """What run.json says."""
    filesystem, root = open_filesystem(url, storage or StorageSettings())
    found: dict[str, Any] = json.loads(filesystem.cat_file(f"{root}/run.json"))
    return found
