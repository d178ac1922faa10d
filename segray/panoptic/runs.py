"""The two runs to fuse: are they finished, what identifies them, which categories do they have."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.errors import SettingsError
from segray.output.io import files_below, read_if_there
from segray.output.names import PLAN, RUN
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri, shown


@dataclass(frozen=True, slots=True)
class Run:
    """A finished output."""

    url: str
    identity: str
    """Digest of the settings that its rows depend on; items that it adds or tries again do not change it."""
    digest: str
    """Of its run.json and its files: it changes with every run that wrote something."""
    ledger: Sequence[Source]
    plan: dict[str, Any]
    categories: dict[int, str]
    """All that its model knows, by id; empty where run.json does not say."""


def find_run(url: str, setting: str, verbs: Sequence[str | None], storage: StorageSettings) -> Run:
    """Return a run by its address.

    Raises SettingsError, which begins with the name of the setting, where it is not finished or of another
    verb. Labels that another program wrote (None in `verbs`) have no run.json.
    """
    url = url.rstrip("/")
    record, plan = (read_if_there(f"{url}/{name}", storage, setting) for name in (RUN, PLAN))
    ledger = files_below(f"{url}/images", (".parquet",), storage)
    if record is None and plan is not None:
        raise SettingsError(f"{setting}: {shown(url)} is not finished; run its command again to continue")
    if not ledger or (record is None and None not in verbs):
        raise SettingsError(f"{setting}: {shown(url)} is no finished output of {verbs[0]}")
    what = f"{setting}: {RUN} of {shown(url)}"
    ran = _json(record, what)
    verb = ran.get("verb")
    if verb not in verbs:
        raise SettingsError(f"{setting}: {shown(url)} is an output of {verb}, not of {verbs[0]}")
    files = [*ledger, *files_below(f"{url}/instances", (".parquet",), storage)]
    state = _digest(record or b"", *(f"{each.uri} {each.version}".encode() for each in files))
    parsed = _json(plan, f"{setting}: {PLAN} of {shown(url)}")
    identity = state if plan is None else _digest(plan)
    return Run(url, identity, state, ledger, parsed, _recorded(ran, what))


def map_classes(maps: Run) -> list[str]:
    """Return the names of the maps' classes. Raises SettingsError where the run does not know them."""
    names = maps.plan.get("classes")
    if not isinstance(names, list) or not names:
        raise SettingsError(f"maps: {shown(maps.url)}: its {PLAN} names no classes; predict again")
    return [str(name) for name in names]


def categories_of(run: Run, storage: StorageSettings) -> dict[int, str]:
    """Return the categories that a run's model knows and those that its instances have, by id.

    Raises SettingsError for a file that cannot be read, and where one id has two names.
    """
    found = dict(run.categories)
    for file in files_below(f"{run.url}/instances", (".parquet",), storage):
        for number, name in _pairs(file, storage):
            text = str(number) if name is None else name
            if found.setdefault(number, text) != text:
                raise SettingsError(
                    f"instances: category {number} has two names: {found[number]!r}, {text!r}"
                )
    return dict(sorted(found.items()))


def _pairs(file: Source, storage: StorageSettings) -> list[tuple[int, str | None]]:
    columns = ["category_id", "category"]
    found = set[tuple[int, str | None]]()
    try:
        with open_source(file, storage) as stream:
            parquet = pq.ParquetFile(stream)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=columns)
                plain = table.set_column(1, "category", table["category"].cast(pa.string()))
                rows = plain.group_by(columns).aggregate([]).to_pylist()
                found |= {(row["category_id"], row["category"]) for row in rows}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SettingsError(f"instances: {file.uri} cannot be read: {describe(error)}") from error
    return sorted(found, key=str)


def sources_of(instances: Run, maps: Run) -> dict[str, Any]:
    """Return addresses and digests of both runs, for identity and run.json."""
    runs = {"instances": instances, "maps": maps}
    return {name: {"run": canonical_uri(run.url), "digest": run.digest} for name, run in runs.items()}


def _recorded(record: dict[str, Any], what: str) -> dict[int, str]:
    try:
        return {int(each["id"]): str(each["name"]) for each in record.get("categories") or ()}
    except (TypeError, KeyError, ValueError) as error:
        raise SettingsError(f"{what}: its categories are damaged") from error


def _json(data: bytes | None, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError as error:
        raise SettingsError(f"{what} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()
