"""A bulk job, step by step: check, list, compare with the ledger, run, account."""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from segray.bulk.background_listing import Inventory
from segray.bulk.committer import Sink
from segray.bulk.console import dry_run_lines, run_record, summary_lines
from segray.bulk.identity import check_identity, identity_of
from segray.bulk.ledger_db import Plan
from segray.bulk.resources import Resources, share_out
from segray.bulk.settings import BulkSettings
from segray.bulk.task import Model, Verb
from segray.cluster import RayStart
from segray.errors import ExitCode, JobFailedError, NothingToDoError, SegrayError, SettingsError
from segray.interrupts import INTERRUPTS
from segray.log import LOG, answer, say
from segray.machines import outcome_of
from segray.output.lease import Lock
from segray.output.progress import Progress, pace
from segray.output.store import Store
from segray.registry.runs import note_run
from segray.run import Problems, device_of, exit_code, on_ray, open_output
from segray.sources.listing import Listing
from segray.sources.manifest import Wanted, shown_name
from segray.storage import shown
from segray.watching import Labels, exported, labels

if TYPE_CHECKING:
    from segray.models.device import Precision

PLAN, RUN = "_segray/plan.json", "run.json"

_ASK_EVERY_S = 2.0
"""Between two questions for the total, which archives that are not read to their end leave open."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before work begins."""

    verb: Verb
    lock: Lock[Store]
    """Not entered yet; its output's store is `store`."""
    model: Model
    device: str
    precision: "Precision"
    identity: dict[str, Any]
    ray: RayStart

    @property
    def store(self) -> Store:
        """The output."""
        return self.lock.store

    @property
    def watched(self) -> Labels | None:
        """How metrics name this run; None where nobody looks at them."""
        return labels(self.verb.name, self.verb.settings.output) if self.ray.exports else None


def run(verb: Verb) -> ExitCode:
    """Answer every item of the sources, into `settings.output`. Raises as `done` does."""
    code, _ = done(verb)
    return code


def done(verb: Verb) -> tuple[ExitCode, dict[str, Any]]:
    """The same, with the contents of run.json; of a dry run there are none.

    Raises SettingsError for what can be known before work begins (all of it at once), NothingToDoError for
    an empty listing, JobFailedError for what broke later.
    """
    settings = verb.settings
    with Plan() as plan, on_ray(settings, _load_ray_data) as ray:
        prepared = _prepare(verb, ray)
        with Inventory(
            settings.sources, settings.storage, plan, settings.choice, settings.keep_columns
        ) as inventory:
            if settings.dry_run:
                with Progress("listing") as progress:
                    inventory.complete(progress)
                left_out = inventory.listing.left_out
                answer(dry_run_lines(verb, plan, left_out, prepared.model.name, prepared.device))
                return ExitCode.DONE, {}
            with prepared.lock as lock:
                under = replace(prepared, verb=verb.under(lock.generation))
                record, did = _run(under, plan, inventory, lock)
        note_run(prepared.model.name, settings.output, record, settings.storage)
        LOG.conclude(summary_lines(verb, plan, record, did, ray.hours_lines(record)))
        LOG.outcome = outcome_of(record, "counts", "rates")
        return exit_code(plan.rejected_share(), settings.max_rejects), record


def _load_ray_data() -> None:
    from segray.bulk import pipeline  # noqa: F401


def _prepare(verb: Verb, ray: RayStart) -> Prepared:
    """Look at the output, touch every source, load the model while Ray starts: all problems at once."""
    problems, settings = Problems(), verb.settings
    attempt = problems.attempt
    kept = settings.keep_columns
    lock = attempt(
        lambda: open_output(
            Store(settings.output, settings.storage, settings.crs, verb.keeps_instances, kept)
        )
    )
    attempt(verb.check)
    attempt(ray.check)
    found = [attempt(lambda source=source: _touch(source, settings)) for source in settings.sources]  # type: ignore[misc]
    touched = [each for each in found if each is not None]
    if len(touched) == len(found):  # else a manifest may be among those that cannot be read
        attempt(lambda: _check_kept(kept, [listing.wanted for _, listing in touched]))
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
    if problems or lock is None:
        if settings.device == "cuda":
            attempt(lambda: _where(settings, ray))  # only torch knows
        raise problems.error()  # what is known without torch, before it is loaded
    if not settings.dry_run and lock.store.read(RUN) is None:
        ray.begin()
    model = attempt(verb.load)
    where = attempt(lambda: _where(settings, ray))
    if problems or model is None or where is None:
        raise problems.error()
    device, precision = where
    identity = identity_of(verb, model, precision)
    _check_identity(lock.store, identity, settings)
    return Prepared(verb, lock, model, device, precision, identity, ray)


def _touch(source: str, settings: BulkSettings) -> tuple[bool, Listing]:
    """(Whether there is anything to do in a source, what was seen up to it)."""
    listing = Listing([source], settings.storage, settings.choice, settings.keep_columns)
    return next(iter(listing), None) is not None, listing


def _check_kept(names: Sequence[str], seen: Sequence[Wanted]) -> None:
    """Raise SettingsError for columns that no manifest has; of several in one source the first one counts."""
    if not names:
        return
    if not any(each.manifests for each in seen):
        raise SettingsError("keep_columns: no source is a manifest with columns; leave it out, or name one")
    lost = [name for name in names if not any(name in each.found for each in seen)]
    if lost:
        there = ", ".join(map(shown_name, dict.fromkeys(name for each in seen for name in each.others)))[:300]
        raise SettingsError(f"keep_columns: no manifest has a column {', '.join(lost)}; there are: {there}")


