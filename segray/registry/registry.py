"""Model registry in a folder or a bucket.

    MODEL/versions/<first 12 hex digits of model.pt's sha256>/
        model.pt  card.md  metrics.json  snapshot.parquet  profile.json  report.html   those that exist
        run.json                                        written last: it exists = the version is complete
    MODEL/aliases.json     champion, challenger, previous, and the history (see `aliases`)
    MODEL/runs/<version>-<digest of the output's URL>.json   runs that used a version

A version's objects are created, never overwritten; promoting deletes nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from segray.atomic import create_atomically, put_atomically
from segray.errors import JobFailedError, SettingsError
from segray.output.names import MODEL, RUN, SCORES
from segray.registry import aliases
from segray.registry.address import ALIASES, RegistryAddress, check_model, parse
from segray.registry.aliases import Aliases
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, open_filesystem, shown

T = TypeVar("T")
CARD = "card.md"
SNAPSHOT, PROFILE, REPORT = "snapshot.parquet", "profile.json", "report.html"
DIGITS = 12


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model."""

    model: str
    digest: str
    """First 12 hex digits of the sha256 of its model.pt."""
    run: dict[str, Any]
    """Its run.json."""

    @property
    def added_at(self) -> str:
        """UTC time as text, which sorts by time."""
        return str(self.run.get("registered", {}).get("added_at", ""))


