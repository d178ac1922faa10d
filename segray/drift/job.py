"""`segray drift`: read both profiles, compare them, report; also as functions for other verbs."""

import json
from dataclasses import replace
from typing import Any

from segray.atomic import put_atomically
from segray.drift.compare import Thresholds, compare
from segray.drift.page import page
from segray.drift.profile import Profile
from segray.drift.reading import profile_of
from segray.drift.settings import DriftSettings
from segray.errors import ExitCode, JobFailedError, NothingToDoError, SettingsError
from segray.evaluate.report import table
from segray.log import answer
from segray.output.io import check_output
from segray.registry.address import is_registry
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, canonical_uri, open_filesystem, shown

__all__ = ["compare_runs", "lines", "profile_of", "show"]

RECORD, PAGE = "drift.json", "drift.html"
_NOBODY = "(none)"


def show(settings: DriftSettings, as_json: bool = False) -> ExitCode:
    """Compare two runs, print the result, and write it to `settings.output` if that is set.

    Raises NothingToDoError and SettingsError as `compare_runs`, JobFailedError where writing fails.
    """
    if settings.output is not None:
        check_output(settings.output, settings.storage)
    thresholds = Thresholds(settings.psi, settings.js, settings.min_images, settings.noise)
    record = compare_runs(settings.run[0], settings.against, settings.storage, settings.group_by, thresholds)
    written = []
    if settings.output is not None:
        plain = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        for name, text in ((PAGE, page(record)), (RECORD, plain)):
            written.append(f"output: {_write(settings.output, name, text, settings.storage)}")
    answer([json.dumps(record, indent=2, ensure_ascii=False)] if as_json else [*lines(record), *written])
    return ExitCode.REJECTED if record["drifted"] else ExitCode.DONE


def compare_runs(
    run: str,
    against: str,
    storage: StorageSettings,
    group_by: str | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Return the record of `compare` for two runs, without printing.

    against: another run, or registry://BUCKET/PATH#MODEL@ALIAS. Raises NothingToDoError where there is no
    run, or no annotated image in it, SettingsError where it cannot be read or has no column `group_by`.
    """
    found, other = profile_of(run, storage, group_by), _against(against, storage, group_by)
    for profile in (found, other):
        if not profile.overall.images:
            rejected = f" ({profile.overall.rejected:,} rejected)" if profile.overall.rejected else ""
            raise NothingToDoError(f"{profile.run} has no annotated images{rejected}: nothing to compare")
    return compare(found, other, thresholds or Thresholds())


def _against(address: str, storage: StorageSettings, group_by: str | None) -> Profile:
    if not is_registry(address):
        return profile_of(address, storage, group_by)
    from segray.registry.profiles import read_profile  # loaded only if needed

    try:
        kept = read_profile(address, storage)
    except SettingsError as error:
        raise SettingsError(*(f"against: {line}" for line in error.lines)) from error
    return replace(Profile.from_json(kept, f"against: {shown(address)}"), run=shown(address))


def _write(url: str, name: str, text: str, storage: StorageSettings) -> str:
    """Write a file, whole or not at all; return its URL. Raises JobFailedError where that fails."""
    filesystem, root = open_filesystem(url, storage)
    where = f"{canonical_uri(url).rstrip('/')}/{name}"
    try:
        retrying(lambda: put_atomically(filesystem, f"{root.rstrip('/')}/{name}", text.encode()), storage)
    except OSError as error:
        raise JobFailedError(f"cannot write {where}: {describe(error)}; run the command again") from error
    return where


def lines(record: dict[str, Any]) -> list[str]:
    """Return the record as lines of text: all overall measures, crossed ones by group, and reasons."""
    found = [
        f"{record['run']} against {record['against']}: {verdict(record)}",
        f"  {_counted(record['overall'])}",
    ]
    found += [f"  {note}" for note in record["notes"]]
    found += [f"  {line}" for line in table([_row(measure) for measure in record["overall"]["measures"]])]
    for section in record["groups"]:
        found.append(f"{record['group_by']} {_group(section)}: {_counted(section)}{_judged(section)}")
        crossed = [_row(measure) for measure in section["measures"] if measure["crossed"]]
        found += [f"  {line}" for line in table(crossed)]
    return found


def verdict(record: dict[str, Any]) -> str:
    """Return the result as one line."""
    if not record["judged"]:
        return f"not judged: {_reasons(record['overall'])}"
    if not record["drifted"]:
        return "no drift"
    named = [
        each["measure"]
        if each["group_by"] is None
        else f"{each['measure']} of {each['group_by']} {_group(each)}"
        for each in record["crossed"]
    ]
    return f"drift: {', '.join(named)}"


def _group(section: dict[str, Any]) -> str:
    return _NOBODY if section["group"] is None else str(section["group"])


def _counted(section: dict[str, Any]) -> str:
    both = [
        f"{section['images'][side]:,} images ({section['rejected'][side]:,} rejected), "
        f"{section['instances'][side]:,} instances"
        for side in ("run", "against")
    ]
    return " against ".join(both)


def _judged(section: dict[str, Any]) -> str:
    if not any(each["judged"] for each in section["measures"]):
        return f"; not judged: {_reasons(section)}"
    return "" if any(each["crossed"] for each in section["measures"]) else "; no drift"


def _reasons(section: dict[str, Any]) -> str:
    return "; ".join(dict.fromkeys(each["why"] for each in section["measures"] if each["why"]))


def _row(measure: dict[str, Any]) -> dict[str, Any]:
    return {
        "measure": measure["measure"],
        "psi": _figure(measure["psi"]),
        "of noise": _figure(measure["noise_psi"]),
        "js": _figure(measure["js"]),
        "median": _figure(measure["median"]),
        "against": _figure(measure["median_against"]),
        "": "drift" if measure["crossed"] else "ok" if measure["judged"] else measure["why"],
    }


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
