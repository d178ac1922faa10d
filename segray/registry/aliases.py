"""`aliases.json` of a model: the version of each alias, and the history of changes.

Changed only by compare-and-swap, so the history is one sequence of events with any number of writers: of two
that change it at once one wins, and the other reads it again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fsspec import AbstractFileSystem

from segray.atomic import create_atomically
from segray.compare_and_swap import Versioned, read_versioned, replace_atomically
from segray.errors import JobFailedError
from segray.registry.address import ALIASES, CHALLENGER, CHAMPION, PREVIOUS
from segray.retries import retrying
from segray.storage import StorageSettings

NAME = "aliases.json"
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the aliases."""

    when: str
    """UTC time, by the clock of the machine that made it."""
    what: str
    """`add`, `promote`, `refuse` or `rollback`."""
    before: str | None
    """Champion before and after; for `add` and `refuse` the challenger. `from` and `to` in the file."""
    after: str | None
    why: str
    run: str | None
    """URL of the run that decided."""

    def record(self) -> dict[str, Any]:
        """Return the event as in the file."""
        plain = asdict(self)
        plain["from"], plain["to"] = plain.pop("before"), plain.pop("after")
        return plain


@dataclass(frozen=True, slots=True)
class Aliases:
    """Contents of the file; empty for a model that does not exist yet."""

    generation: int = 0
    champion: str | None = None
    challenger: str | None = None
    previous: str | None = None
    history: tuple[Event, ...] = field(default=())

    def of(self, alias: str) -> str | None:
        """Return the version of an alias; None where it has none."""
        return {CHAMPION: self.champion, CHALLENGER: self.challenger, PREVIOUS: self.previous}[alias]

    @property
    def held(self) -> set[str]:
        """Return the versions that have an alias."""
        return {version for alias in ALIASES if (version := self.of(alias)) is not None}

    def promoted(self, version: str, why: str, run: str | None) -> "Aliases":
        """Return the aliases with a new champion; the one before becomes `previous`."""
        event = Event(_now(), "promote", self.champion, version, why, run)
        left = None if self.challenger == version else self.challenger
        previous = self.champion if self.champion != version else self.previous
        return self._with(event, champion=version, challenger=left, previous=previous)

    def challenged(self, what: str, version: str, why: str, run: str | None) -> "Aliases":
        """Return the aliases with a new challenger; what: `add` or `refuse`."""
        event = Event(_now(), what, self.challenger, version, why, run)
        return self._with(event, challenger=version)

    def rolled_back(self, why: str, run: str | None) -> "Aliases":
        """Return the aliases with the previous champion again; a second rollback undoes the first."""
        event = Event(_now(), "rollback", self.champion, self.previous, why, run)
        return self._with(event, champion=self.previous, previous=self.champion)

    def _with(self, event: Event, **changed: str | None) -> "Aliases":
        history = (*self.history, event)
        return replace(self, generation=self.generation + 1, history=history, **changed)

    def data(self) -> bytes:
        """Return the contents of the file."""
        names = {name: getattr(self, name) for name in ("generation", *ALIASES)}
        record = names | {"history": [event.record() for event in self.history]}
        return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def parse(data: bytes, path: str) -> Aliases:
    """Parse the file. Raises JobFailedError where it is damaged: its history must not be overwritten."""
    try:
        found = json.loads(data)
        history = tuple(
            Event(each["when"], each["what"], each["from"], each["to"], each["why"], each["run"])
            for each in found["history"]
        )
        versions = [found[alias] for alias in ALIASES]
        if not all(each is None or isinstance(each, str) for each in versions):
            raise TypeError("an alias is not a string")
        champion, challenger, previous = versions
        return Aliases(int(found["generation"]), champion, challenger, previous, history)
    except (ValueError, KeyError, TypeError) as error:
        raise JobFailedError(f"{path} is damaged ({error}); restore its last good version") from error


def read(filesystem: AbstractFileSystem, path: str, storage: StorageSettings) -> Aliases:
    """Read the aliases of a model; empty where it does not exist. Raises JobFailedError where that fails."""
    there = _there(filesystem, path, storage)
    return Aliases() if there is None else parse(there.data, path)


def change(
    filesystem: AbstractFileSystem,
    path: str,
    storage: StorageSettings,
    edit: Callable[[Aliases], Aliases | None],
) -> Aliases:
    """Replace the aliases by `edit(aliases)` and return the result.

    edit: called again when another process was faster; returns None for no change. It may raise. Raises
    JobFailedError where the storage fails or others keep changing the file.
    """
    for tries in range(_TRIES):
        there = _there(filesystem, path, storage)
        before = Aliases() if there is None else parse(there.data, path)
        after = edit(before)
        if after is None:
            return before
        try:
            _write(filesystem, path, storage, after.data(), there)
            return after
        except FileExistsError:
            now, index = read(filesystem, path, storage), len(before.history)
            if now.history[index : index + 1] == after.history[-1:]:
                return now  # the response was lost, and another process has written since
            time.sleep(min(1.0, 0.02 * 2**tries))
    raise JobFailedError(f"{path}: other processes keep changing it; run again")


def _write(
    filesystem: AbstractFileSystem, path: str, storage: StorageSettings, data: bytes, there: Versioned | None
) -> None:
    """Write the file. Raises FileExistsError where it has another version by now."""
    try:
        if there is None:
            retrying(lambda: create_atomically(filesystem, path, data), storage)
        else:
            retrying(lambda: replace_atomically(filesystem, path, data, there.version), storage)
    except FileExistsError:
        raise
    except OSError as error:
        raise JobFailedError(f"cannot write {path}: {error}; run again") from error


def _there(filesystem: AbstractFileSystem, path: str, storage: StorageSettings) -> Versioned | None:
    try:
        return retrying(lambda: read_versioned(filesystem, path), storage)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JobFailedError(f"cannot read {path}: {error}; run again") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
