"""Manifests, streamed, each row looked up in its storage.

The column `uri` of Parquet, CSV and TSV, the key `uri` of each line of JSON, each line of a text.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.address import plain_file_url
from segray.errors import SettingsError
from segray.sources.item import Source
from segray.sources.local import local_source
from segray.sources.names import fault, manifest_kind
from segray.sources.reader import open_source
from segray.sources.remote import remote_source, remote_uri
from segray.sources.roundtrips import as_item_error, describe, request_all
from segray.storage import EXTRAS, StorageSettings, canonical_uri, open_filesystem, split_protocol

TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
    pa.types.is_large_binary, pa.types.is_dictionary, pa.types.is_null,
)  # fmt: skip
"""Arrow types of a column `uri`; some writers do not say that their bytes are UTF-8."""
_USER = re.compile(r"(?<=://)[^/@]*@")
_QUERY = re.compile(r"\?.*")
_FIELD_LETTERS = 64 << 20
"""Most that a field or a line may have, whatever stands in it."""
csv.field_size_limit(_FIELD_LETTERS)  # for lists of pairs too; Python's own is below one embedded thumbnail
_BATCH = 512
"""Rows looked up at a time."""


def read_manifest(manifest: Source, storage: StorageSettings) -> Iterator[Source]:
    """A Source of kind `file` for every row, in order; what is wrong with a row is its Source's error.

    Relative uris are relative to the manifest. Raises SettingsError when the manifest has no column `uri` or
    cannot be read, or when the storage of its first row cannot be opened.
    """
    base = base_of(manifest)
    try:
        with open_source(manifest, storage) as stream:
            rows = enumerate(_uris(stream, manifest), start=1)
            while batch := list(islice(rows, _BATCH)):
                yield from look_up_rows(batch, manifest, base, storage)
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{manifest.uri}: the manifest cannot be read: it is not UTF-8 ({error})"
        ) from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise SettingsError(f"{manifest.uri}: the manifest cannot be read: {describe(error)}") from error


def base_of(manifest: Source) -> str:
    """The address of the folder that a manifest lies in."""
    address = manifest.address
    if address.startswith(("http://", "https://")):
        address = address.split("?", 1)[0]
    return address.rpartition("/")[0]


def _uris(stream: IO[bytes], manifest: Source) -> Iterator[str | None]:
    kind = manifest_kind(manifest.uri)
    if kind == "parquet":
        return _parquet_uris(stream, manifest)
    if kind in ("csv", "tsv"):
        return _csv_uris(stream, manifest, "\t" if kind == "tsv" else ",")
    lines = _lines(stream, manifest)
    return lines if kind == "txt" else (_json_uri(line, manifest) for line in lines)


def _lines(stream: IO[bytes], manifest: Source) -> Iterator[str]:
    """Those that are not empty, without blanks around them."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    while line := text.readline(_FIELD_LETTERS):
        if len(line) == _FIELD_LETTERS:
            raise SettingsError(f"{manifest.uri}: a line has more than {_FIELD_LETTERS:,} letters")
        if plain := line.strip():
            yield plain


def _json_uri(line: str, manifest: Source) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{manifest.uri}: a line is no JSON: {fault(error)}") from error
    if not isinstance(row, dict) or "uri" not in row:
        raise SettingsError(f"{manifest.uri}: each line of the manifest needs a key uri")
    return row["uri"] if isinstance(row["uri"], str) and row["uri"] else None


def _csv_uris(stream: IO[bytes], manifest: Source, delimiter: str) -> Iterator[str | None]:
    rows = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter)
    filled = filter(None, rows)  # an empty line is no row
    column = _column(next(filled, []), manifest)
    for row in filled:
        yield (row[column] or None) if column < len(row) else None


def _parquet_uris(stream: IO[bytes], manifest: Source) -> Iterator[str | None]:
    file = pq.ParquetFile(stream)
    kind = file.schema_arrow.field(_column(file.schema_arrow.names, manifest)).type
    if not any(is_text(kind) for is_text in TEXT_TYPES):
        raise SettingsError(f"{manifest.uri}: column uri must be text, it is {kind}")
    for batch in file.iter_batches(columns=["uri"], batch_size=8192):
        yield from batch.column(0).cast(pa.string()).to_pylist()


def _column(names: list[str], manifest: Source) -> int:
    if "uri" not in names:
        has = ", ".join(map(shown_name, names[:20]))[:300]
        raise SettingsError(f"{manifest.uri}: a manifest needs a column uri; it has: {has or 'none'}")
    return names.index("uri")


def look_up_rows(
    batch: list[tuple[int, str | None]], manifest: Source, base: str, storage: StorageSettings
) -> list[Source]:
    """The rows as Sources, in order, those of one remote storage looked up together."""
    found: dict[int, Source] = {}
    remote: dict[int, tuple[Any, str, list[tuple[int, str]]]] = {}
    for row, uri in batch:
        if not uri:
            found[row] = _without_uri(manifest, row)
            continue
        address = _absolute(plain_file_url(uri), base)
        try:
            protocol, _ = split_protocol(address)
            canonical = canonical_uri(address)
            if "\0" in address:
                raise ValueError("it holds a NUL")
        except (ValueError, RuntimeError) as error:  # RuntimeError: ~ of a user that there is not
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
                if row == 1:  # most likely all rows are so: no library, no account
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


def _absolute(uri: str, base: str) -> str:
    if "://" in uri or uri.startswith(("/", "~")):
        return uri
    if "://" not in base:
        return f"{base}/{uri}"
    scheme, _, folder = base.partition("://")
    return f"{scheme}://{_joined(folder, uri)}"


def _joined(folder: str, path: str) -> str:
    """Object stores know no `.` and `..`, but names without a letter, as in `a//b`."""
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
    """A column's name, which may be the first row of something else: without control signs and signatures."""
    plain = _QUERY.sub("", _USER.sub("", name)) if "://" in name else name
    return plain if plain.isprintable() else repr(plain)
