"""Manifests, streamed; each row is looked up in its storage.

Addresses: column `uri` of Parquet, CSV and TSV, key `uri` of each line of JSON, each line of a text file.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.address import plain_file_url
from segray.errors import SettingsError
from segray.sources.concurrent_requests import as_item_error, describe, request_all
from segray.sources.item import Kept, Source, kept_text
from segray.sources.local import local_source
from segray.sources.names import fault, manifest_kind
from segray.sources.reader import open_source
from segray.sources.remote import remote_source, remote_uri
from segray.storage import EXTRAS, StorageSettings, canonical_uri, open_filesystem, split_protocol

TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
    pa.types.is_large_binary, pa.types.is_dictionary, pa.types.is_null,
)  # fmt: skip
"""Arrow types of a column `uri`; some writers do not declare that their bytes are UTF-8."""
_USER = re.compile(r"(?<=://)[^/@]*@")
_QUERY = re.compile(r"\?.*")
_FIELD_LETTERS = 64 << 20
"""Maximum length of a field or a line, of any column."""
csv.field_size_limit(_FIELD_LETTERS)  # for lists of pairs too; Python's own is below one embedded thumbnail
_COLUMNS = 20
"""Maximum number of column names that are kept for the error message."""
_BATCH = 512
"""Rows that are looked up at a time."""


@dataclass
class Wanted:
    """The columns besides `uri` that are requested of manifests, and which of them exist."""

    names: Sequence[str] = ()
    manifests: int = 0
    """Number of manifests opened."""
    found: set[str] = field(default_factory=set)
    """The requested columns that at least one manifest has."""
    others: dict[str, None] = field(default_factory=dict)
    """Names of all columns that exist, for the error message of a mistyped one."""

    def see(self, columns: Sequence[str]) -> None:
        """Record the columns of a manifest."""
        self.manifests += 1
        self.found.update(name for name in self.names if name in columns)
        self.others |= dict.fromkeys(columns[:_COLUMNS])


_Row = tuple[str | None, Kept]
"""URI and values of the kept columns."""


def read_manifest(
    manifest: Source, storage: StorageSettings, wanted: Wanted | None = None
) -> Iterator[Source]:
    """Yield a Source of kind `file` for every row, in order; a faulty row is a Source with an error.

    `wanted`: columns whose values each Source carries, as text; empty values and NaN are null. Relative URIs
    are relative to the manifest. Raises SettingsError when the manifest has no column `uri` or cannot be
    read, or when the storage of its first row cannot be opened.
    """
    base = base_of(manifest)
    try:
        with open_source(manifest, storage) as stream:
            rows = enumerate(_rows(stream, manifest, wanted or Wanted()), start=1)
            while batch := list(islice(rows, _BATCH)):
                uris = [(number, uri) for number, (uri, _) in batch]
                found = look_up_rows(uris, manifest, base, storage)
                for source, (_, (_, values)) in zip(found, batch, strict=True):
                    yield replace(source, kept=kept_text(values)) if values else source
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{manifest.uri}: the manifest cannot be read: it is not UTF-8 ({error})"
        ) from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise SettingsError(f"{manifest.uri}: the manifest cannot be read: {describe(error)}") from error


def addresses_in(manifest: Source, storage: StorageSettings, column: str) -> Iterator[tuple[str, str | None]]:
    """Yield (canonical URI, value of another column) of each row with a URI, without a look-up.

    Raises SettingsError as `read_manifest`; rows that are no address are left out.
    """
    base = base_of(manifest)
    try:
        with open_source(manifest, storage) as stream:
            for uri, values in _rows(stream, manifest, Wanted([column])):
                with suppress(ValueError, RuntimeError):  # as in `look_up_rows`
                    if uri:
                        yield canonical_uri(absolute(plain_file_url(uri), base)), next(iter(values), None)
    except (UnicodeDecodeError, pa.ArrowException, csv.Error, OSError) as error:
        raise SettingsError(f"{manifest.uri}: the manifest cannot be read: {describe(error)}") from error


def base_of(manifest: Source) -> str:
    """Return the address of the folder that holds a manifest."""
    address = manifest.address
    if address.startswith(("http://", "https://")):
        address = address.split("?", 1)[0]
    return address.rpartition("/")[0]


def _rows(stream: IO[bytes], manifest: Source, wanted: Wanted) -> Iterator[_Row]:
    kind = manifest_kind(manifest.uri)
    if kind == "parquet":
        return _parquet_rows(stream, manifest, wanted)
    if kind in ("csv", "tsv"):
        return _csv_rows(stream, manifest, "\t" if kind == "tsv" else ",", wanted)
    lines = _lines(stream, manifest)
    if kind == "txt":
        return ((line, ()) for line in lines)
    return _json_rows(lines, manifest, wanted)


def _lines(stream: IO[bytes], manifest: Source) -> Iterator[str]:
    """Yield the lines that are not empty, without surrounding blanks."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    while line := text.readline(_FIELD_LETTERS):
        if len(line) == _FIELD_LETTERS:
            raise SettingsError(f"{manifest.uri}: a line has more than {_FIELD_LETTERS:,} letters")
        if plain := line.strip():
            yield plain