class Registry:
    """Read and change one registry."""

    def __init__(self, url: str, storage: StorageSettings) -> None:
        self.url, self.storage = url.rstrip("/") or "/", storage
        self._filesystem, self._root = open_filesystem(self.url, storage)

    # --- reading -------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """Return the names of all models, sorted; none where the registry does not exist yet."""
        return [name for name in self._names("") if self._names(name, "versions") or self.has_aliases(name)]

    def has_aliases(self, model: str) -> bool:
        """Return whether the model exists."""
        return aliases.NAME in self._names(model)

    def versions(self, model: str) -> list[Version]:
        """Return the complete versions of a model, oldest first."""
        found = [
            Version(model, digest, run)
            for digest in self._names(model, "versions")
            if (run := self.read_json(model, digest, RUN)) is not None
        ]
        return sorted(found, key=lambda version: (version.added_at, version.digest))

    def digests(self, model: str) -> list[str]:
        """Return the digests of all versions, incomplete ones included."""
        return self._names(model, "versions")

    def aliases(self, model: str) -> Aliases:
        """Return the aliases of a model; empty where it does not exist."""
        return aliases.read(self._filesystem, self._path(check_model(model), aliases.NAME), self.storage)

    def resolve(self, model: str, which: str) -> str:
        """Return the version of an alias or a version. Raises SettingsError where it does not exist."""
        version = self.aliases(model).of(which) if which in ALIASES else which
        where = shown(self.url)
        if version is None:
            known = self.models()
            if model not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise SettingsError(f"registry: {where} has no model {model}; {has}")
            raise SettingsError(f"registry: {where}: {model} has no {which}; see `segray registry show`")
        if RUN not in self._names(model, "versions", version):
            raise SettingsError(f"registry: {where}: {model} has no version {version}")
        return version

    def read(self, model: str, version: str, name: str) -> bytes | None:
        """Return one object of a version; None where it does not exist."""
        return self._read(self._path(model, "versions", version, name))

    def read_json(self, model: str, version: str, name: str) -> dict[str, Any] | None:
        """Return one JSON object of a version; None where it does not exist.

        Raises JobFailedError where it is damaged.
        """
        path = self._path(model, "versions", version, name)
        found = self._parsed(path)
        if found is not None and (wrong := _wrong_part(found, name)):
            raise JobFailedError(f"registry: {path} is damaged: its {wrong} is not a JSON object")
        return found

    def url_of(self, model: str, version: str, name: str = MODEL) -> str:
        """Return the URL of an object of a version."""
        return f"{self.url}/{model}/versions/{version}/{name}"

    def runs(self, model: str) -> list[dict[str, Any]]:
        """Return the records of runs that used a version, oldest first."""
        found = [self._parsed(self._path(model, "runs", name)) for name in self._names(model, "runs")]
        return sorted((each for each in found if each), key=lambda run: str(run.get("finished_at")))

    # --- changes -------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise SettingsError where the registry cannot be named, reached or written."""
        from segray.output.io import check_output

        try:
            parse(str(RegistryAddress(self.url, "model")))
        except SettingsError as error:
            raise SettingsError(
                f"registry: {shown(self.url)}: --weights could not address its models; use a folder or a "
                "bucket (s3://, gs://, az://) without `#` in its path"
            ) from error
        try:
            check_output(self.url, self.storage)
        except SettingsError as error:
            lines = (line.replace("output:", "registry:", 1) for line in error.lines)
            raise SettingsError(*lines) from error

    def add(self, model: str, files: Mapping[str, bytes], record: Mapping[str, Any]) -> str:
        """Add a version, once; return its digest.

        files: model.pt and other objects. record: contents of run.json. An existing version is not changed.
        Raises JobFailedError where an incomplete version of this digest has other objects.
        """
        check_model(model)
        whole = hashlib.sha256(files[MODEL]).hexdigest()
        digest = whole[:DIGITS]
        if RUN in self._names(model, "versions", digest):
            return digest
        registered = {
            "model": model,
            "version": digest,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "added_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        run = json.dumps({**record, "registered": registered}, indent=2, ensure_ascii=False).encode() + b"\n"
        for name, data in files.items():
            self._create(self._path(model, "versions", digest, name), data)
        self._create(self._path(model, "versions", digest, RUN), run, same=False)
        return digest

    def change(self, model: str, edit: Callable[[Aliases], Aliases | None]) -> Aliases:
        """Change the aliases of a model by compare-and-swap, see `aliases.change`. Raises JobFailedError."""
        path = self._path(check_model(model), aliases.NAME)
        return aliases.change(self._filesystem, path, self.storage, edit)

    def note_run(self, model: str, version: str, run: Mapping[str, Any]) -> None:
        """Record that a run used a version; run: `verb`, `output`, `finished_at`, `counts`."""
        name = hashlib.sha256(str(run["output"]).encode()).hexdigest()[:DIGITS]
        path = self._path(model, "runs", f"{version}-{name}.json")
        data = json.dumps({**run, "version": version}, indent=2, ensure_ascii=False).encode() + b"\n"
        self._asked("write", path, lambda: put_atomically(self._filesystem, path, data))

    def delete(self, model: str, version: str) -> None:
        """Delete a version, run.json first: without it a version is incomplete."""
        names = self._names(model, "versions", version)
        for name in sorted(names, key=lambda name: name != RUN):
            path = self._path(model, "versions", version, name)
            self._asked("delete", path, lambda path=path: self._filesystem.rm_file(path))  # type: ignore[misc]
        if "file" in self._filesystem.protocol and names:
            folder = self._path(model, "versions", version)
            self._asked("delete", folder, lambda: self._filesystem.rmdir(folder))

    # --- storage -------------------------------------------------------------------------------------

    def _path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _names(self, *parts: str) -> list[str]:
        """Return the names directly in a folder; none where it does not exist."""
        path = self._path(*parts).rstrip("/")
        try:
            rows = self._asked("list", path, lambda: self._filesystem.ls(path, detail=False))
        except FileNotFoundError:
            return []
        names = (row.rstrip("/").rpartition("/")[2] for row in rows if row.rstrip("/") != path)
        return sorted(name for name in names if name and not name.startswith("."))

    def _read(self, path: str) -> bytes | None:
        try:
            return self._asked("read", path, lambda: bytes(self._filesystem.cat_file(path)))
        except FileNotFoundError:
            return None

    def _parsed(self, path: str) -> dict[str, Any] | None:
        data = self._read(path)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError as error:
            raise JobFailedError(f"registry: {path} is damaged: {error}") from error
        if not isinstance(found, dict):
            raise JobFailedError(f"registry: {path} is damaged: it is not a JSON object")
        return found

    def _create(self, path: str, data: bytes, *, same: bool = True) -> None:
        """Create an object; an existing one must have the same contents, if `same`.

        Raises JobFailedError where it has others.
        """
        try:
            self._asked("write", path, lambda: create_atomically(self._filesystem, path, data))
        except FileExistsError:
            if same and self._read(path) != data:
                raise JobFailedError(
                    f"registry: {path} exists already, with other contents; check it, and delete it if "
                    "it was left by a killed run"
                ) from None

    def _asked(self, what: str, path: str, call: Callable[[], T]) -> T:
        try:
            return retrying(call, self.storage)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise JobFailedError(f"registry: cannot {what} {path}: {describe(error)}; run again") from error


_PARTS = {
    RUN: ("registered", "registered.sha256", "settings"),
    SCORES: ("holdout", "figures", "val", "decision", "champion"),
}
"""Nested JSON objects of a version's records; each may be missing or null."""


def _wrong_part(record: Mapping[str, Any], name: str) -> str | None:
    """Return the first part that is not a JSON object."""
    for path in _PARTS.get(name, ()):
        part: Any = record
        for key in path.split("."):
            part = (part or {}).get(key)
        if part is not None and not isinstance(part, dict):
            return path
    return None


def pinned(address: RegistryAddress, storage: StorageSettings) -> RegistryAddress:
    """Return the address with the present version of its alias. Raises SettingsError where there is none."""
    registry = Registry(address.url, storage)
    try:
        version = registry.resolve(address.model, address.which)
    except JobFailedError as error:
        raise SettingsError(*error.lines) from error
    return RegistryAddress(address.url, address.model, version)


def read_model(address: RegistryAddress, storage: StorageSettings) -> bytes:
    """Return the model file of a pinned address. Raises SettingsError where it is missing or damaged."""
    registry = Registry(address.url, storage)
    try:
        data = registry.read(address.model, address.which, MODEL)
    except JobFailedError as error:
        raise SettingsError(*error.lines) from error
    if data is None:
        raise SettingsError(f"weights {address}: its {MODEL} is missing")
    if not hashlib.sha256(data).hexdigest().startswith(address.which):
        raise SettingsError(
            f"weights {address}: its {MODEL} is damaged (sha256 differs); see `segray registry verify`"
        )
    return data
