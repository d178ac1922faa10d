"""A bulk job, step by step: check, list, compare with the ledger, run, report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from segray.bulk.background_listing import BackgroundListing
from segray.bulk.committer import Committer
from segray.bulk.console import dry_run_lines, run_record, summary_lines
from segray.bulk.identity import check_identity, identity_of
from segray.bulk.ledger_db import LedgerDb
from segray.bulk.resources import Resources, share_out
from segray.bulk.settings import BulkSettings
from segray.bulk.task import BulkTask, Model
from segray.cluster import RayStart
from segray.errors import ExitCode, JobFailedError, NothingToDoError, SettingsError
from segray.log import LOG, answer, say
from segray.machines import outcome_of
from segray.output.lease import Lease
from segray.output.names import PLAN, RUN
from segray.output.progress import Progress, pace
from segray.output.store import Store
from segray.prometheus import Labels, exported, labels
from segray.registry.runs import note_run
from segray.run import Problems, device_of, exit_code, on_ray, open_output
from segray.sources.listing import Listing
from segray.sources.manifest import Wanted, shown_name
from segray.storage import shown

if TYPE_CHECKING:
    from segray.models.device import Precision


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before work begins."""

    task: BulkTask
    lease: Lease[Store]
    """Not acquired yet; its output's store is `store`."""
    model: Model
    device: str
    precision: "Precision"
    identity: dict[str, Any]
    ray: RayStart

    @property
    def store(self) -> Store:
        """Return the output."""
        return self.lease.store

    @property
    def watched(self) -> Labels | None:
        """Return how metrics name this run; None where metrics are off."""
        return labels(self.task.name, self.task.settings.output) if self.ray.exports else None


def run(task: BulkTask) -> ExitCode:
    """Run the model over every item of the sources, into `settings.output`. Raises as `done` does."""
    code, _ = done(task)
    return code


def done(task: BulkTask) -> tuple[ExitCode, dict[str, Any]]:
    """Run, and return the exit code with the contents of run.json, {} for a dry run.

    Raises SettingsError for errors found before work begins (all of them at once), NothingToDoError for
    an empty listing, JobFailedError for later failures.
    """
    settings = task.settings
    with (
        on_ray(settings, _load_ray_data) as ray,
        LedgerDb() as ledger,
    ):  # freed before a failure is logged
        prepared = _prepare(task, ray)
        with BackgroundListing(
            settings.sources, settings.storage, ledger, settings.choice, settings.keep_columns
        ) as background:
            if settings.dry_run:
                with Progress("listing") as progress:
                    background.complete(progress)
                left_out = background.listing.left_out
                answer(dry_run_lines(task, ledger, left_out, prepared.model.name, prepared.device))
                return ExitCode.DONE, {}
            with prepared.lease as lease:
                under = replace(prepared, task=task.under(lease.generation))
                record, did = _run(under, ledger, background, lease)
        note_run(prepared.model.name, settings.output, record, settings.storage)
        LOG.conclude(summary_lines(task, ledger, record, did, ray.hours_lines(record)))
        LOG.outcome = outcome_of(record, "counts", "rates")
        return exit_code(ledger.rejected_share(), settings.max_rejects), record


def _load_ray_data() -> None:
    from segray.bulk import pipeline  # noqa: F401


def _prepare(task: BulkTask, ray: RayStart) -> Prepared:
    """Check the output and every source, load the model while Ray starts; raise all problems at once."""
    problems, settings = Problems(), task.settings
    attempt = problems.attempt
    lease = attempt(lambda: open_output(_store(task)))
    attempt(task.check)
    attempt(ray.check)
    _check_sources(settings, problems)
    if problems or lease is None:
        if settings.device == "cuda":
            attempt(lambda: _where(settings, ray))  # needs torch
        raise problems.error()  # problems found without torch, before it is loaded
    if not settings.dry_run and lease.store.read(RUN) is None:
        ray.begin()
    model = attempt(task.load)
    where = attempt(lambda: _where(settings, ray))
    if problems or model is None or where is None:
        raise problems.error()
    device, precision = where
    identity = identity_of(task, model, precision)
    _check_identity(lease.store, identity, settings)
    return Prepared(task, lease, model, device, precision, identity, ray)


def _store(task: BulkTask) -> Store:
    """Return the output of this run."""
    given = task.settings
    return Store(given.output, given.storage, given.crs, task.keeps_instances, given.keep_columns)


def _check_sources(settings: BulkSettings, problems: Problems) -> None:
    """Probe every source, and collect the problems.

    Raises NothingToDoError where there are no other problems, and no image.
    """
    found = [problems.attempt(lambda source=source: _touch(source, settings)) for source in settings.sources]  # type: ignore[misc]
    touched = [each for each in found if each is not None]
    if len(touched) == len(found):  # else an unreadable source may be a manifest
        problems.attempt(
            lambda: _check_kept(settings.keep_columns, [listing.wanted for _, listing in touched])
        )
    empty = [
        (shown(source), each[1].ignored)
        for source, each in zip(settings.sources, found, strict=True)
        if each and not each[0]
    ]
    if not problems and len(empty) == len(found):
        named, ignored = ", ".join(source for source, _ in empty), sum(number for _, number in empty)
        raise NothingToDoError(f"no image in {named} ({ignored:,} other names ignored)")
    for source, ignored in empty:
        say(f"no image in {source} ({ignored:,} other names ignored)", "warning")


