"""Whole tables of an output in memory, for people who look at one in Python."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from segray.errors import SettingsError
from segray.output.io import files_below, read_if_there
from segray.output.names import METRICS, RUN, SCORES
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri

_RECORDS = {"evaluate": SCORES, "drift": "drift.json"}


def read_record(output: str, verb: str, storage: StorageSettings) -> dict[str, Any]:
    """Return the record of a verb in an output, which may hold another verb's, too.

    It is run.json, of evaluate metrics.json, of drift drift.json; {} where there is none, or a file.
    """
    name = _RECORDS.get(verb, RUN)
    try:
        data = read_if_there(f"{output.rstrip('/')}/{name}", storage, "output")
    except (SettingsError, NotADirectoryError):
        return {}
    record: dict[str, Any] = json.loads(data) if data is not None else {}
    return record


def read_table(output: str, table: str, storage: StorageSettings) -> pa.Table:
    """Return the table `table` of an output: its Parquet files, in the order of their names.

    `metrics` is metrics.jsonl of a training, a row an epoch. The schema keeps the GeoParquet metadata of the
    first file. Raises SettingsError where there is none.
    """
    if table == "metrics":
        return _metrics(output, storage)
    files = files_below(f"{output.rstrip('/')}/{table}", (".parquet",), storage)
    if not files:
        raise SettingsError(f"{canonical_uri(output)} has no {table}/*.parquet")
    parts = []
    for file in files:
        with open_source(file, storage) as stream:
            parts.append(pq.read_table(stream))
    return pa.concat_tables(parts, promote_options="permissive")


def _metrics(output: str, storage: StorageSettings) -> pa.Table:
    data = read_if_there(f"{output.rstrip('/')}/{METRICS}", storage, "output")
    if not data:
        raise SettingsError(f"{canonical_uri(output)} has no {METRICS}")
    return pyarrow.json.read_json(io.BytesIO(data))
