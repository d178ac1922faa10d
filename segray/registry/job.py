"""`segray registry ACTION …`: one function an action."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from segray.errors import ExitCode, NothingToDoError, SettingsError
from segray.log import answer, say
from segray.output.names import SCORES
from segray.registry.add import version_of
from segray.registry.address import ALIASES, CHALLENGER, CHAMPION, check_model, check_which
from segray.registry.aliases import Aliases
from segray.registry.diff import difference, difference_lines
from segray.registry.mlflow_mirror import check_mirror, mirror
from segray.registry.registry import Registry, Version
from segray.registry.settings import ACTIONS, RegistrySettings
from segray.registry.verify_and_gc import disposable, faults
from segray.storage import shown

Answer = tuple[ExitCode, Any, list[str]]
"""Exit code, the value that --json prints, lines of text."""


def run(settings: RegistrySettings, *, as_json: bool) -> ExitCode:
    """Run an action of `segray registry`.

    Raises SettingsError for an unknown action or wrong arguments, NothingToDoError where a model is missing,
    JobFailedError where the registry is damaged or cannot be reached.
    """
    action, *words = settings.words
    if action not in ACTIONS:
        raise SettingsError(f"{action!r} is not one of {', '.join(ACTIONS)}")
    least, most = _NUMBERS[action]
    if not least <= len(words) <= most:
        raise SettingsError(f"usage: segray registry {action} {ACTIONS[action]} --registry URL")
    if action != "gc" and (settings.keep is not None or settings.older_than_days is not None):
        raise SettingsError("keep, older_than_days: only for gc")
    if action in ("add", "promote", "rollback"):
        check_mirror()
    registry = Registry(settings.registry, settings.storage)
    code, record, lines = _ACTIONS[action](registry, settings, words)
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        answer(lines)
    return code


def _split(word: str, default: str = CHAMPION) -> tuple[str, str]:
    """Return (model, alias or version) of `MODEL[@…]`."""
    model, _, which = word.partition("@")
    return check_model(model), check_which(which or default)


def _model(registry: Registry, word: str) -> str:
    """Return an existing model. Raises NothingToDoError where there is none of that name."""
    model = check_model(word)
    if model not in (known := registry.models()):
        has = f"it has {', '.join(known)}" if known else "it is empty, or does not exist"
        raise NothingToDoError(f"registry: {shown(registry.url)} has no model {model}; {has}")
    return model


def _list(registry: Registry, _: RegistrySettings, words: Sequence[str]) -> Answer:
    models = [_model(registry, words[0])] if words else registry.models()
    if not models:
        raise NothingToDoError(f"registry: no model in {shown(registry.url)}")
    record, lines = [], []
    for model in models:
        aliases, versions = registry.aliases(model), registry.versions(model)
        record.append(
            {"model": model, "versions": len(versions), **{each: aliases.of(each) for each in ALIASES}}
        )
        lines.append(f"{model}: {len(versions)} versions, champion {aliases.champion or 'none yet'}")
    return ExitCode.DONE, record, lines


def _show(registry: Registry, _: RegistrySettings, words: Sequence[str]) -> Answer:
    name, _sign, which = words[0].partition("@")
    model = _model(registry, name)
    aliases, runs = registry.aliases(model), registry.runs(model)
    if which:
        return _show_one(registry, model, registry.resolve(model, check_which(which)), aliases, runs)
    versions = registry.versions(model)
    record = {
        "model": model,
        **{alias: aliases.of(alias) for alias in ALIASES},
        "versions": [_row(registry, version) for version in versions],
        "history": [event.record() for event in aliases.history],
        "runs": runs,
    }
    lines = [f"{model} in {shown(registry.url)}"]
    for version in versions:
        names = [alias for alias in ALIASES if aliases.of(alias) == version.digest]
        columns = (version.digest, version.added_at, _scores(registry, version), " ".join(names))
        lines.append(f"  {'  '.join(columns)}".rstrip())
    lines += ["history:", *(f"  {_event_line(event.record())}" for event in aliases.history)]
    lines += ["runs:", *(f"  {_run_line(each)}" for each in runs)] if runs else ["no run used it yet"]
    return ExitCode.DONE, record, lines


def _show_one(
    registry: Registry, model: str, digest: str, aliases: Aliases, runs: Sequence[dict[str, Any]]
) -> Answer:
    version = Version(model, digest, registry.read_json(model, digest, "run.json") or {})
    used = [each for each in runs if each.get("version") == digest]
    card = registry.read(model, digest, "card.md") or b""
    record = {
        "model": model,
        "version": digest,
        "aliases": [alias for alias in ALIASES if aliases.of(alias) == digest],
        "metrics": registry.read_json(model, digest, SCORES),
        "run": version.run,
        "runs": used,
        "url": shown(registry.url_of(model, digest)),
    }
    lines = [f"{model}@{digest}, added {version.added_at}: {record['url']}", "", *card.decode().splitlines()]
    lines += ["", *(f"used by {_run_line(each)}" for each in used)]
    return ExitCode.DONE, record, lines


def _row(registry: Registry, version: Version) -> dict[str, Any]:
    metrics = registry.read_json(version.model, version.digest, SCORES)
    return {"version": version.digest, "added_at": version.added_at, "metrics": metrics}


def _scores(registry: Registry, version: Version) -> str:
    metrics = registry.read_json(version.model, version.digest, SCORES) or {}
    found = metrics.get("figures") or metrics.get("val") or {}
    name = next((name for name in ("ap", "miou") if isinstance(found.get(name), float)), None)
    if name is None:
        return "no scores"
    holdout = metrics.get("holdout")
    where = f"holdout {holdout['version']}" if holdout else "val"
    return f"{name} {found[name]:.4f} on {where}"


def _event_line(event: dict[str, Any]) -> str:
    change = f"{event['from'] or 'none'} -> {event['to'] or 'none'}"
    return f"{event['when']}  {event['what']}  {change}" + (f"  ({event['why']})" if event["why"] else "")


def _run_line(run: dict[str, Any]) -> str:
    return f"{run.get('finished_at')}  {run.get('verb')} with {run.get('version')}: {run.get('output')}"


def _add(registry: Registry, settings: RegistrySettings, words: Sequence[str]) -> Answer:
    from segray.address import absolute_address

    model = check_model(words[0])
    registry.check_usable()
    files, record = version_of(absolute_address(words[1]), settings.storage)
    digest = registry.add(model, files, record)

    def edit(now: Aliases) -> Aliases | None:
        return None if digest in now.held else now.challenged("add", digest, settings.why, None)

    aliases = registry.change(model, edit)
    mirror(registry, model, digest, aliases)
    names = [alias for alias in ALIASES if aliases.of(alias) == digest]
    lines = [f"{model}@{digest}: {', '.join(names)}", f"  weights: {_address(registry, model, digest)}"]
    return ExitCode.DONE, {"model": model, "version": digest, "aliases": names}, lines


def _address(registry: Registry, model: str, which: str) -> str:
    from segray.registry.address import RegistryAddress

    return str(RegistryAddress(shown(registry.url), model, which))


def _promote(registry: Registry, settings: RegistrySettings, words: Sequence[str]) -> Answer:
    name, which = _split(words[0], CHALLENGER)
    model = _model(registry, name)
    version = registry.resolve(model, which)
    metrics = registry.read_json(model, version, SCORES) or {}
    decision = metrics.get("decision") or {}

    def edit(now: Aliases) -> Aliases | None:
        return None if now.champion == version else now.promoted(version, settings.why, None)

    if (
        decision.get("promoted") is False
        and not settings.force
        and registry.aliases(model).champion != version
    ):
        reasons = [f"  {reason}" for reason in decision.get("reasons", [])]
        line = f"{model}@{version}: not promoted, refused by its comparison with {decision.get('champion')}:"
        refused = {
            "model": model,
            "version": version,
            "promoted": False,
            "reasons": decision.get("reasons", []),
        }
        return ExitCode.REFUSED, refused, [line, *reasons, "  --force promotes it nevertheless"]
    before = registry.aliases(model).champion
    aliases = registry.change(model, edit)
    mirror(registry, model, version, aliases)
    record = {"model": model, "version": version, "promoted": True, "before": before}
    return ExitCode.DONE, record, [f"{model}: champion is {version}, before {before or 'none'}"]


def _rollback(registry: Registry, settings: RegistrySettings, words: Sequence[str]) -> Answer:
    model = _model(registry, words[0])

    def edit(now: Aliases) -> Aliases:
        if now.previous is None:
            raise SettingsError(f"registry: {model} has no previous champion to roll back to")
        registry.resolve(model, now.previous)
        return now.rolled_back(settings.why, None)

    aliases = registry.change(model, edit)
    assert aliases.champion is not None
    mirror(registry, model, aliases.champion, aliases)
    record = {"model": model, "champion": aliases.champion, "previous": aliases.previous}
    return (
        ExitCode.DONE,
        record,
        [f"{model}: champion is {aliases.champion} again, before {aliases.previous}"],
    )


def _diff(registry: Registry, _: RegistrySettings, words: Sequence[str]) -> Answer:
    (one, first), (other, second) = (_split(word) for word in words)
    versions = (
        registry.resolve(_model(registry, one), first),
        registry.resolve(_model(registry, other), second),
    )
    record = difference(registry, (one, versions[0]), (other, versions[1]))
    return ExitCode.DONE, record, difference_lines(record)


def _verify(registry: Registry, _: RegistrySettings, words: Sequence[str]) -> Answer:
    models = [_model(registry, words[0])] if words else registry.models()
    if not models:
        raise NothingToDoError(f"registry: no model in {shown(registry.url)}")
    found = [line for model in models for line in faults(registry, model)]
    number = sum(len(registry.digests(model)) for model in models)
    lines = found or [f"{len(models)} models, {number} versions: every object is intact"]
    record = {"models": models, "versions": number, "faults": found}
    return ExitCode.FAILED if found else ExitCode.DONE, record, lines


def _gc(registry: Registry, settings: RegistrySettings, words: Sequence[str]) -> Answer:
    model = _model(registry, words[0])
    if settings.keep is None and settings.older_than_days is None:
        raise SettingsError("gc: set --keep N, --older-than-days D, or both")
    chosen = disposable(registry, model, settings.keep, settings.older_than_days)
    gone = []
    for version in chosen:
        if not settings.dry_run:
            if version.digest in registry.aliases(model).held:
                say(f"{model}@{version.digest}: has an alias by now, not deleted", "warning")
                continue
            registry.delete(model, version.digest)
        gone.append(version.digest)
    what = "would be deleted" if settings.dry_run else "deleted"
    lines = [*(f"{model}@{digest}" for digest in gone), f"{len(gone)} versions {what}"]
    return ExitCode.DONE, {"model": model, "deleted": gone, "dry_run": settings.dry_run}, lines


_ACTIONS: dict[str, Callable[[Registry, RegistrySettings, Sequence[str]], Answer]] = {
    "list": _list,
    "show": _show,
    "add": _add,
    "promote": _promote,
    "rollback": _rollback,
    "diff": _diff,
    "verify": _verify,
    "gc": _gc,
}
_NUMBERS = {
    **{"list": (0, 1), "show": (1, 1), "add": (2, 2), "promote": (1, 1), "rollback": (1, 1)},
    **{"diff": (2, 2), "verify": (0, 1), "gc": (1, 1)},
}
"""Minimum and maximum number of arguments of each action."""
