"""What a RUN is: the verb that wrote it, and what its record says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from segray.errors import SettingsError
from segray.output.io import read_if_there
from segray.output.names import PLAN, RUN, SCORES
from segray.storage import StorageSettings, shown

VERBS = ("annotate", "import", "predict", "train", "evaluate", "retrain", "compare")
"""An import has the tables of annotate."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    url: str
    verb: str
    record: dict[str, Any]
    """Its run.json; for an evaluation metrics.json."""
    storage: StorageSettings
    name: str
    """What the page calls it: the end of its URL, as long as it needs to differ from another run's."""

    @property
    def shown(self) -> str:
        """Return its URL without credentials."""
        return shown(self.url)

    @property
    def blurred(self) -> list[str]:
        """Return the classes that are hidden in the run's copies of its images; empty without `--blur`."""
        found = (self.record.get("settings") or {}).get("blur") or []
        return [str(each) for each in found] if isinstance(found, list) else [str(found)]

    def about(self) -> dict[str, Any]:
        """Return what the page says of the run."""
        settings = self.record.get("settings") or {}
        return {
            "url": self.shown,
            "name": self.name,
            "verb": self.verb,
            "finished": self.record.get("finished_at"),
            "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
            "versions": self.record.get("versions") or {},
        }


def find_run(url: str, storage: StorageSettings) -> Run:
    """Return the run in a folder.

    Raises SettingsError where there is none, or one that is not finished or not for a preview.
    """
    url = url.rstrip("/")
    for name in (RUN, SCORES):
        data = read_if_there(f"{url}/{name}", storage, "run")
        if data is not None:
            record = _parsed(data, f"{name} of {shown(url)}")
            return Run(url, _verb(record, url), record, storage, shown(url).rpartition("/")[2])
    if read_if_there(f"{url}/{PLAN}", storage, "run") is not None:
        raise SettingsError(f"run: {shown(url)} is not finished; run its command again to continue")
    raise SettingsError(f"run: {shown(url)}: no segray run found there")


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError as error:
        raise SettingsError(f"run: {what} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise SettingsError(f"run: {what} is damaged: no object")
    return record


def _verb(record: dict[str, Any], url: str) -> str:
    verb = record.get("verb") or ("evaluate" if "metrics" in record and "task" in record else "annotate")
    if verb not in VERBS:
        raise SettingsError(f"run: {shown(url)} was written by {verb}; a preview shows {', '.join(VERBS)}")
    return str(verb)


def copies_of(runs: Sequence[Run]) -> str | None:
    """Return the folder of blurred copies that stand for the sources: of the first run with `--blur`."""
    return next((f"{run.url}/blurred" for run in runs if run.blurred), None)


def notes_on_copies(runs: Sequence[Run]) -> list[str]:
    """Return what the page says where it shows copies."""
    known = [
        f"The pictures are copies from {run.name} with {', '.join(run.blurred)} blurred."
        for run in runs
        if run.blurred
    ]
    return known[:1]


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names that differ: the shortest ends of their URLs that do."""
    parts = [run.shown.rstrip("/").split("/") for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return [replace(run, name=f"{run.name} ({number})") for number, run in enumerate(runs, 1)]
