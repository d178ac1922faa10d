"""The beginning of a round: what is new, what is held out, and all of it frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segray.cluster import RayStart
from segray.errors import ExitCode, NothingToDoError, SegrayError, SettingsError
from segray.log import say
from segray.output.folder import Output
from segray.output.names import MODEL, RUN, SCORES
from segray.registry.adding import card_of
from segray.registry.address import RegistryAddress
from segray.registry.registry import SNAPSHOT as KEPT_SNAPSHOT
from segray.registry.registry import Registry
from segray.retrain import data as data_of
from segray.retrain.columns import values_by_image
from segray.retrain.gate import Gate
from segray.retrain.holdout import Holdout, deal
from segray.retrain.labels import (
    LEFT_OUT,
    TEST,
    News,
    from_bytes,
    name_of,
    names_from,
    names_to_bytes,
    news,
    snapshot_of,
    to_bytes,
    trained_in,
    unread_news,
)
from segray.retrain.rounds import GROUPS, HOLDOUT, ITEMS, ROUND, SNAPSHOT, TRAINED, Round, now_utc, rounds
from segray.retrain.scoring import manifest
from segray.retrain.settings import RetrainSettings
from segray.storage import shown

_TOLD = 10
"""Problems that are said."""


class RejectsError(SegrayError):
    """Too many pictures are of no use; a person must look."""

    exit_code = ExitCode.REJECTED


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


def snapshot_before(job: Job) -> pa.Table | None:
    """Of the last round that is over; else what the champion was trained on; None where nobody knows."""
    over = [each for each in rounds(job.store, job.settings.output) if each.is_over]
    if over:
        return from_bytes(over[-1].read(SNAPSHOT))
    champion = job.champion()
    if champion is None:
        return None
    return from_bytes(job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT))


def start_of(job: Job, champion: str | None) -> str | None:
    """Weights that the challenger starts from; None: from scratch."""
    return None if champion is None or job.settings.start == "scratch" else job.address(champion)


def quick_news(job: Job, champion: str | None, before: pa.Table | None) -> tuple[News, int]:
    """(The most that can be new, pictures listed): nothing is opened, and no model is loaded."""
    known = data_of.train_settings(job.settings, job.settings.data, job.settings.output)
    if "arch" not in job.settings.train and champion is not None:
        run = job.registry.read_json(job.settings.model, champion, RUN) or {}
        arch = (run.get("settings") or {}).get("arch")
        if arch is None:  # a file that somebody added
            return _unread(data_of.listed(job.settings, start_of(job, champion)), before)
        known = known.model_copy(update={"arch": arch})
    return _unread(data_of.listed_as(job.settings, known), before)


def _unread(labels: data_of.Listed, before: pa.Table | None) -> tuple[News, int]:
    pairs = labels.pairs.pairs
    return unread_news(pairs, before, labels.categories), len(pairs)


def begin(job: Job, now: Round) -> None:
    """Find what is new, and freeze what the round is about. Raises NothingToDoError."""
    settings, champion, before = job.settings, job.champion(), snapshot_before(job)
    _wait_for_drift(job, champion)
    _enough(quick_news(job, champion, before)[0], settings.min_new)
    job.ray.begin()
    start = start_of(job, champion)
    labels = data_of.listed(settings, start)
    unknown = _unknown_to(job, champion, labels)
    pairs, rows, rejected = data_of.scanned(labels, job.store, job.ray)
    check_rejects(settings, rejected, len(labels.pairs.pairs) + len(labels.pairs.rejected), "read")
    holdout = _holdout(job, champion, before)
    trained = _trained(job, champion, before)
    splits = deal(
        pairs,
        rows,
        holdout,
        trained,
        share=settings.holdout_share,
        seed=settings.split_seed,
        look_alikes=settings.group_look_alikes,
    )
    snapshot = snapshot_of(pairs, rows, splits, labels.categories)
    _say_flattered(job, champion, snapshot)
    found = news(snapshot, before)
    _enough(found, settings.min_new)
    counts = {split: splits.count(split) for split in ("train", "val", TEST, LEFT_OUT)}
    if not counts[TEST]:
        raise SettingsError(
            f"data: none of {len(pairs):,} pictures is held out; name `test` as the split of some, or raise "
            "holdout_share"
        )
    name = data_of.freeze(labels, pairs, splits, job.store, now.folder)
    training = data_of.train_settings(settings, now.address(name), now.address("train"), start)
    data_of.hand_over_scan(labels, pairs, rows, training)
    now.write(SNAPSHOT, to_bytes(snapshot))
    now.write(
        ITEMS, manifest([pair.image.uri for pair, split in zip(pairs, splits, strict=True) if split == TEST])
    )
    write_groups(job, now, snapshot)
    holdout = holdout.joined_by(snapshot)
    job.store.write(HOLDOUT, holdout.data())
    job.store.write(TRAINED, names_to_bytes(trained | trained_in(snapshot)))
    frozen = {
        "task": "instance" if labels.is_instance else "semantic",
        "labels": name,
        "snapshot": name_of(to_bytes(snapshot)),
        "data": {"new": found.new, "changed": found.changed, "removed": found.removed, **counts},
        "holdout": {"version": holdout.version, "name": holdout.name, "images": counts[TEST]},
        "champion": champion,
        "start_from": start,
        "group_by": settings.group_by,
        "unknown_to_champion": unknown,
        "begun_at": now_utc(),
    }
    now.write_json(ROUND, frozen)
    sizes = ", ".join(f"{number:,} {split}" for split, number in counts.items() if number)
    say(f"round {now.number}: {found.told()}; {sizes}")


def _unknown_to(job: Job, champion: str | None, labels: data_of.Listed) -> list[str]:
    """Classes of the labels that the champion does not have: on them it scores nothing.

    Raises SettingsError for a champion of the other task, which could not be compared.
    """
    if champion is None:
        return []
    model = f"{job.settings.model}@{champion}"
    about = card_of(model, job.registry.read(job.settings.model, champion, MODEL) or b"")
    if (about["task"] == "instance") != labels.is_instance:
        kind = "instance" if labels.is_instance else "semantic"
        raise SettingsError(
            f"train.arch: {model} is a model of {about['task']} labels, this would train one of {kind} "
            "labels; use another --model"
        )
    known = set(about["classes"].values())
    unknown = [name for name in labels.class_names if name not in known]
    if unknown:
        say(f"{told_unknown(unknown)}: where it was renamed, give the labels the name it had", "warning")
    return unknown


def told_unknown(names: Sequence[str]) -> str:
    """A sentence without its end."""
    return f"The champion does not know {', '.join(names)}, and scores nothing there"


def _holdout(job: Job, champion: str | None, before: pa.Table | None) -> Holdout:
    """What is held out so far; where the output is gone, what the champion was scored on."""
    holdout = Holdout.read(job.store.read(HOLDOUT))
    if holdout.version or before is None or champion is None:
        return holdout
    holdout = holdout.joined_by(before)
    metrics = job.registry.read_json(job.settings.model, champion, SCORES) or {}
    looks = int((metrics.get("holdout") or {}).get("looks") or 0)
    return holdout.looked_at(set(holdout.table["digest"].to_pylist()), looks)


def write_groups(job: Job, now: Round, snapshot: pa.Table) -> None:
    """Keep the groups of the held-out pictures. Raises SettingsError where none of them has one."""
    settings = job.settings
    if settings.group_by is None:
        return
    values = values_by_image(settings.data, settings.group_by, settings.root, settings.storage)
    held = snapshot.filter(pc.equal(snapshot["split"], TEST))["address"].to_pylist()
    found = {address: values[address] for address in held if address in values}
    if not found:
        raise SettingsError(
            f"group_by: none of the {len(held):,} held-out pictures has a {settings.group_by}; the data name "
            f"others, the first is {min(values)}"
        )
    now.write_json(GROUPS, found)


def _trained(job: Job, champion: str | None, before: pa.Table | None) -> set[str]:
    """Addresses and digests of pictures that a model may have trained on, also of those that are gone."""
    trained = names_from(job.store.read(TRAINED))
    if before is not None:
        trained |= trained_in(before)
    if champion is not None:  # it may come from elsewhere
        kept = from_bytes(job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT))
        if kept is not None:
            trained |= trained_in(kept)
        else:
            say(
                f"the registry does not know what {job.settings.model}@{champion} was trained on: pictures "
                "that it learned from may be held out, and flatter it; add it as the output of its training",
                "warning",
            )
    return trained


def _say_flattered(job: Job, champion: str | None, snapshot: pa.Table) -> None:
    """Another output of this model may have trained its champion on what this one holds out."""
    kept = None if champion is None else job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT)
    there = from_bytes(kept)
    if there is None:
        return
    learned = there.filter(pc.is_in(there["split"], value_set=pa.array(["train", "val"])))
    held = snapshot.filter(pc.equal(snapshot["split"], TEST))
    number = pc.sum(pc.is_in(held["digest"], value_set=learned["digest"].combine_chunks())).as_py() or 0
    if number:
        say(
            f"{number:,} of {held.num_rows:,} held-out pictures trained the champion, which was made with "
            "another output: they flatter it; keep to one output for a model",
            "warning",
        )


def _enough(found: News, least: int) -> None:
    if found.number < least:
        raise NothingToDoError(f"data: {found.told()} since the last round; {least} are asked for (min_new)")


def _wait_for_drift(job: Job, champion: str | None) -> None:
    """Raises NothingToDoError while the run that `if_drift` names looks as the champion's answers did."""
    settings = job.settings
    if settings.if_drift is None or champion is None:
        return
    from segray.drift.job import compare_runs

    record = compare_runs(settings.if_drift, job.address(champion), settings.storage)
    if not record["drifted"]:
        raise NothingToDoError(
            f"if_drift: {shown(settings.if_drift)} did not drift from the champion's profile"
        )
    say(f"{shown(settings.if_drift)} drifted from the champion's profile")


def check_rejects(settings: RetrainSettings, rejected: Sequence[str], listed: int, what: str) -> None:
    """Raises RejectsError when too many pictures cannot be used."""
    for line in rejected[:_TOLD]:
        say(f"cannot be {what}: {line}", "warning")
    if len(rejected) > settings.max_rejects * listed:
        raise RejectsError(
            f"{len(rejected):,} of {listed:,} pictures cannot be {what}, more than max_rejects "
            f"({settings.max_rejects:g}); nothing was decided"
        )
