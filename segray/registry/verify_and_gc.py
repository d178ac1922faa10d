"""Verify a registry, and select the versions that may be deleted."""

import hashlib
import time
from datetime import UTC, datetime

from segray.errors import JobFailedError
from segray.output.names import MODEL, RUN
from segray.registry.registry import Registry, Version

_DAY_S = 86_400.0


def faults(registry: Registry, model: str) -> list[str]:
    """Return the faults of a model, one line each; empty where every object is intact."""
    found = []
    try:
        aliases = registry.aliases(model)
    except JobFailedError as error:
        return [*error.lines]
    digests = registry.digests(model)
    for digest in digests:
        found += [f"{model}@{digest}: {line}" for line in _faults_of(registry, model, digest)]
    for alias in ("champion", "challenger", "previous"):
        version = aliases.of(alias)
        if version is not None and version not in digests:
            found.append(f"{model}: {alias} is {version}, which does not exist")
    return found


def _faults_of(registry: Registry, model: str, digest: str) -> list[str]:
    try:
        run = registry.read_json(model, digest, RUN)
    except JobFailedError as error:
        return [*error.lines]
    if run is None:
        return [f"incomplete version: no {RUN}; add it again, or delete it with gc"]
    sums = run.get("registered", {}).get("sha256", {})
    found = []
    for name, expected in {MODEL: digest, **sums}.items():
        data = registry.read(model, digest, name)
        if data is None:
            found.append(f"{name} is missing")
        elif not hashlib.sha256(data).hexdigest().startswith(str(expected)):
            found.append(f"{name} was changed")
    return found


def disposable(
    registry: Registry, model: str, keep: int | None, older_than_days: float | None
) -> list[Version]:
    """Return complete versions without alias, except the newest `keep` and those not older than that."""
    held = registry.aliases(model).held
    free = [version for version in registry.versions(model) if version.digest not in held]
    chosen = free[: len(free) - keep] if keep else free
    if older_than_days is None:
        return chosen
    latest = time.time() - older_than_days * _DAY_S
    return [version for version in chosen if _seconds(version.added_at) < latest]


def _seconds(when: str) -> float:
    """Return the Unix time of a time in run.json; now for an invalid one: such a version is never old."""
    try:
        return datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return time.time()
