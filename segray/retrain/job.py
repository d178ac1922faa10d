"""`segray retrain`, step by step: look, freeze, train, score, decide, register, tell. Each is gone on with.

A round that is begun ends, whatever killed it: every step leaves its result in the round's folder and is not
done again. What a later step reads is frozen when the round begins: labels, holdout, the model to start from.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow.compute as pc

from segray.bulk.lock import Lock
from segray.bulk.output import Output
from segray.cluster import RayStart, set_environment
from segray.errors import (
    ExitCode,
    HeldError,
    JobFailedError,
    NothingToDoError,
    SegrayError,
    SettingsError,
)
from segray.evaluate.report import without_nan
from segray.interrupts import INTERRUPTS
from segray.log import LOG, answer, say
from segray.machines import outcome_of
from segray.quiet import noise_to_file
from segray.registry.address import RegistryAddress
from segray.registry.registry import SNAPSHOT as KEPT_SNAPSHOT
from segray.registry.registry import Registry
from segray.retrain import data as data_of
from segray.retrain.columns import values_by_image
from segray.retrain.data import Listed
from segray.retrain.gate import Gate
from segray.retrain.holdout import Holdout, deal
from segray.retrain.labels import (
    LEFT_OUT,
    TEST,
    from_bytes,
    name_of,
    news,
    snapshot_of,
    to_bytes,
    unread_news,
)
from segray.retrain.notify import notify
from segray.retrain.promotion import ChampionChangedError, keep, promote
from segray.retrain.report import report_page
from segray.retrain.rounds import (
    DECISION,
    GROUPS,
    HOLDOUT,
    ITEMS,
    PLAN,
    REPORT,
    ROUND,
    RUN,
    SNAPSHOT,
    Round,
    check_plan,
    rounds,
)
from segray.retrain.scoring import Scored, in_common, manifest, score_instances, score_semantic
from segray.retrain.settings import RetrainSettings
from segray.storage import shown
from segray.train.identity import METRICS, MODEL

T = TypeVar("T")
_TOLD = 10
"""Problems that are said."""


@dataclass(frozen=True)
class Job:
    """What every step has."""

    settings: RetrainSettings
    store: Output
    registry: Registry
    ray: RayStart
    gate: Gate

    def champion(self) -> str | None:
        """The version that is champion now."""
        return self.registry.aliases(self.settings.model).champion

    def address(self, version: str) -> str:
        """A version, as `--weights` takes it."""
        return str(RegistryAddress(self.settings.registry.rstrip("/"), self.settings.model, version))


def retrain(settings: RetrainSettings) -> ExitCode:
    """One round: a new champion (0), a refusal (5), or nothing to do (4). Every end is told to `notify`.

    Raises SettingsError for what can be known before work begins, NothingToDoError, JobFailedError.
    """
    started = time.time()
    about = {"verb": "retrain", "model": settings.model, "registry": shown(settings.registry)}
    try:
        record = _retrain(settings)
    except KeyboardInterrupt:
        raise
    except SegrayError as error:
        outcome = _OUTCOMES.get(error.exit_code, "failed")
        end = {"outcome": outcome, "reasons": error.lines, "exit_code": int(error.exit_code)}
        if not settings.dry_run:
            notify(settings.notify, {**about, **end})
        raise
    if record is None:
        return ExitCode.DONE
    code = ExitCode.DONE if record["promoted"] else ExitCode.REFUSED
    told = {"outcome": "promoted" if record["promoted"] else "refused", "exit_code": int(code)}
    notify(settings.notify, {**about, **told, **record, "seconds": round(time.time() - started, 1)})
    LOG.outcome = {**told, "version": record["version"]} | outcome_of(record)
    return code


_OUTCOMES = {
    ExitCode.NOTHING_TO_DO: "nothing to do",
    ExitCode.USAGE: "bad settings",
    ExitCode.REJECTED: "rejects",
}


def _retrain(settings: RetrainSettings) -> dict[str, Any] | None:
    """The record of a round that is over; None for a dry run."""
    set_environment()
    with (
        noise_to_file() as log,
        INTERRUPTS,
        RayStart(settings.ray, log, _load_ray, settings.metrics_port) as ray,
    ):
        job, lock = _prepare(settings, ray)
        if settings.dry_run:
            _tell_plan(job)
            return None
        try:
            with lock:
                job.store.write_json(PLAN, check_plan(job.store, settings))
                return _round(job)
        except HeldError as error:
            raise NothingToDoError(*error.lines) from error


def _load_ray() -> None:
    from segray.bulk import pipeline  # noqa: F401


def _prepare(settings: RetrainSettings, ray: RayStart) -> tuple[Job, Lock[Output]]:
    """Look at output and registry: all problems at once."""
    problems: list[str] = []

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except HeldError:
            raise
        except SettingsError as error:
            problems.extend(error.lines)
            return None

    store = Output(settings.output, settings.storage)
    registry = Registry(settings.registry, settings.storage)
    lock = Lock(store)
    try:
        attempt(store.check_usable)
        attempt(lambda: check_plan(store, settings))
        attempt(lambda: lock.refuse_second_run(watches=False))
    except HeldError as error:
        raise NothingToDoError(*error.lines) from error
    attempt(registry.check_usable)
    attempt(ray.check)
    if settings.group_by is not None:
        attempt(
            lambda: values_by_image(settings.data, settings.group_by or "", settings.root, settings.storage)
        )
    elif settings.gate.floors or settings.gate.group_drop is not None:
        problems.append("gate.floors, gate.group_drop: say with group_by what the groups are")
    if problems:
        raise SettingsError(*problems)
    gate = Gate(**settings.gate.model_dump())
    return Job(settings, store, registry, ray, gate), lock


def _tell_plan(job: Job) -> None:
    """What a dry run says."""
    open_rounds = [each for each in rounds(job.store, job.settings.output) if not each.is_over]
    champion, before = job.champion(), _snapshot_before(job)
    labels = _listed(job, champion)
    found = unread_news(labels.pairs.pairs, before)
    does = (
        f"round {open_rounds[-1].number} would be gone on with" if open_rounds else _would(job, found.number)
    )
    answer(
        [
            f"labels: {len(labels.pairs.pairs):,} pictures, {found.told()} since the last round",
            f"champion: {champion or 'none yet'}; start: {_start(job, champion) or 'scratch'}",
            does,
            "dry run: nothing was written",
        ]
    )


def _would(job: Job, number: int) -> str:
    enough = number >= job.settings.min_new
    return "a round would begin" if enough else f"nothing would be done: {job.settings.min_new} are asked for"


# --- a round -----------------------------------------------------------------------------------------


def _round(job: Job) -> dict[str, Any]:
    """Begin a round or go on with the last one, to its end."""
    there = rounds(job.store, job.settings.output)
    last = there[-1] if there else None
    if last is not None and not last.is_over and last.is_begun:
        say(f"going on with round {last.number}")
        now = last
    else:
        is_over = last is not None and last.is_over
        number = 1 if last is None else last.number + is_over
        now = Round(job.store, number, job.settings.output)
        _begin(job, now)
    frozen = now.read_json(ROUND)
    job.ray.begin()
    run = _train(job, now, frozen)
    decision = _decide(job, now, frozen, run)
    version = _register(job, now, frozen, decision, run)
    record = _end(job, now, frozen, decision, version)
    _label(job, record)
    return record


def _snapshot_before(job: Job) -> Any:
    """Of the last round that is over; else what the champion was trained on; None where nobody knows."""
    over = [each for each in rounds(job.store, job.settings.output) if each.is_over]
    if over:
        return from_bytes(over[-1].read(SNAPSHOT))
    champion = job.champion()
    if champion is None:
        return None
    return from_bytes(job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT))


def _start(job: Job, champion: str | None) -> str | None:
    """Weights that the challenger starts from; None: from scratch."""
    return None if champion is None or job.settings.start == "scratch" else job.address(champion)


def _listed(job: Job, champion: str | None) -> Listed:
    return data_of.listed(job.settings, _start(job, champion))


def _begin(job: Job, now: Round) -> None:
    """Find what is new, and freeze what the round is about. Raises NothingToDoError."""
    settings, champion, before = job.settings, job.champion(), _snapshot_before(job)
    _wait_for_drift(job, champion)
    labels = _listed(job, champion)
    _enough(unread_news(labels.pairs.pairs, before), settings.min_new)
    job.ray.begin()
    pairs, rows, rejected = data_of.surveyed(labels, job.store, job.ray)
    _check_rejects(settings, rejected, len(labels.pairs.pairs) + len(labels.pairs.rejected), "read")
    holdout = Holdout.read(job.store.read(HOLDOUT))
    if not holdout.version and before is not None:
        holdout = holdout.joined_by(before)  # of rounds whose output is gone: what the champion was scored on
    splits = deal(
        pairs,
        rows,
        holdout,
        _trained(before),
        share=settings.holdout_share,
        seed=settings.split_seed,
        look_alikes=settings.group_look_alikes,
    )
    snapshot = snapshot_of(pairs, rows, splits)
    found = news(snapshot, before)
    _enough(found, settings.min_new)
    holdout = holdout.joined_by(snapshot)
    counts = {split: splits.count(split) for split in ("train", "val", TEST, LEFT_OUT)}
    if not counts[TEST]:
        raise SettingsError(
            f"data: none of {len(pairs):,} pictures is held out; name `test` as the split of some, or raise "
            "holdout_share"
        )
    data = to_bytes(snapshot)
    name = data_of.freeze(labels, pairs, rows, splits, job.store, now.folder)
    training = data_of.train_settings(
        settings, now.address(name), now.address("train"), _start(job, champion)
    )
    known = training.model_copy(
        update={"arch": labels.settings.arch, "arch_settings": labels.settings.arch_settings}
    )
    data_of.hand_over_survey(labels, now.address(name), pairs, rows, known)
    now.write(SNAPSHOT, data)
    tested = snapshot.filter(pc.equal(snapshot["split"], TEST))
    now.write(ITEMS, manifest(_openable(pairs, splits)))
    if settings.group_by is not None:
        values = values_by_image(settings.data, settings.group_by, settings.root, settings.storage)
        held = {address: values[address] for address in tested["address"].to_pylist() if address in values}
        now.write_json(GROUPS, held)
    job.store.write(HOLDOUT, holdout.data())
    frozen = {
        "task": "instance" if labels.is_instance else "semantic",
        "labels": name,
        "snapshot": name_of(data),
        "data": {"new": found.new, "changed": found.changed, "removed": found.removed, **counts},
        "holdout": {"version": holdout.version, "name": holdout.name, "images": counts[TEST]},
        "champion": champion,
        "start_from": _start(job, champion),
        "begun_at": _now(),
    }
    now.write_json(ROUND, frozen)
    sizes = ", ".join(f"{number:,} {split}" for split, number in counts.items() if number)
    say(f"round {now.number}: {found.told()}; {sizes}")


def _openable(pairs: Any, splits: list[str]) -> list[str]:
    return [pair.image.uri for pair, split in zip(pairs, splits, strict=True) if split == TEST]


def _trained(before: Any) -> set[str]:
    """Addresses and digests of pictures that a model may have trained on."""
    if before is None:
        return set()
    rows = before.filter(pc.not_equal(before["split"], TEST))
    return {*rows["address"].to_pylist(), *rows["digest"].to_pylist()}


def _enough(found: Any, least: int) -> None:
    if found.number < least:
        raise NothingToDoError(f"data: {found.told()} since the last round; {least} are asked for (min_new)")


def _wait_for_drift(job: Job, champion: str | None) -> None:
    """Raises NothingToDoError while the run that `if_drift` names looks as the champion's answers did."""
    settings = job.settings
    if settings.if_drift is None or champion is None:
        return
    from segray.drift.verb import compare_runs

    record = compare_runs(settings.if_drift, job.address(champion), settings.storage)
    if not record["drifted"]:
        raise NothingToDoError(
            f"if_drift: {shown(settings.if_drift)} did not drift from the champion's profile"
        )
    say(f"{shown(settings.if_drift)} drifted from the champion's profile")


