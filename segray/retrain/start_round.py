"""Begin a round: find new labels, assign the holdout, freeze the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segray.cluster import RayStart
from segray.errors import ExitCode, NothingToDoError, SegrayError, SettingsError
from segray.log import say
from segray.output.folder import Output
from segray.output.names import MODEL, RUN, SCORES
from segray.registry.add import card_of
from segray.registry.address import RegistryAddress
from segray.registry.registry import SNAPSHOT as KEPT_SNAPSHOT
from segray.registry.registry import Registry
from segray.retrain import data as data_of
from segray.retrain.columns import values_by_image
from segray.retrain.gate import Gate
from segray.retrain.holdout import Holdout, assign_splits
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

_PRINTED = 10
"""Maximum number of rejected images to print."""


class RejectsError(SegrayError):
    """Too many images cannot be used; a person must check."""

    exit_code = ExitCode.REJECTED


@dataclass(frozen=True)
class Job:
    """Settings, output, registry and gate that every step of a round uses."""

    settings: RetrainSettings
    store: Output
    registry: Registry
    ray: RayStart
    gate: Gate

    def champion(self) -> str | None:
        """Return the present champion's version; None where there is none."""
        return self.registry.aliases(self.settings.model).champion

    def address(self, version: str) -> str:
        """Return the `--weights` value of a version."""
        return str(RegistryAddress(self.settings.registry.rstrip("/"), self.settings.model, version))


def snapshot_before(job: Job) -> pa.Table | None:
    """Return the last finished round's snapshot (schema SNAPSHOT), else the champion's; None if unknown."""
    over = [each for each in rounds(job.store, job.settings.output) if each.is_over]
    if over:
        return from_bytes(over[-1].read(SNAPSHOT))
    champion = job.champion()
    if champion is None:
        return None
    return from_bytes(job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT))


def start_of(job: Job, champion: str | None) -> str | None:
    """Return the weights from which the challenger starts; None: from scratch."""
    return None if champion is None or job.settings.start == "scratch" else job.address(champion)


def quick_news(job: Job, champion: str | None, before: pa.Table | None) -> tuple[News, int]:
    """Return (upper limit of what is new, images listed) without opening a file or loading a model."""
    known = data_of.train_settings(job.settings, job.settings.data, job.settings.output)
    if "arch" not in job.settings.train and champion is not None:
        run = job.registry.read_json(job.settings.model, champion, RUN) or {}
        arch = (run.get("settings") or {}).get("arch")
        if arch is None:  # a file that was added by hand
            return _unread(data_of.listed(job.settings, start_of(job, champion)), before)
        known = known.model_copy(update={"arch": arch})
    return _unread(data_of.listed_as(job.settings, known), before)


def _unread(labels: data_of.Listed, before: pa.Table | None) -> tuple[News, int]:
    pairs = labels.pairs.pairs
    return unread_news(pairs, before, labels.categories), len(pairs)