def _touch(source: str, settings: BulkSettings) -> tuple[bool, Listing]:
    """Return (whether a source has an image, its listing up to the first one)."""
    listing = Listing([source], settings.storage, settings.choice, settings.keep_columns)
    return next(iter(listing), None) is not None, listing


def _check_kept(names: Sequence[str], seen: Sequence[Wanted]) -> None:
    """Raise SettingsError for columns that no manifest has; of several in one source the first one counts."""
    if not names:
        return
    if not any(each.manifests for each in seen):
        raise SettingsError("keep_columns: no source is a manifest with columns; leave it out, or add one")
    lost = [name for name in names if not any(name in each.found for each in seen)]
    if lost:
        there = ", ".join(map(shown_name, dict.fromkeys(name for each in seen for name in each.others)))[:300]
        raise SettingsError(f"keep_columns: no manifest has a column {', '.join(lost)}; there are: {there}")


def _check_identity(store: Store, identity: dict[str, Any], settings: BulkSettings) -> None:
    if store.has_items():
        check_identity(store.read_json(PLAN), identity, shown(settings.output))


def _where(settings: BulkSettings, ray: RayStart) -> "tuple[str, Precision]":
    """Return (device, precision) of the model step: the cluster's where there is one, else this machine's."""
    from segray.models.device import resolve_precision

    device = device_of(settings.device, ray)
    if ray.in_cluster and device == "cuda" and settings.precision == "auto":
        return device, "bf16"  # the head may have no GPU to query; every GPU since 2020 supports it
    return device, resolve_precision(settings.precision, device)


def _run(
    prepared: Prepared, ledger: LedgerDb, background: BackgroundListing, lease: Lease[Store]
) -> tuple[dict[str, Any], str]:
    """Process what the ledger lacks; return the contents of run.json and a summary."""
    settings, store, machines = prepared.task.settings, prepared.store, prepared.ray.machines
    machines.inherit(lease.hours)
    lease.tell = machines.record
    _check_identity(store, prepared.identity, settings)  # again: another run may have finished meanwhile
    parts = store.recover()
    for part in parts:
        ledger.add_ledger(store, part)
    ledger.settle(keeps=prepared.task.keeps_tiles)
    if settings.retry_rejected:
        ledger.forget_rejected()
    committer = Committer(store, ledger, lease, parts, settings.commit_every_s, prepared.task)
    committer.merge_whole_items()
    with Progress("listing") as listing:
        work = background.next_round(listing)
    finished = _finished(store)
    if not work and finished is not None and ledger.is_finished():
        lease.check()  # else the files may be another run's
        return finished, "nothing to do, finished before"
    resources = _ready(prepared) if work else None  # a job that cannot start changes nothing
    store.retract(RUN)
    store.write_json(PLAN, prepared.identity)
    finds = prepared.task.keeps_instances
    watched = prepared.watched if resources is not None else None
    with Progress(prepared.task.name, finds=finds) as progress, exported(watched, progress.exported):
        lease.tell = lambda: progress.told() | machines.record()
        progress.recount(*ledger.units())
        if resources is not None:
            _work(prepared, ledger, resources, background, committer, progress)
        committer.finish()
    if not ledger.counts()["items"]:
        named = ", ".join(map(shown, settings.sources))
        raise NothingToDoError(f"no image in {named}: the archives hold none")
    left_out = background.listing.left_out
    record = run_record(prepared.task, prepared.identity, ledger, left_out, progress.seconds, committer.items)
    if prepared.task.keeps_instances:
        record["categories"] = _categories(prepared.model)
    record |= machines.record()
    store.write_json(RUN, record)
    rate = record["rates"]["images_per_s"]
    at = f", {pace(rate)}" if rate else ""
    return record, f"done, {committer.items:,} images in {progress.seconds:,.1f} s{at}"


def _categories(model: Model) -> list[dict[str, Any]]:
    """Return the categories of a model, also those that it found nowhere; a factory may name background."""
    rows = [{"id": number, "name": name} for number, name in sorted(model.categories.items())]
    return [row for row in rows if (row["id"], str(row["name"]).casefold()) != (0, "background")]


def _work(
    prepared: Prepared,
    ledger: LedgerDb,
    resources: Resources,
    background: BackgroundListing,
    committer: Committer,
    progress: Progress,
) -> None:
    """Process what is listed so far, then what was listed meanwhile, until nothing is left."""
    from segray.bulk.pipeline import Work, merged_in_workers, process

    task, model = prepared.task, prepared.model
    if task.merges_in_workers:
        committer.merge_tiles = merged_in_workers(task)
    work = Work(task, ledger, model, prepared.precision, resources, prepared.watched)
    while True:
        process(work, committer, progress, lambda: ledger.known_total() if background.ended else None)
        is_left = background.next_round()
        progress.recount(*ledger.units())
        if not is_left:
            return


def _finished(store: Store) -> dict[str, Any] | None:
    """Return the record of a finished run; None where there is none, or a damaged one."""
    try:
        record = store.read_json(RUN)
    except JobFailedError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("counts"), dict) else None


def _ready(prepared: Prepared) -> Resources:
    """Start Ray, and check that the requested resources fit into it."""
    resources = share_out(prepared.task.settings, prepared.device, prepared.ray.cluster())
    say(
        f"{prepared.model.name} in {prepared.precision} on {resources.device}, up to "
        f"{resources.actors} model actors x {resources.threads} threads and {resources.decoders} decoders"
    )
    return resources