def _json_rows(lines: Iterator[str], manifest: Source, wanted: Wanted) -> Iterator[_Row]:
    """Yield the rows; the first line determines which keys there are."""
    for number, line in enumerate(lines):
        row = _json_row(line, manifest)
        if number == 0:
            wanted.see(list(row))
        uri = row["uri"] if isinstance(row["uri"], str) and row["uri"] else None
        yield uri, [_json_text(row.get(name), name, manifest) for name in wanted.names]


def _json_text(value: Any, name: str, manifest: Source) -> str | None:
    if isinstance(value, dict | list):
        raise SettingsError(f"keep_columns: {manifest.uri}: {name} holds lists or objects, not plain values")
    if value is None or value == "" or value != value:  # NaN
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _json_row(line: str, manifest: Source) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{manifest.uri}: a line is no JSON: {fault(error)}") from error
    if not isinstance(row, dict) or "uri" not in row:
        raise SettingsError(f"{manifest.uri}: each line of the manifest needs a key uri")
    return row


def _csv_rows(stream: IO[bytes], manifest: Source, delimiter: str, wanted: Wanted) -> Iterator[_Row]:
    rows = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter)
    filled = filter(None, rows)  # empty lines are skipped
    names = next(filled, [])
    columns = [_column(names, manifest), *(_index(names, name) for name in wanted.names)]
    wanted.see(names)
    for row in filled:
        uri, *values = [(row[column] or None) if column < len(row) else None for column in columns]
        yield uri, values


def _index(names: Sequence[str], name: str) -> int:
    """Return the index of a column; one beyond the end of any row where it is missing."""
    return names.index(name) if name in names else sys.maxsize


def _parquet_rows(stream: IO[bytes], manifest: Source, wanted: Wanted) -> Iterator[_Row]:
    file = pq.ParquetFile(stream)
    kind = file.schema_arrow.field(_column(file.schema_arrow.names, manifest)).type
    if not any(is_text(kind) for is_text in TEXT_TYPES):
        raise SettingsError(f"{manifest.uri}: column uri must be text, it is {kind}")
    there = file.schema_arrow
    wanted.see(there.names)
    for name in wanted.names:
        if name in there.names and pa.types.is_nested(there.field(name).type):
            kind = there.field(name).type
            raise SettingsError(f"keep_columns: {manifest.uri}: {name} must hold plain values, it is {kind}")
    read = [name for name in ("uri", *wanted.names) if name in there.names]
    for batch in file.iter_batches(columns=read, batch_size=8192):
        nothing = [None] * batch.num_rows
        columns = [_texts(batch[name]) if name in read else nothing for name in wanted.names]
        uris = batch["uri"].cast(pa.string()).to_pylist()
        yield from zip(uris, zip(*columns, strict=True) if columns else [()] * len(uris), strict=True)


