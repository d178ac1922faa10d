"""The output of `segray retrain`: what stays from round to round, and a folder for each.

holdout.parquet        what is held out, for ever
trained.parquet        what a model may have trained on, for ever
rounds/0001/round.json     what was found when it began: written last of what is frozen
rounds/0001/snapshot.parquet, labels.json or labels.parquet, items.parquet, groups.json
rounds/0001/train/         as `segray train` writes it
rounds/0001/scored/<version>/   `annotate` over the holdout
rounds/0001/decision.json, report.html
rounds/0001/label.json         whether the new champion has annotated what it was to
rounds/0001/run.json       written last: the round is over
"""

import time
from dataclasses import dataclass
from typing import Any

from segray.errors import JobFailedError, SettingsError
from segray.output.folder import Output
from segray.output.names import PLAN, RUN
from segray.retrain.settings import RetrainSettings
from segray.retries import retrying
from segray.sources.roundtrips import describe
from segray.storage import shown

HOLDOUT, TRAINED = "holdout.parquet", "trained.parquet"
ROUND, SNAPSHOT, DECISION, REPORT = "round.json", "snapshot.parquet", "decision.json", "report.html"
ITEMS, GROUPS, LABEL = "items.parquet", "groups.json", "label.json"
_NEEDED = {
    ROUND: ("task", "labels", "snapshot", "data", "holdout", "champion", "start_from"),
    DECISION: ("promoted", "reasons", "lines", "look", "champion_version", "figures"),
}
"""Without which they are none."""


@dataclass(frozen=True)
class Round:
    """One round, begun or over."""

    store: Output
    number: int
    url: str
    """Of the output."""

    @property
    def folder(self) -> str:
        """Relative to the output."""
        return f"rounds/{self.number:04d}"

    def address(self, name: str = "") -> str:
        """Of something in it."""
        return f"{self.url.rstrip('/')}/{self.folder}/{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        """One of its files; None where there is none."""
        return self.store.read(f"{self.folder}/{name}")

    def read_json(self, name: str) -> Any:
        """Likewise. Raises JobFailedError where it is damaged."""
        found = self.store.read_json(f"{self.folder}/{name}")
        lost = [each for each in _NEEDED.get(name, ()) if not isinstance(found, dict) or each not in found]
        if found is not None and lost:
            raise JobFailedError(f"{self.address(name)} is damaged: it has no {', '.join(lost)}; delete it")
        return found

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all."""
        self.store.write(f"{self.folder}/{name}", data)

    def write_json(self, name: str, value: Any) -> None:
        """Likewise."""
        self.store.write_json(f"{self.folder}/{name}", value)

    @property
    def is_over(self) -> bool:
        """Whether it came to a decision that was carried out."""
        return self.read(RUN) is not None

    @property
    def is_begun(self) -> bool:
        """Whether its labels are frozen."""
        return self.read(ROUND) is not None


def rounds(store: Output, url: str) -> list[Round]:
    """All that have a folder, oldest first."""
    folder = f"{store.root}/rounds"
    try:
        rows = retrying(lambda: store.filesystem.ls(folder, detail=False), store.storage)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JobFailedError(f"cannot list {folder}: {describe(error)}; run again") from error
    names = (row.rstrip("/").rpartition("/")[2] for row in rows)
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    return [Round(store, number, url) for number in numbers]


def check_plan(store: Output, settings: RetrainSettings) -> dict[str, Any]:
    """What makes the output this model's. Raises SettingsError where it is another's."""
    here = {"verb": "retrain", "model": settings.model, "registry": shown(settings.registry)}
    there = store.read_json(PLAN)
    if there is not None and there != here:
        told = there if isinstance(there, dict) else {}
        where = f"{told.get('verb', 'another job')} of {told.get('model', 'another model')}"
        raise SettingsError(f"output: {shown(settings.output)} is of {where}; use another --output")
    return here


def now_utc() -> str:
    """As all records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
