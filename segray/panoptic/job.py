"""`segray panoptic`, step by step: check both runs, compare with the ledger, fuse, write, report."""

import sqlite3
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from segray.cpus import whole_cpus
from segray.errors import ExitCode, JobFailedError, NothingToDoError
from segray.log import LOG, answer, say
from segray.output.folder import IMAGES
from segray.output.io import files_below
from segray.output.lease import Lease
from segray.output.names import PLAN, RUN
from segray.output.panoptic import COCO_FILE, FOLDER, SEGMENT
from segray.output.progress import Progress
from segray.panoptic.classes import Classes, classes_of
from segray.panoptic.coco import write_coco
from segray.panoptic.image import Fused, fused
from segray.panoptic.ledger import LEDGER, Tables
from segray.panoptic.report import Counts, run_record, summary_lines
from segray.panoptic.runs import Run, categories_of, find_run, map_classes, sources_of
from segray.panoptic.settings import PanopticSettings
from segray.panoptic.table import Table
from segray.run import Problems, check_same, exit_code, open_output
from segray.sources.concurrent_requests import describe
from segray.storage import shown

_AHEAD = 4
"""Images for each thread whose masks wait in memory."""
_MOST_ROWS = 100_000
"""Rows of segments after which results are committed at the latest."""
_INSTANCES: tuple[str | None, ...] = ("annotate", "import", None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before work begins."""

    settings: PanopticSettings
    lease: Lease[Tables]
    instances: Run
    maps: Run
    classes: Classes

    @property
    def store(self) -> Tables:
        """The output."""
        return self.lease.store

    def identity(self) -> dict[str, Any]:
        """Return what results depend on."""
        named = ("min_visible", "min_stuff_area", "min_score", "stuff_ids_from", "void")
        return {
            "verb": "panoptic",
            "instances": self.instances.identity,
            "maps": self.maps.identity,
            **{name: getattr(self.settings, name) for name in named},
            "things": list(self.classes.never_stuff),
        }


def panoptic(settings: PanopticSettings) -> ExitCode:
    """Fuse two runs.

    Raises SettingsError for what is found before work begins, NothingToDoError where no image is in both,
    JobFailedError for later failures.
    """
    prepared = _prepare(settings)
    _warn_of_unknown(prepared)
    try:
        record, did = _fused_runs(prepared)
    except (OSError, sqlite3.OperationalError) as error:
        raise JobFailedError(
            f"cannot write temporary files to {tempfile.gettempdir()}: {describe(error)}; make room there, "
            "or set TMPDIR, and run again to continue"
        ) from error
    if settings.dry_run:
        return ExitCode.DONE
    LOG.conclude(summary_lines(settings, record, did))
    LOG.outcome = {"counts": record["counts"], "rates": record["rates"]}
    counts = record["counts"]
    return exit_code(counts["rejected"] / max(1, counts["items"]), settings.max_rejects)


def _fused_runs(prepared: Prepared) -> tuple[dict[str, Any], str]:
    """Fuse what both runs list; return the contents of run.json, {} for a dry run, and a summary."""
    settings = prepared.settings
    with (
        tempfile.TemporaryDirectory(prefix="segray-panoptic-") as folder,
        closing(Table(Path(folder))) as table,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # scenes without a place
        for run, side in ((prepared.instances, "instances"), (prepared.maps, "maps")):
            table.add_run(run, side, settings.storage)
        table.settle()
        both, *alone = table.counts()
        if not both:
            raise NothingToDoError(
                f"no image is in both runs ({alone[0]:,} in the instances only, {alone[1]:,} in the maps "
                "only); they must be made of the same files: an image_id changes with address and version"
            )
        if settings.dry_run:
            answer([*_about(prepared, both, alone), "dry run: nothing was written"])
            return {}, ""
        with prepared.lease:
            return _run(prepared, table, Path(folder))


def _prepare(settings: PanopticSettings) -> Prepared:
    """Check output, runs and classes; raise all problems at once."""
    problems, storage = Problems(), settings.storage
    lease = problems.attempt(lambda: open_output(Tables(settings.output, storage)))
    instances = problems.attempt(lambda: find_run(settings.instances, "instances", _INSTANCES, storage))
    maps = problems.attempt(lambda: find_run(settings.maps, "maps", ("predict",), storage))
    classes = None
    if instances is not None and maps is not None:
        things = problems.attempt(lambda: categories_of(instances, storage))
        names = problems.attempt(lambda: map_classes(maps))
        if things is not None and names is not None:
            classes = problems.attempt(lambda: classes_of(things, names, settings))
    if problems or lease is None or instances is None or maps is None or classes is None:
        raise problems.error()
    prepared = Prepared(settings, lease, instances, maps, classes)
    _check_identity(prepared)
    return prepared


def _check_identity(prepared: Prepared) -> None:
    here, store = prepared.identity(), prepared.store
    there = store.read_json(PLAN)
    if isinstance(there, dict):
        check_same(there, here, here, shown(prepared.settings.output), "made")


def _warn_of_unknown(prepared: Prepared) -> None:
    """Warn where things that were not found may be taken for stuff."""
    run, settings, stuff = prepared.instances, prepared.settings, prepared.classes.stuff
    if not run.categories and not settings.things and stuff:
        names = ", ".join(name for _, name in stuff.values())
        say(
            f"instances: {shown(run.url)} does not record which categories there are: of the maps' classes, "
            f"{names} are stuff; name those that are not with --things",
            "warning",
        )


def _about(prepared: Prepared, both: int, alone: list[int]) -> list[str]:
    classes = prepared.classes
    return [
        f"{both:,} images in both runs; {alone[0]:,} in the instances only, {alone[1]:,} in the maps only",
        f"things: {', '.join(classes.things.values()) or 'none'}",
        f"stuff: {', '.join(name for _, name in classes.stuff.values()) or 'none'}",
    ]


def _run(prepared: Prepared, table: Table, folder: Path) -> tuple[dict[str, Any], str]:
    """Fuse what the ledger lacks; return the contents of run.json and a summary."""
    settings, store = prepared.settings, prepared.store
    _check_identity(prepared)  # again: another run may have finished meanwhile
    parts = store.recover()
    for part in parts:
        table.add_done(part, store.rows(IMAGES, [part]))
    table.choose(retry_rejected=settings.retry_rejected)
    stale, pending, finished = table.stale(), table.pending(), store.read_json(RUN)
    if not stale and not pending and isinstance(finished, dict):
        prepared.lease.check()
        return finished, "nothing to do, finished before"
    store.retract(RUN)
    store.write_json(PLAN, prepared.identity())
    for part, image_ids in stale.items():
        store.leave_out(part, image_ids)
        for image_id in image_ids:
            _delete_files(store, image_id)
    with Progress("panoptic", pending) as progress:
        prepared.lease.tell = progress.told
        if pending:
            files = files_below(f"{prepared.instances.url}/instances", (".parquet",), settings.storage)
            table.add_instances(files, settings.min_score, settings.storage)
            _work(prepared, table, progress)
        parts = store.recover()
        local = folder / COCO_FILE
        write_coco(store, parts, prepared.classes.coco(), local)
        store.put_file(COCO_FILE, local)
        seconds = progress.seconds
    counts = Counts()
    for part in parts:
        counts.add(store.table(IMAGES, part))
    more = {
        "identity": prepared.identity(),
        "sources": sources_of(prepared.instances, prepared.maps),
        "categories": prepared.classes.coco(),
    }
    record = run_record(settings, counts, pending, seconds, more)
    store.write_json(RUN, record)
    return record, f"done, {pending:,} images in {seconds:,.1f} s"


def _work(prepared: Prepared, table: Table, progress: Progress) -> None:
    """Fuse all pending images, and commit as it goes; an interrupt keeps what is done."""
    settings, store = prepared.settings, prepared.store
    commit = _Commit(store, settings.commit_every_s)
    again = prepared.lease.generation > 1
    try:
        for row in _fused_in_order(prepared, table):
            rejected = row.image["status"] == "rejected"
            if rejected and again:  # a killed run may have written its file
                _delete_files(store, row.image["image_id"])
            progress.add(1, row.image.get("instances") or 0, int(rejected))
            commit.add(row)
    except KeyboardInterrupt:
        say("interrupted: committing what is done", "warning")
        commit.flush()
        raise
    commit.flush()


def _fused_in_order(prepared: Prepared, table: Table) -> Iterator[Fused]:
    """Yield the results of all pending images in their order; some are done ahead."""
    threads = prepared.settings.threads or whole_cpus()
    waiting: deque[Future[Fused]] = deque()
    with ThreadPoolExecutor(threads, "segray-panoptic") as pool:
        try:
            for work in table.work():
                what = (work, prepared.settings, prepared.classes, prepared.store)
                waiting.append(pool.submit(fused, *what))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _delete_files(store: Tables, image_id: str) -> None:
    for suffix in (".png", ".tif"):
        store.delete(f"{FOLDER}/{image_id}{suffix}")


@dataclass(slots=True)
class _Commit:
    """Buffers results, and commits them now and then."""

    store: Tables
    every_s: float
    images: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    last: float = field(default_factory=time.monotonic)

    def add(self, row: Fused) -> None:
        """Add the rows of one image."""
        self.images.append(row.image)
        self.segments += row.segments
        many = len(self.segments) + len(self.images) >= _MOST_ROWS
        if many or time.monotonic() - self.last >= self.every_s:
            self.flush()

    def flush(self) -> None:
        """Commit what is buffered; rows whose commit is interrupted are not tried twice."""
        images, segments = self.images, self.segments
        self.images, self.segments, self.last = [], [], time.monotonic()
        if images:
            ledger = pa.Table.from_pylist(images, LEDGER)
            self.store.commit(ledger, pa.Table.from_pylist(segments, SEGMENT))
