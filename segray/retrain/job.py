"""`segray retrain`, step by step: list, freeze, train, score, decide, register, notify.

A killed round is continued: every step writes its result to the round's folder and is not repeated. The
inputs of later steps are frozen when the round begins: labels, holdout, the model to start from.
"""

import time
from typing import Any

from segray.annotate.settings import AnnotateSettings
from segray.cluster import RayStart
from segray.errors import (
    ExitCode,
    HeldError,
    JobFailedError,
    NothingToDoError,
    SegrayError,
    SettingsError,
)
from segray.log import LOG, answer, say
from segray.machines import outcome_of
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.output.names import MODEL, PLAN, RUN
from segray.registry.mlflow_mirror import check_mirror
from segray.registry.registry import Registry
from segray.retrain import data as data_of
from segray.retrain.champion_challenger import decide
from segray.retrain.columns import values_by_image
from segray.retrain.gate import Gate
from segray.retrain.notify import notify
from segray.retrain.promotion import ChampionChangedError, keep, promote
from segray.retrain.rounds import (
    DECISION,
    LABEL,
    REPORT,
    ROUND,
    Round,
    check_plan,
    now_utc,
    rounds,
)
from segray.retrain.settings import RetrainSettings
from segray.retrain.start_round import (
    Job,
    RejectsError,
    begin,
    quick_news,
    snapshot_before,
    start_of,
)
from segray.run import Problems, on_ray
from segray.settings import without_environment
from segray.storage import shown


def retrain(settings: RetrainSettings) -> ExitCode:
    """Run one round: a new champion (0), a refusal (5), or nothing to do (4). Every end goes to `notify`.

    Raises SettingsError for problems found before work begins, NothingToDoError where too few labels are new,
    JobFailedError where a step fails.
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
    """Return the record of the finished round; None for a dry run."""
    with on_ray(settings, _load_ray) as ray:
        job, lease = _prepare(settings, ray)
        if settings.dry_run:
            _print_plan(job)
            return None
        try:
            with lease:
                ray.machines.inherit(lease.hours)
                lease.tell = ray.machines.record
                job.store.write_json(PLAN, check_plan(job.store, settings))
                return _round(job)
        except HeldError as error:
            raise NothingToDoError(*error.lines) from error


def _load_ray() -> None:
    from segray.bulk import pipeline  # noqa: F401


def _prepare(settings: RetrainSettings, ray: RayStart) -> tuple[Job, Lease[Output]]:
    """Check output and registry; raise SettingsError with all problems at once."""
    problems = Problems()
    attempt = problems.attempt
    store = Output(settings.output, settings.storage)
    registry = Registry(settings.registry, settings.storage)
    lease = Lease(store)
    try:
        attempt(store.check_usable)
        attempt(lambda: check_plan(store, settings))
        attempt(lambda: lease.refuse_second_run(watches=False))
    except HeldError as error:
        raise NothingToDoError(*error.lines) from error
    attempt(registry.check_usable)
    attempt(check_mirror)
    attempt(ray.check)
    if settings.group_by is not None:
        attempt(
            lambda: values_by_image(settings.data, settings.group_by or "", settings.root, settings.storage)
        )
    elif settings.gate.floors or settings.gate.group_drop is not None:
        problems.lines.append("gate.floors, gate.group_drop: set group_by, the column that names the groups")
    if problems:
        raise problems.error()
    gate = Gate(margin=settings.margin, **settings.gate.model_dump())
    return Job(settings, store, registry, ray, gate), lease


def _print_plan(job: Job) -> None:
    """Print what a round would do, for a dry run."""
    open_rounds = [each for each in rounds(job.store, job.settings.output) if not each.is_over]
    champion, before = job.champion(), snapshot_before(job)
    found, listed = quick_news(job, champion, before)
    does = f"round {open_rounds[-1].number} would be continued" if open_rounds else _would(job, found.number)
    answer(
        [
            f"labels: {listed:,} images, {found.text()} since the last round",
            f"champion: {champion or 'none yet'}; start: {start_of(job, champion) or 'scratch'}",
            does,
            "dry run: nothing was written",
        ]
    )


def _would(job: Job, number: int) -> str:
    enough = number >= job.settings.min_new
    return "a round would begin" if enough else f"nothing would be done: min_new is {job.settings.min_new}"


# --- a round -----------------------------------------------------------------------------------------


def _round(job: Job) -> dict[str, Any]:
    """Begin a round or continue the last one, to its end; return its record."""
    there = rounds(job.store, job.settings.output)
    last = there[-1] if there else None
    if last is not None and not last.is_over and last.is_begun:
        say(f"continuing round {last.number}")
        now = last
    else:
        is_over = last is not None and last.is_over
        if last is not None and is_over:
            _label(job, last)  # if that was not finished
        number = 1 if last is None else last.number + is_over
        now = Round(job.store, number, job.settings.output)
        begin(job, now)
    frozen = now.read_json(ROUND)
    if now.read(DECISION) is None:
        job.ray.begin()
    try:
        run = _train(job, now, frozen)
        decision = decide(job, now, frozen)
    except HeldError:
        raise
    except (SettingsError, RejectsError) as error:
        raise type(error)(*error.lines, _way_out(now, frozen)) from error
    version = _register(job, now, frozen, decision, run)
    record = _end(job, now, frozen, decision, version)
    _label(job, now)
    return record


def _way_out(now: Round, frozen: dict[str, Any]) -> str:
    return (
        f"this is round {now.number}, begun {frozen.get('begun_at', 'before')}: it continues with the "
        f"settings and files with which it began; to restart it, delete {shown(now.address())}"
    )


def _train(job: Job, now: Round, frozen: dict[str, Any]) -> dict[str, Any]:
    """Train the challenger; return the training's record."""
    from segray.train.job import trained

    done: dict[str, Any] | None = now.read_json(f"train/{RUN}")
    if done is not None and now.read(f"train/{MODEL}") is not None:
        return done
    settings = data_of.train_settings(
        job.settings, now.address(frozen["labels"]), now.address("train"), frozen["start_from"]
    )
    code, record = trained(settings)
    if code != ExitCode.DONE:
        raise RejectsError("images that were readable when the round began are not readable now")
    return record


