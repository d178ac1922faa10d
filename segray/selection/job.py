"""`segray select`, step by step: read the run, run its model again where needed, measure, choose, write."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.atomic import put_atomically
from segray.errors import ExitCode, JobFailedError, NothingToDoError
from segray.log import LOG, answer, say
from segray.output.io import read_if_there
from segray.retries import retrying
from segray.selection.checks import Run, checked
from segray.selection.choose import Chosen, Floats, candidates_of, combined, quotas, shares_below, spread
from segray.selection.manifest import by_group, data_of, manifest_of
from segray.selection.read_measures import add_measures, features_of, measure_files
from segray.selection.reading import Pool, add_instances, add_quality, annotated_in
from segray.selection.settings import PASS_THRESHOLD, SelectSettings
from segray.sources.concurrent_requests import describe
from segray.storage import canonical_uri, open_filesystem, shown

CRITERIA = ("unsure", "flips", "windows", "against")
_PLAIN = ("instances", "score", "log_area", "brightness", "sharpness")
"""Measures that stand in for features where there is no second pass."""


def select(settings: SelectSettings) -> ExitCode:
    """Write a manifest of the images that a person should look at next.

    Raises SettingsError for errors found before work begins, NothingToDoError where nothing can be selected,
    JobFailedError for later failures.
    """
    run, pool = checked(settings)
    if not settings.from_run_only and not _has_pass(settings, run):
        from segray.selection.second_pass import say_cost

        say_cost(settings, run.record, _lacks(run))
    if settings.dry_run:
        answer(
            [
                f"would select {min(settings.budget, pool.free):,} of {pool.free:,} images",
                "dry run: nothing was written",
            ]
        )
        return ExitCode.DONE
    if not settings.from_run_only:
        _run_model(settings, run)
    available = _measure(pool, run, settings)
    score, shares = _scored(pool, available)
    chosen = _chosen(pool, available, score, settings)
    table = manifest_of(pool, settings.run[0], chosen, score, shares, settings.storage)
    _write(settings, data_of(table, settings.output))
    _conclude(settings, pool, available, list(shares), table)
    return ExitCode.DONE


def _lacks(run: Run) -> list[str]:
    """Return what the run's tables do not hold."""
    if run.verb == "predict":
        return ["uncertainty of its pixels", "features"]
    low = [f"scores below {run.threshold:g}"] if run.threshold > PASS_THRESHOLD else []
    return [*low, "features"]


def _run_model(settings: SelectSettings, run: Run) -> None:
    """Run the second pass, unless it is there, finished, of the same settings and as many images."""
    from segray.selection.second_pass import run_pass

    if _has_pass(settings, run):
        say(f"the second pass in {shown(settings.pass_output)} is finished: it is used again")
        return
    run_pass(settings, run.verb, run.record)
    _put(_note(settings), json.dumps(_of_pass(settings, run), indent=2).encode() + b"\n", settings)


def _note(settings: SelectSettings) -> str:
    return f"{settings.pass_output.rstrip('/')}/select.json"


def _of_pass(settings: SelectSettings, run: Run) -> dict[str, Any]:
    """Return what a pass is of; with another run it is run again, and does only what is missing."""
    digest = hashlib.sha256(json.dumps(run.record, sort_keys=True).encode()).hexdigest()
    return {"run": canonical_uri(settings.run[0]), "digest": digest, "flips": settings.flips}


def _has_pass(settings: SelectSettings, run: Run) -> bool:
    """Return whether the second pass is there, finished, of this state of the run."""
    there = read_if_there(_note(settings), settings.storage, "work")
    try:
        return there is not None and bool(json.loads(there) == _of_pass(settings, run))
    except ValueError:
        return False


def _measure(pool: Pool, run: Run, settings: SelectSettings) -> NDArray[np.bool_]:
    """Add all measures to the pool; return which images can be selected, (n,)."""
    source = settings.run[0] if settings.from_run_only else settings.pass_output
    storage = settings.storage
    available = ~pool.labelled & annotated_in(pool, source, storage)
    if run.verb == "annotate":
        add_instances(pool, source, run.threshold, settings.unsure, storage)
    if settings.from_run_only:
        add_quality(pool, source, storage)
        if run.verb == "predict":
            from segray.selection.probabilities import add_entropy  # rasterio, which others do not need

            add_entropy(pool, source, storage)
    else:
        add_measures(pool, measure_files(source, storage), storage)
    if not available.any():
        raise NothingToDoError(f"nothing to select: {pool.left_out()}; the second pass rejected the others")
    return available