def begin(job: Job, now: Round) -> None:
    """Find new labels, and freeze the data of the round.

    Raises NothingToDoError where too few labels are new, SettingsError where nothing is held out,
    RejectsError where too many images cannot be read.
    """
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
    splits = assign_splits(
        pairs,
        rows,
        holdout,
        trained,
        share=settings.holdout_share,
        seed=settings.split_seed,
        look_alikes=settings.group_look_alikes,
    )
    snapshot = snapshot_of(pairs, rows, splits, labels.categories)
    _warn_of_leakage(job, champion, snapshot)
    found = news(snapshot, before)
    _enough(found, settings.min_new)
    counts = {split: splits.count(split) for split in ("train", "val", TEST, LEFT_OUT)}
    if not counts[TEST]:
        raise SettingsError(
            f"data: none of {len(pairs):,} images is held out; set the split `test` for some, or increase "
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
    say(f"round {now.number}: {found.text()}; {sizes}")


def _unknown_to(job: Job, champion: str | None, labels: data_of.Listed) -> list[str]:
    """Return the classes of the labels that the champion lacks: it scores 0 on them.

    Raises SettingsError for a champion of the other task, which could not be compared.
    """
    if champion is None:
        return []
    model = f"{job.settings.model}@{champion}"
    about = card_of(model, job.registry.read(job.settings.model, champion, MODEL) or b"")
    if (about["task"] == "instance") != labels.is_instance:
        kind = "instance" if labels.is_instance else "semantic"
        raise SettingsError(
            f"train.arch: {model} is a model for {about['task']} labels, this would train one for {kind} "
            "labels; use another --model"
        )
    known = set(about["classes"].values())
    unknown = [name for name in labels.class_names if name not in known]
    if unknown:
        say(f"{unknown_classes(unknown)}: if a class was renamed, use its old name in the labels", "warning")
    return unknown


def unknown_classes(names: Sequence[str]) -> str:
    """Return a sentence on classes that the champion lacks, without its full stop."""
    return f"The champion lacks the class {', '.join(names)}, and scores 0 there"


def _holdout(job: Job, champion: str | None, before: pa.Table | None) -> Holdout:
    """Return the holdout so far; where the output is lost, the images on which the champion was scored."""
    holdout = Holdout.read(job.store.read(HOLDOUT))
    if holdout.version or before is None or champion is None:
        return holdout
    holdout = holdout.joined_by(before)
    metrics = job.registry.read_json(job.settings.model, champion, SCORES) or {}
    looks = int((metrics.get("holdout") or {}).get("looks") or 0)
    return holdout.looked_at(set(holdout.table["digest"].to_pylist()), looks)


def write_groups(job: Job, now: Round, snapshot: pa.Table) -> None:
    """Write the groups of the held-out images. Raises SettingsError where none of them has one."""
    settings = job.settings
    if settings.group_by is None:
        return
    values = values_by_image(settings.data, settings.group_by, settings.root, settings.storage)
    held = snapshot.filter(pc.equal(snapshot["split"], TEST))["address"].to_pylist()
    found = {address: values[address] for address in held if address in values}
    if not found:
        raise SettingsError(
            f"group_by: none of the {len(held):,} held-out images has a {settings.group_by}; the data have "
            f"it for other images, the first is {min(values)}"
        )
    now.write_json(GROUPS, found)


def _trained(job: Job, champion: str | None, before: pa.Table | None) -> set[str]:
    """Return addresses and digests of images on which a model may have trained, deleted ones included."""
    trained = names_from(job.store.read(TRAINED))
    if before is not None:
        trained |= trained_in(before)
    if champion is not None:  # it may come from elsewhere
        kept = from_bytes(job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT))
        if kept is not None:
            trained |= trained_in(kept)
        else:
            say(
                f"the registry has no snapshot of the labels of {job.settings.model}@{champion}: images of "
                "its training may be held out and inflate its score; add it as the output of its training",
                "warning",
            )
    return trained


def _warn_of_leakage(job: Job, champion: str | None, snapshot: pa.Table) -> None:
    """Warn where the champion was trained, with another output, on images that this one holds out."""
    kept = None if champion is None else job.registry.read(job.settings.model, champion, KEPT_SNAPSHOT)
    there = from_bytes(kept)
    if there is None:
        return
    learned = there.filter(pc.is_in(there["split"], value_set=pa.array(["train", "val"])))
    held = snapshot.filter(pc.equal(snapshot["split"], TEST))
    number = pc.sum(pc.is_in(held["digest"], value_set=learned["digest"].combine_chunks())).as_py() or 0
    if number:
        say(
            f"{number:,} of {held.num_rows:,} held-out images trained the champion, which was made with "
            "another output: they inflate its score; use one output for a model",
            "warning",
        )


def _enough(found: News, least: int) -> None:
    if found.number < least:
        raise NothingToDoError(f"data: {found.text()} since the last round; min_new is {least}")


def _wait_for_drift(job: Job, champion: str | None) -> None:
    """Raise NothingToDoError while the run of `if_drift` has not drifted from the champion's profile."""
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
    """Raise RejectsError where more than `max_rejects` of the images cannot be used."""
    for line in rejected[:_PRINTED]:
        say(f"cannot be {what}: {line}", "warning")
    if len(rejected) > settings.max_rejects * listed:
        raise RejectsError(
            f"{len(rejected):,} of {listed:,} images cannot be {what}, more than max_rejects "
            f"({settings.max_rejects:g}); nothing was decided"
        )
