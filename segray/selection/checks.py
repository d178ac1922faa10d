"""What can be known before work begins: the output, the run, its images, what is labelled, another run."""

import json
from dataclasses import dataclass
from typing import Any

from segray.errors import NothingToDoError, SettingsError
from segray.output.io import check_output, files_below, read_if_there
from segray.output.names import PLAN, RUN
from segray.retries import retrying
from segray.run import Problems
from segray.selection.against import add_against
from segray.selection.labels import mark_labelled
from segray.selection.reading import Pool, read_pool
from segray.selection.settings import SelectSettings
from segray.storage import open_filesystem, shown


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    verb: str
    record: dict[str, Any]
    """Its run.json; empty for tables that no run of segray wrote."""

    @property
    def threshold(self) -> float:
        """Return the score above which its instances were kept."""
        known = (self.record.get("settings") or {}).get("score_threshold")
        return 0.5 if known is None else float(known)


def checked(settings: SelectSettings) -> tuple[Run, Pool]:
    """Check the output and read what the run has, before any model is loaded.

    Raises SettingsError with all problems, NothingToDoError where no image can be selected.
    """
    problems = Problems()
    problems.attempt(lambda: _check_output(settings))
    run = problems.attempt(lambda: _run_of(settings.run[0], settings))
    if run is None or problems:
        raise problems.error()
    pool = problems.attempt(lambda: read_pool(settings.run[0], settings.group_by, settings.storage))
    if pool is None:
        raise problems.error()
    problems.attempt(lambda: mark_labelled(pool, settings.run[0], settings.labels, settings.storage))
    if settings.against is not None and len(pool):
        other = settings.against
        problems.attempt(lambda: _compare(pool, run, other, settings))
    if problems:
        raise problems.error()
    if not pool.free:
        raise NothingToDoError(f"nothing to select in {shown(settings.run[0])}: {pool.left_out()}")
    return run, pool


def _check_output(settings: SelectSettings) -> None:
    filesystem, path = open_filesystem(settings.output, settings.storage)
    check_output(settings.output.rpartition("/")[0] or "/", settings.storage)
    if not settings.overwrite and retrying(lambda: filesystem.exists(path), settings.storage.hasty):
        raise SettingsError(f"output: {shown(settings.output)} exists; choose another name, or --overwrite")


def _run_of(url: str, settings: SelectSettings) -> Run:
    """Return a finished run. Raises SettingsError where there is none, or its model is not known."""
    data = read_if_there(f"{url.rstrip('/')}/{RUN}", settings.storage, "run")
    if data is None:
        if read_if_there(f"{url.rstrip('/')}/{PLAN}", settings.storage, "run") is not None:
            raise SettingsError(f"run: {shown(url)} is not finished; run its command again to continue")
        if not files_below(f"{url.rstrip('/')}/images", (".parquet",), settings.storage):
            raise SettingsError(f"run: {shown(url)}: no segray run found there")
        if not settings.from_run_only:
            raise SettingsError(
                f"run: {shown(url)} has no run.json, so its model is not known: select with --from-run-only"
            )
        return Run("annotate", {})
    try:
        record = json.loads(data)
        verb = str(record.get("verb") or "annotate")
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"run: run.json of {shown(url)} is damaged: {error}") from error
    if verb not in ("annotate", "predict"):
        raise SettingsError(
            f"run: {shown(url)} is an output of {verb}; select takes one of annotate or predict"
        )
    return Run(verb, record)


def _compare(pool: Pool, run: Run, other: str, settings: SelectSettings) -> None:
    there = _run_of(other, settings.model_copy(update={"from_run_only": True}))
    if "predict" in (run.verb, there.verb):
        raise SettingsError("against: label maps of predict are not compared, only outputs of annotate")
    threshold = max(run.threshold, there.threshold)
    add_against(pool, settings.run[0], other, threshold, settings.storage)