def _scored(pool: Pool, available: NDArray[np.bool_]) -> tuple[Floats, dict[str, Floats]]:
    """Return the score of each image, NaN where it cannot be selected, and each criterion's share below."""
    shares = {}
    for name in CRITERIA:
        values = pool.measures.get(name)
        if values is not None and not np.isnan(values[available]).all():
            shares[name] = shares_below(np.where(available, values, np.nan).astype(np.float32))
    if not shares:
        say("the run has no scores: images are chosen for being unlike each other alone", "warning")
    score = combined(list(shares.values())) if shares else np.zeros(len(pool))
    return np.where(available, score, np.nan), shares


def _chosen(pool: Pool, available: NDArray[np.bool_], score: Floats, settings: SelectSettings) -> Chosen:
    """Return the choice: candidates by score, then different ones among them, groups alike."""
    rng = np.random.default_rng(settings.seed)
    order = sorted(
        range(len(pool.groups)), key=lambda each: (pool.groups[each] is None, pool.groups[each] or "")
    )
    rank = np.argsort(order).astype(np.int32)
    group = rank[pool.group]  # by name: the order of files must not count
    sizes = np.bincount(group[available], minlength=len(order)).tolist()
    budgets = quotas(sizes, settings.budget)
    index = candidates_of(score, group, budgets, settings.candidates, rng)
    labelled = np.flatnonzero(pool.labelled)
    features = _features(pool, np.concatenate([index, labelled]), settings)
    own, others = (None, None) if features is None else (features[: len(index)], features[len(index) :])
    if others is not None:
        others = others[~np.isnan(others).any(1)]
    chosen = spread(score[index], group[index], own, others, budgets, rng)
    return Chosen(index[chosen.index], chosen.distance)


def _features(pool: Pool, wanted: NDArray[np.int64], settings: SelectSettings) -> NDArray[np.float32] | None:
    """Return features of some images, of unit variance in all; None where there are none."""
    if settings.from_run_only:
        columns = [pool.measures[name][wanted] for name in _PLAIN if name in pool.measures]
        found = np.stack(columns, axis=1) if columns else np.zeros((len(wanted), 0), np.float32)
        found = found[:, ~np.isnan(found).all(0)]
        found = found - np.nanmean(found, axis=0)
        found = np.nan_to_num(found / np.where(found.std(0) > 0, found.std(0), 1)) if found.size else found
    else:
        files = measure_files(settings.pass_output, settings.storage)
        found = features_of(pool, wanted, files, settings.storage)
    if not found.size or np.isnan(found).all():
        return None
    spread_of = np.sqrt(np.nanvar(found, axis=0).sum())
    return (found / (spread_of if spread_of > 0 else 1)).astype(np.float32)


def _write(settings: SelectSettings, data: bytes) -> None:
    _put(settings.output, data, settings)


def _put(url: str, data: bytes, settings: SelectSettings) -> None:
    """Write a file, whole or not at all. Raises JobFailedError where that fails."""
    filesystem, path = open_filesystem(url, settings.storage)
    try:
        retrying(lambda: put_atomically(filesystem, path, data), settings.storage)
    except OSError as error:
        raise JobFailedError(
            f"cannot write {shown(url)}: {describe(error)}; run the command again"
        ) from error


def _conclude(
    settings: SelectSettings, pool: Pool, available: NDArray[np.bool_], criteria: list[str], table: Any
) -> None:
    number, free = table.num_rows, int(available.sum())
    lines = [f"selected {number:,} of {free:,} images ({pool.left_out()})"]
    if number < settings.budget:
        lines.append(f"  fewer than the budget of {settings.budget:,}: there are no more")
    lines.append(f"  by {', '.join(criteria) or 'spread alone'}")
    if settings.group_by is not None:
        lines += [f"  {settings.group_by} {line}" for line in by_group(pool.groups, table)]
    members = number - table["member"].null_count
    if members:
        lines.append(
            f"  {members:,} are members of archives: extract them before annotate or predict takes them"
        )
    LOG.conclude([*lines, f"output: {canonical_uri(settings.output)}"])
    LOG.outcome = {"counts": {"selected": number, "images": free, "labelled": int(pool.labelled.sum())}}
