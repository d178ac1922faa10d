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


def read_record(output: str, storage: StorageSettings) -> dict[str, Any]:
    """Return run.json of an output, else metrics.json or drift.json; {} where it has none, or is a file."""
    for name in (RUN, SCORES, "drift.json"):
        try:
            data = read_if_there(f"{output.rstrip('/')}/{name}", storage, "output")
        except (SettingsError, NotADirectoryError):
            return {}
        if data is not None:
            record: dict[str, Any] = json.loads(data)
            return record
    return {}


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
