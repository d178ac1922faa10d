"""The output folder of `segray retrain`: files of all rounds, and a folder for each round.

holdout.parquet        images that are held out, forever
trained.parquet        images on which a model may have been trained, forever
rounds/0001/round.json     state of the data when the round began: the last of its frozen files
rounds/0001/snapshot.parquet, labels.json or labels.parquet, items.parquet, groups.json
rounds/0001/train/         as `segray train` writes it
rounds/0001/scored/<version>/   `annotate` over the holdout
rounds/0001/decision.json, report.html
rounds/0001/label.json         whether the new champion's annotation (setting `label`) is done
rounds/0001/run.json       written last: the round is finished
"""

import time
from dataclasses import dataclass
from typing import Any

from segray.errors import JobFailedError, SettingsError
from segray.output.folder import Output
from segray.output.names import PLAN, RUN
from segray.retrain.settings import RetrainSettings
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import shown

HOLDOUT, TRAINED = "holdout.parquet", "trained.parquet"
ROUND, SNAPSHOT, DECISION, REPORT = "round.json", "snapshot.parquet", "decision.json", "report.html"
ITEMS, GROUPS, LABEL = "items.parquet", "groups.json", "label.json"
_NEEDED = {
    ROUND: ("task", "labels", "snapshot", "data", "holdout", "champion", "start_from"),
    DECISION: ("promoted", "reasons", "lines", "look", "champion_version", "figures"),
}
"""Required fields of the JSON files of a round."""


@dataclass(frozen=True)
class Round:
    """One round, unfinished or finished."""

    store: Output
    number: int
    url: str
    """URL of the output."""

    @property
    def folder(self) -> str:
        """Folder of the round, relative to the output."""
        return f"rounds/{self.number:04d}"

    def address(self, name: str = "") -> str:
        """Return the URL of the round's folder, or of a file in it."""
        return f"{self.url.rstrip('/')}/{self.folder}/{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file of the round; None where it does not exist."""
        return self.store.read(f"{self.folder}/{name}")

    def read_json(self, name: str) -> Any:
        """Return a JSON file of the round; None where it does not exist.

        Raises JobFailedError where it is damaged.
        """
        found = self.store.read_json(f"{self.folder}/{name}")
        lost = [each for each in _NEEDED.get(name, ()) if not isinstance(found, dict) or each not in found]
        if found is not None and lost:
            raise JobFailedError(f"{self.address(name)} is damaged: it has no {', '.join(lost)}; delete it")
        return found

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the round, whole or not at all."""
        self.store.write(f"{self.folder}/{name}", data)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the round, whole or not at all."""
        self.store.write_json(f"{self.folder}/{name}", value)

    @property
    def is_over(self) -> bool:
        """Whether the round has a decision that was carried out."""
        return self.read(RUN) is not None

    @property
    def is_begun(self) -> bool:
        """Whether the round's labels are frozen."""
        return self.read(ROUND) is not None


def rounds(store: Output, url: str) -> list[Round]:
    """Return all rounds with a folder, oldest first. Raises JobFailedError where they cannot be listed."""
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
    """Return the plan that binds the output to a model. Raises SettingsError where it is another's."""
    here = {"verb": "retrain", "model": settings.model, "registry": shown(settings.registry)}
    there = store.read_json(PLAN)
    if there is not None and there != here:
        plan = there if isinstance(there, dict) else {}
        where = f"{plan.get('verb', 'another job')} of {plan.get('model', 'another model')}"
        raise SettingsError(f"output: {shown(settings.output)} is of {where}; use another --output")
    return here


def now_utc() -> str:
    """Return the present UTC time in the format of all records."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