def _check_rejects(settings: RetrainSettings, rejected: list[str], listed: int, what: str) -> None:
    """Raises RejectsError when too many pictures cannot be used."""
    for line in rejected[:_TOLD]:
        say(f"cannot be {what}: {line}", "warning")
    if len(rejected) > settings.max_rejects * listed:
        raise RejectsError(
            f"{len(rejected):,} of {listed:,} pictures cannot be {what}, more than max_rejects "
            f"({settings.max_rejects:g}); nothing was decided"
        )


class RejectsError(SegrayError):
    """Too many pictures are of no use; a person must look."""

    exit_code = ExitCode.REJECTED


# --- train, score, decide ----------------------------------------------------------------------------


def _train(job: Job, now: Round, frozen: dict[str, Any]) -> dict[str, Any]:
    """The challenger; returns the training's record."""
    from segray.train.job import trained

    done: dict[str, Any] | None = now.read_json(f"train/{RUN}")
    if done is not None and now.read(f"train/{MODEL}") is not None:
        return done
    settings = data_of.train_settings(
        job.settings, now.address(frozen["labels"]), now.address("train"), frozen["start_from"]
    )
    code, record = trained(settings)
    if code != ExitCode.DONE:
        raise RejectsError("pictures that could be read when the round began cannot now; run again")
    return record