def _texts(column: pa.Array) -> list[str | None]:
    """Return the values as text, with null for NaN, which pandas writes for missing values."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return [text or None for text in column.cast(pa.string()).to_pylist()]


def _column(names: list[str], manifest: Source) -> int:
    if "uri" not in names:
        has = ", ".join(map(shown_name, names[:20]))[:300]
        raise SettingsError(f"{manifest.uri}: a manifest needs a column uri; it has: {has or 'none'}")
    return names.index("uri")


def look_up_rows(
    batch: list[tuple[int, str | None]], manifest: Source, base: str, storage: StorageSettings
) -> list[Source]:
    """Return the rows as Sources, in order; those of one remote storage are looked up together."""
    found: dict[int, Source] = {}
    remote: dict[int, tuple[Any, str, list[tuple[int, str]]]] = {}
    for row, uri in batch:
        if not uri:
            found[row] = _without_uri(manifest, row)
            continue
        address = absolute(plain_file_url(uri), base)
        try:
            protocol, _ = split_protocol(address)
            canonical = canonical_uri(address)
            if "\0" in address:
                raise ValueError("it holds a NUL")
        except (ValueError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
            why = "" if "netloc" in str(error) else f": {error}"  # urlsplit quotes it, secrets and all
            where, reason = f"{manifest.uri}#row={row}", f"row {row} of the manifest is no address{why}"
            found[row] = Source(where, where, "file", manifest.version, -1, "unsupported", reason)
            continue
        if protocol == "file":
            found[row] = local_source(canonical.removeprefix("file://"))
        elif protocol not in EXTRAS:
            reason = f"unknown protocol {protocol}://"
            found[row] = Source(canonical, address, "file", "", -1, "unsupported", reason)
        else:
            try:
                filesystem, path = open_filesystem(address, storage)
            except SettingsError as error:
                if row == 1:  # most likely all rows fail: no library, no account
                    raise
                found[row] = Source(canonical, address, "file", "", -1, "unsupported", str(error))
                continue
            remote.setdefault(id(filesystem), (filesystem, protocol, []))[2].append((row, path))
    for filesystem, protocol, places in remote.values():
        infos = request_all(filesystem, "info", [{"path": path} for _, path in places], storage)
        for (row, path), info in zip(places, infos, strict=True):
            found[row] = _remote(protocol, path, info)
    return [found[row] for row, _ in batch]


def _without_uri(manifest: Source, row: int) -> Source:
    where = f"{manifest.uri}#row={row}"
    return Source(
        where, where, "file", manifest.version, -1, "missing", f"row {row} of the manifest has no uri"
    )


def absolute(uri: str, base: str) -> str:
    """Return an address that may be relative to a folder."""
    if "://" in uri or uri.startswith(("/", "~")):
        return uri
    if "://" not in base:
        return f"{base}/{uri}"
    scheme, _, folder = base.partition("://")
    return f"{scheme}://{_joined(folder, uri)}"


def _joined(folder: str, path: str) -> str:
    """Join as on a disk: object stores do not resolve `.` and `..`, and have empty names, as in `a//b`."""
    names = folder.split("/")
    for name in path.split("/"):
        if name == "..":
            del names[max(1, len(names) - 1) :]  # the bucket stays
        elif name != ".":
            names.append(name)
    return "/".join(names)


def _remote(protocol: str, path: str, info: dict[str, Any] | Exception) -> Source:
    if not isinstance(info, Exception) and info.get("type") == "directory":
        info = IsADirectoryError(path)
    if not isinstance(info, Exception):
        return remote_source(protocol, path, info)
    error, uri = as_item_error(info), remote_uri(protocol, path)
    return Source(uri, uri, "file", "", -1, error.error_type, error.reason)


def shown_name(name: str) -> str:
    """Return a column's name without control characters and signatures: it may be data of the first row."""
    plain = _QUERY.sub("", _USER.sub("", name)) if "://" in name else name
    return plain if plain.isprintable() else repr(plain)
