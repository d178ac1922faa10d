"""`aliases.json` of a model: which version each alias means, and how that came to be.

Changed by compare-and-swap alone, so the history is one line of events whoever writes: of two that change it
at once one wins, and the other looks again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fsspec import AbstractFileSystem

from segray.atomic import create_atomically
from segray.conditional import Versioned, read_versioned, replace_atomically
from segray.errors import JobFailedError
from segray.registry.address import ALIASES, CHALLENGER, CHAMPION, PREVIOUS
from segray.retries import retrying
from segray.storage import StorageSettings

NAME = "aliases.json"
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Event:
    """One change."""

    when: str
    """UTC, of the machine that made it."""
    what: str
    """`add`, `promote`, `refuse` or `rollback`."""
    before: str | None
    """Champion before and after; of `add` and `refuse` the challenger. `from` and `to` in the file."""
    after: str | None
    why: str
    run: str | None
    """Address of the run that decided."""

    def record(self) -> dict[str, Any]:
        """As in the file."""
        plain = asdict(self)
        plain["from"], plain["to"] = plain.pop("before"), plain.pop("after")
        return plain


@dataclass(frozen=True, slots=True)
class Aliases:
    """What the file says; of a model that is not there yet, nothing."""

    generation: int = 0
    champion: str | None = None
    challenger: str | None = None
    previous: str | None = None
    history: tuple[Event, ...] = field(default=())

    def of(self, alias: str) -> str | None:
        """The version that an alias means."""
        return {CHAMPION: self.champion, CHALLENGER: self.challenger, PREVIOUS: self.previous}[alias]

    @property
    def held(self) -> set[str]:
        """Versions that an alias means."""
        return {version for alias in ALIASES if (version := self.of(alias)) is not None}

    def promoted(self, version: str, why: str, run: str | None) -> "Aliases":
        """With another champion; the one before is `previous`."""
        event = Event(_now(), "promote", self.champion, version, why, run)
        left = None if self.challenger == version else self.challenger
        previous = self.champion if self.champion != version else self.previous
        return self._with(event, champion=version, challenger=left, previous=previous)

    def challenged(self, what: str, version: str, why: str, run: str | None) -> "Aliases":
        """With another challenger; what: `add` or `refuse`."""
        event = Event(_now(), what, self.challenger, version, why, run)
        return self._with(event, challenger=version)

    def rolled_back(self, why: str, run: str | None) -> "Aliases":
        """With the champion before, again; so a second one undoes the first."""
        event = Event(_now(), "rollback", self.champion, self.previous, why, run)
        return self._with(event, champion=self.previous, previous=self.champion)

    def _with(self, event: Event, **changed: str | None) -> "Aliases":
        history = (*self.history, event)
        return replace(self, generation=self.generation + 1, history=history, **changed)

    def data(self) -> bytes:
        """The file."""
        names = {name: getattr(self, name) for name in ("generation", *ALIASES)}
        record = names | {"history": [event.record() for event in self.history]}
        return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def parse(data: bytes, path: str) -> Aliases:
    """Raises JobFailedError for a damaged file: it is the history, nobody may begin another one."""
    try:
        found = json.loads(data)
        history = tuple(
            Event(each["when"], each["what"], each["from"], each["to"], each["why"], each["run"])
            for each in found["history"]
        )
        versions = [found[alias] for alias in ALIASES]
        if not all(each is None or isinstance(each, str) for each in versions):
            raise TypeError("an alias is no text")
        champion, challenger, previous = versions
        return Aliases(int(found["generation"]), champion, challenger, previous, history)
    except (ValueError, KeyError, TypeError) as error:
        raise JobFailedError(f"{path} is damaged ({error}); put its last good version back") from error


def read(filesystem: AbstractFileSystem, path: str, storage: StorageSettings) -> Aliases:
    """What stands there now; of a model that is not there, nothing."""
    there = _there(filesystem, path, storage)
    return Aliases() if there is None else parse(there.data, path)


def change(
    filesystem: AbstractFileSystem,
    path: str,
    storage: StorageSettings,
    edit: Callable[[Aliases], Aliases | None],
) -> Aliases:
    """Write what `edit` makes of what stands there; returns what does now.

    edit: called again when somebody else was faster; None leaves all as it is. It may raise.
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
            now, place = read(filesystem, path, storage), len(before.history)
            if now.history[place : place + 1] == after.history[-1:]:
                return now  # the answer was lost, and somebody else has written since
            time.sleep(min(1.0, 0.02 * 2**tries))
    raise JobFailedError(f"{path}: others keep changing it; run again")


def _write(
    filesystem: AbstractFileSystem, path: str, storage: StorageSettings, data: bytes, there: Versioned | None
) -> None:
    """Raises FileExistsError where another version stands there by now."""
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