def _decide(job: Job, now: Round, frozen: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Score both models on the holdout and compare them, once."""
    done: dict[str, Any] | None = now.read_json(DECISION)
    holdout = Holdout.read(job.store.read(HOLDOUT))
    if done is not None:
        _count_look(job, now, holdout, done["look"])
        return done
    champion = job.champion()
    challenger = _scored(job, now, frozen, now.address(f"train/{MODEL}"), "challenger")
    other = None if champion is None else _scored(job, now, frozen, job.address(champion), champion)
    for one in filter(None, (challenger, other)):
        _check_rejects(job.settings, one.lost, frozen["holdout"]["images"], "scored")
    both = in_common([challenger] if other is None else [challenger, other])
    challenger, other = both[0], both[1] if len(both) > 1 else None
    groups = now.read_json(GROUPS) or {}
    found = job.gate.decide(
        challenger.matches,
        None if other is None else other.matches,
        holdout=frozen["holdout"]["name"],
        look=holdout.looks + 1,
        groups={
            key: groups[canonical]
            for key, name in challenger.names.items()
            if (canonical := _canonical(name)) in groups
        },
    )
    decision = {
        **found.to_json(),
        "champion_version": champion,
        "decided_at": _now(),
        "figures": {"challenger": challenger.figures, "champion": other.figures if other else None},
        "lines": found.lines(),
    }
    page = _page(job, now, frozen, decision, challenger, other)
    now.write(REPORT, page.encode())
    now.write_json(DECISION, without_nan(decision))
    _count_look(job, now, holdout, decision["look"])
    stored: dict[str, Any] = now.read_json(DECISION)
    return stored


def _canonical(name: str) -> str:
    from segray.storage import canonical_uri

    return canonical_uri(name)


def _count_look(job: Job, now: Round, holdout: Holdout, look: int) -> None:
    """The holdout's pictures were looked at; once for each decision, however often this is done."""
    snapshot = from_bytes(now.read(SNAPSHOT))
    assert snapshot is not None
    tested = snapshot.filter(pc.equal(snapshot["split"], TEST))
    job.store.write(HOLDOUT, holdout.looked_at(set(tested["digest"].to_pylist()), look).data())


def _scored(job: Job, now: Round, frozen: dict[str, Any], weights: str, name: str) -> Scored:
    labels = now.address(frozen["labels"])
    if frozen["task"] == "instance":
        return score_instances(
            job.settings, weights, labels, now.address(ITEMS), now.address(f"scored/{name}")
        )
    from segray.train.job import design_of, list_data

    settings = data_of.train_settings(job.settings, labels, now.address("train"))
    design: Any = design_of(settings, list_data(settings))
    return score_semantic(job.settings, weights, labels, design.rules, design.names)


def _page(
    job: Job,
    now: Round,
    frozen: dict[str, Any],
    decision: dict[str, Any],
    challenger: Scored,
    other: Scored | None,
) -> str:
    from segray.retrain.pictures import differing_pictures
    from segray.versions import versions

    settings = job.settings
    pictures = differing_pictures(
        challenger, other, settings.pictures, settings.train.get("max_pixels", 100_000_000), settings.storage
    )
    history = [json.loads(line) for line in (now.read(f"train/{METRICS}") or b"").splitlines()]
    record = {
        "model": settings.model,
        "version": f"round {now.number}",
        "time": decision["decided_at"],
        "decision": decision,
        "data": frozen["data"],
        "history": history,
        "versions": {name: str(value) for name, value in versions().items()},
        "links": {"round": shown(now.address()), "registry": shown(settings.registry)},
    }
    return report_page(record, pictures)


# --- the end -----------------------------------------------------------------------------------------


def _register(
    job: Job, now: Round, frozen: dict[str, Any], decision: dict[str, Any], run: dict[str, Any]
) -> str:
    """Keep the challenger as a version, and make it the champion where the decision says so."""
    model = now.read(f"train/{MODEL}")
    if model is None:
        raise JobFailedError(f"{now.address(f'train/{MODEL}')} is gone; run again")
    try:
        version = keep(job.registry, job.settings, now, model, frozen, decision, run)
        promote(job.registry, job.settings, now, version, decision)
    except ChampionChangedError as error:
        now.store.delete(f"{now.folder}/{DECISION}")
        raise JobFailedError(
            f"{error}; the challenger was not compared with it: run again to do so"
        ) from error
    return version


def _end(
    job: Job, now: Round, frozen: dict[str, Any], decision: dict[str, Any], version: str
) -> dict[str, Any]:
    settings = job.settings
    record = {
        "verb": "retrain",
        "round": now.number,
        "model": settings.model,
        "version": version,
        "promoted": decision["promoted"],
        "reasons": decision["reasons"],
        "champion_before": decision["champion_version"],
        "holdout": frozen["holdout"],
        "data": frozen["data"],
        "report": shown(now.address(REPORT)),
        "settings": _settings(settings),
        "finished_at": _now(),
        **job.ray.machines.record(),
    }
    now.write_json(RUN, record)
    job.store.write_json(RUN, record)
    what = "promoted" if decision["promoted"] else "refused"
    LOG.conclude(
        [
            f"{what}: {settings.model}@{version} in round {now.number}",
            *(f"  {line}" for line in decision["lines"][1:]),
            f"report: {record['report']}",
        ]
    )
    return record


def _settings(settings: RetrainSettings) -> Any:
    import yaml

    from segray.settings import printable

    return yaml.safe_load(printable(settings))


def _label(job: Job, record: dict[str, Any]) -> None:
    """Annotate with a new champion, where that is asked for; its trouble is its own."""
    if not job.settings.label or not record["promoted"]:
        return
    from segray.annotate.verb import Annotate
    from segray.bulk.job import done
    from segray.retrain.settings import without_environment
    from segray.settings import AnnotateSettings

    settings = job.settings
    own = {"storage": settings.storage, "ray": settings.ray, "device": settings.device}
    given = {**settings.label, **own, "weights": job.address(record["version"])}
    with suppress(NothingToDoError):
        code, _ = done(Annotate(without_environment(AnnotateSettings, given)))
        if code != ExitCode.DONE:
            say(f"label: annotate ended with exit code {int(code)}", "warning")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