def _check_identity(store: Store, identity: dict[str, Any], settings: BulkSettings) -> None:
    if store.has_items():
        check_identity(store.read_json(PLAN), identity, shown(settings.output))


def _where(settings: BulkSettings, ray: RayStart) -> "tuple[str, Precision]":
    """(device, precision) of the model step: the cluster's where there is one, else this machine's."""
    from segray.models.device import resolve_precision

    device = device_of(settings.device, ray)
    if ray.in_cluster and device == "cuda" and settings.precision == "auto":
        return device, "bf16"  # the head may have no GPU to ask; every GPU since 2020 has it
    return device, resolve_precision(settings.precision, device)


def _run(
    prepared: Prepared, plan: Plan, inventory: Inventory, lock: Lock[Store]
) -> tuple[dict[str, Any], str]:
    """Do what the ledger does not hold; returns the contents of run.json and what was done in a word."""
    settings, store, machines = prepared.verb.settings, prepared.store, prepared.ray.machines
    machines.inherit(lock.hours)
    lock.tell = machines.record
    _check_identity(store, prepared.identity, settings)  # again: another run may have finished meanwhile
    parts = store.recover()
    for part in parts:
        plan.add_ledger(store, part)
    plan.settle(keeps=prepared.verb.keeps_tiles)
    if settings.retry_rejected:
        plan.forget_rejected()
    sink = Sink(store, plan, lock, parts, settings.commit_every_s, prepared.verb)
    sink.join_whole()
    with Progress("listing") as listing:
        work = inventory.next_round(listing)
    finished = _finished(store)
    if not work and finished is not None and plan.is_finished():
        lock.check()  # else all that was read may be another run's
        return finished, "nothing to do, finished before"
    resources = _ready(prepared) if work else None  # what cannot start changes nothing
    store.retract(RUN)
    store.write_json(PLAN, prepared.identity)
    if resources is not None and prepared.verb.joins_in_workers:
        from segray.bulk.pipeline import joined_in_workers

        sink.joined = joined_in_workers(prepared.verb)
    finds = prepared.verb.keeps_instances
    watched = prepared.watched if resources is not None else None
    with Progress(prepared.verb.name, finds=finds) as progress, exported(watched, progress.exported):
        lock.tell = lambda: progress.told() | machines.record()
        progress.recount(*plan.units())
        while resources is not None and work:
            _take(_answers(prepared, plan, inventory, resources, progress), sink, progress)
            work = inventory.next_round()
            progress.recount(*plan.units())
        sink.finish()
    if not plan.counts()["items"]:
        named = ", ".join(map(shown, settings.sources))
        raise NothingToDoError(f"no image in {named}: the archives hold none")
    left_out = inventory.listing.left_out
    record = run_record(prepared.verb, prepared.identity, plan, left_out, progress.seconds, sink.items)
    record |= machines.record()
    store.write_json(RUN, record)
    rate = record["rates"]["images_per_s"]
    at = f", {pace(rate)}" if rate else ""
    return record, f"done, {sink.items:,} images in {progress.seconds:,.1f} s{at}"


def _finished(store: Store) -> dict[str, Any] | None:
    """The record of a run that came to its end; a damaged one is written anew."""
    try:
        record = store.read_json(RUN)
    except JobFailedError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("counts"), dict) else None


def _take(answers: Generator[pa.Table, None, None], sink: Sink, progress: Progress) -> None:
    with closing(answers):  # else Ray Data would go on, in its thread, while its Ray is stopped
        try:
            for table in answers:
                sink.add(table)
                items = table.filter(pc.is_valid(table["image_id"]))
                rejected = pc.sum(pc.equal(items["status"], "rejected")).as_py() or 0
                tiles = progress.see_tiles(items["image_id"].to_pylist(), items["scene"].to_pylist())
                instances = pc.sum(items["instances"]).as_py() or 0
                progress.add(items.num_rows - tiles, instances, rejected, tiles)
                if INTERRUPTS.struck.is_set():
                    raise KeyboardInterrupt
            sink.commit()
            if INTERRUPTS.struck.is_set():
                raise KeyboardInterrupt
        except (KeyboardInterrupt, SegrayError):
            INTERRUPTS.ignore()
            sink.commit()  # what came back is not done again
            if INTERRUPTS.struck.is_set():  # whatever a library made of it
                raise KeyboardInterrupt from None
            raise


def _ready(prepared: Prepared) -> Resources:
    """Ray runs and what is asked for fits into it."""
    resources = share_out(prepared.verb.settings, prepared.device, prepared.ray.cluster())
    say(
        f"{prepared.model.name} in {prepared.precision} on {resources.device}, up to "
        f"{resources.actors} model actors x {resources.threads} threads and {resources.decoders} decoders"
    )
    return resources


def _answers(
    prepared: Prepared, plan: Plan, inventory: Inventory, resources: Resources, progress: Progress
) -> Generator[pa.Table, None, None]:
    """One round of work; tells `progress` the total as soon as it is known."""
    from segray.bulk import pipeline

    asked = -math.inf
    for table in chain(
        [None],
        pipeline.answered(
            prepared.verb, plan, prepared.model, prepared.precision, resources, prepared.watched
        ),
    ):
        if progress.total is None and inventory.ended and time.monotonic() - asked > _ASK_EVERY_S:
            progress.total, asked = plan.known_total(), time.monotonic()
        if table is not None:
            yield table