# --- the end -----------------------------------------------------------------------------------------


def _register(
    job: Job, now: Round, frozen: dict[str, Any], decision: dict[str, Any], run: dict[str, Any]
) -> str:
    """Add the challenger as a version, and make it the champion if the decision is to promote."""
    model = now.read(f"train/{MODEL}")
    if model is None:
        raise JobFailedError(f"{now.address(f'train/{MODEL}')} is missing; run again")
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
        "finished_at": now_utc(),
        **job.ray.machines.record(),
    }
    if decision["promoted"] and settings.label:
        now.write_json(LABEL, {"version": version, "done": False})
    job.store.write_json(RUN, record)  # first: with its own record the round is over, and not looked at again
    now.write_json(RUN, record)
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


def _label(job: Job, now: Round) -> None:
    """Annotate with a new champion if `label` is set; an error is a warning, and the next run continues."""
    pending = now.read_json(LABEL)
    if not pending or pending["done"] or not job.settings.label or pending["version"] != job.champion():
        return
    from segray.annotate.task import Annotate
    from segray.bulk.job import done

    settings = job.settings
    own = {"storage": settings.storage, "ray": settings.ray, "device": settings.device}
    given = {**settings.label, **own, "weights": job.address(pending["version"])}
    job.ray.begin()
    try:
        code, _ = done(Annotate(without_environment(AnnotateSettings, given)))
    except NothingToDoError as error:
        say(f"label: {error}", "warning")
    except SegrayError as error:
        say(f"label: {error}; the next run tries again", "warning")
        return
    else:
        if code != ExitCode.DONE:
            say(f"label: annotate ended with exit code {int(code)}", "warning")
    now.write_json(LABEL, pending | {"done": True})
