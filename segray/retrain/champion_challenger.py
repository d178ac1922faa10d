"""Score champion and challenger on the held-out images, decide, and write the report page."""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segray.errors import JobFailedError
from segray.evaluate.report import without_nan
from segray.output.names import METRICS, MODEL
from segray.registry.registry import PROFILE
from segray.retrain import data as data_of
from segray.retrain.holdout import Holdout
from segray.retrain.labels import TEST, from_bytes
from segray.retrain.report import report_page
from segray.retrain.rounds import DECISION, GROUPS, HOLDOUT, ITEMS, REPORT, SNAPSHOT, Round, now_utc
from segray.retrain.scoring import Scored, in_common, score_instances, score_semantic
from segray.retrain.start_round import Job, check_rejects, unknown_classes, write_groups
from segray.storage import canonical_uri, shown


def decide(job: Job, now: Round, frozen: dict[str, Any]) -> dict[str, Any]:
    """Score both models on the holdout and compare them, once; return the decision's record.

    Raises JobFailedError where scoring fails, RejectsError where too many images cannot be scored.
    """
    done: dict[str, Any] | None = now.read_json(DECISION)
    holdout = Holdout.read(job.store.read(HOLDOUT))
    if done is not None:
        _count_look(job, now, holdout, done)
        return done
    champion = job.champion()
    challenger = _scored(job, now, frozen, now.address(f"train/{MODEL}"), "challenger")
    other = None if champion is None else _scored(job, now, frozen, job.address(champion), champion)
    for one in filter(None, (challenger, other)):
        check_rejects(job.settings, one.lost, frozen["holdout"]["images"], "scored")
    both = in_common([challenger] if other is None else [challenger, other])
    challenger, other = both[0], both[1] if len(both) > 1 else None
    if job.settings.group_by != frozen.get("group_by"):  # changed since the round began
        write_groups(job, now, _snapshot(now))
    groups = (now.read_json(GROUPS) or {}) if job.settings.group_by else {}
    found = job.gate.decide(
        challenger.matches,
        None if other is None else other.matches,
        holdout=frozen["holdout"]["name"],
        look=holdout.looks + 1,
        promotions=min(_promotions(job), holdout.looks),
        groups={
            key: groups[canonical]
            for key, name in challenger.names.items()
            if (canonical := canonical_uri(name)) in groups
        },
    )
    if other is not None and frozen.get("unknown_to_champion"):
        found = replace(found, notes=(*found.notes, f"{unknown_classes(frozen['unknown_to_champion'])}."))
    decision = {
        **found.to_json(),
        "champion_version": champion,
        "decided_at": now_utc(),
        "figures": {"challenger": challenger.figures, "champion": other.figures if other else None},
        "lines": found.lines(),
    }
    _keep_profile(job, now, challenger)
    page = _page(job, now, frozen, decision, challenger, other)
    now.write(REPORT, page.encode())
    now.write_json(DECISION, without_nan(decision))
    _count_look(job, now, holdout, decision)
    stored: dict[str, Any] = now.read_json(DECISION)
    return stored


def _promotions(job: Job) -> int:
    """Return the number of comparisons that replaced a champion: they revealed a bit of the holdout each."""
    history = job.registry.aliases(job.settings.model).history
    return sum(
        event.what == "promote" and event.before is not None and event.run is not None for event in history
    )


def _keep_profile(job: Job, now: Round, challenger: Scored) -> None:
    """Write the profile of the challenger's predictions, for `segray drift`."""
    if not challenger.run:
        return
    from segray.drift.reading import profile_of

    profile = profile_of(challenger.run, job.settings.storage, above=job.settings.kept_score)
    now.write(PROFILE, profile.to_json().encode())


def _count_look(job: Job, now: Round, holdout: Holdout, decision: dict[str, Any]) -> None:
    """Count the comparison as a look at the holdout's images; repeating it does not count twice."""
    if decision["champion_version"] is None:
        return
    snapshot = _snapshot(now)
    tested = snapshot.filter(pc.equal(snapshot["split"], TEST))
    job.store.write(HOLDOUT, holdout.looked_at(set(tested["digest"].to_pylist()), decision["look"]).data())


def _snapshot(now: Round) -> pa.Table:
    snapshot = from_bytes(now.read(SNAPSHOT))
    if snapshot is None:
        raise JobFailedError(f"{shown(now.address(SNAPSHOT))} is missing; restore it, or delete the round")
    return snapshot


def _scored(job: Job, now: Round, frozen: dict[str, Any], weights: str, name: str) -> Scored:
    labels = now.address(frozen["labels"])
    if frozen["task"] == "instance":
        return score_instances(
            job.settings, weights, labels, now.address(ITEMS), now.address(f"scored/{name}")
        )
    from segray.train.tasks import kind_of

    settings = data_of.train_settings(job.settings, labels, now.address("train"))
    kind = kind_of(settings)
    task: Any = kind.of(settings, kind.list_data(settings))
    return score_semantic(job.settings, weights, labels, task.rules, task.names)


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
    pictures = differing_pictures(challenger, other, settings.pictures, settings.max_pixels, settings.storage)
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
