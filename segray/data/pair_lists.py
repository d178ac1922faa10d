"""Manifests and lists -> one Row per line, both of its files looked up in their storage.

    manifest   CSV or Parquet with the columns `images`, `masks` and, optionally, `split` and `group`
    list       text without a header, `image label` a line

The separator of text is the first of comma, tab and blanks that its first line has. Paths are relative to a
base, or absolute paths and URLs.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from segray.data.pair_folders import SPLIT_NAMES
from segray.errors import SettingsError
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.manifest import TEXT_TYPES, look_up_rows, shown_name
from segray.sources.names import is_image_name, manifest_kind
from segray.sources.reader import open_source
from segray.storage import StorageSettings

COLUMNS = ("images", "masks", "split", "group")
"""The last two are optional."""
_BATCH = 512
"""Rows that are looked up at a time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a manifest or list."""

    place: str
    """`<uri of the manifest>#row=<number>`, counted from 1 after the header."""
    image: Source | None
    """None where the row names none; the storage's error is the Source's error."""
    label: Source | None
    split: str | None
    """`train`, `val`, `test`, or None where the data do not say."""
    group: str | None = None
    """Images of one group stay in one split, e.g. those of a camera; any text."""
    problem: str | None = None
    """Set for a line of more than two names."""


@dataclass(frozen=True, slots=True)
class _Line:
    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    problem: str | None = None


def look_up(names: Sequence[str], where: Source, base: str, storage: StorageSettings) -> list[Source]:
    """Return files by name, relative to `base`; those that do not exist carry the error `missing`."""
    rows: list[tuple[int, str | None]] = [*enumerate(names, start=1)]
    return look_up_rows(rows, where, base, storage)


def read_rows(manifest: Source, base: str, split: str | None, storage: StorageSettings) -> Iterator[Row]:
    """Yield a Row for every line, in order; relative paths are relative to `base`.

    `split` is the default for rows without one. Raises SettingsError for a file that cannot be read, has
    neither the columns nor the format of a list, or has an unknown split; and when the storage of its first
    row cannot be opened.
    """
    try:
        with open_source(manifest, storage) as stream:
            is_parquet = manifest_kind(manifest.uri) == "parquet"
            lines = _parquet_lines(stream, manifest) if is_parquet else _text_lines(stream, manifest)
            numbered = enumerate(lines, start=1)
            while batch := list(islice(numbered, _BATCH)):
                yield from _looked_up(batch, manifest, base, split, storage)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{manifest.uri}: it cannot be read: it is not UTF-8 ({error})") from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise SettingsError(f"{manifest.uri}: it cannot be read: {describe(error)}") from error


def _looked_up(
    batch: list[tuple[int, _Line]], manifest: Source, base: str, split: str | None, storage: StorageSettings
) -> Iterator[Row]:
    images, labels = (
        dict(zip([number for number, _ in named], look_up_rows(named, manifest, base, storage), strict=True))
        for named in (_named(batch, "image"), _named(batch, "label"))
    )
    for number, line in batch:
        place = f"{manifest.uri}#row={number}"
        row_split = _split(line.split, place) or split
        yield Row(place, images.get(number), labels.get(number), row_split, line.group, line.problem)


def _named(batch: list[tuple[int, _Line]], which: str) -> list[tuple[int, str | None]]:
    return [(number, getattr(line, which)) for number, line in batch if getattr(line, which)]


def _split(name: str | None, place: str) -> str | None:
    if not name or not name.strip():
        return None
    split = SPLIT_NAMES.get(name.strip().lower())
    if split is None:
        raise SettingsError(f"{place}: split {name[:40]!r} is not one of {', '.join(SPLIT_NAMES)}")
    return split


def _text_lines(stream: IO[bytes], manifest: Source) -> Iterator[_Line]:
    rows = _text_rows(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    first = next(rows, [])
    if not set(COLUMNS[:2]) & set(first) and len(first) == 2 and all(map(is_image_name, first)):
        yield from map(_list_line, chain([first], rows))
        return
    places = _columns(first, manifest)
    for row in rows:
        yield _line([(row[place] or None) if 0 <= place < len(row) else None for place in places])


def _text_rows(text: io.TextIOWrapper) -> Iterator[list[str]]:
    """Yield the fields of each line that is not empty."""
    first = next((line for line in text if line.strip()), "")
    lines = chain([first], text)
    if "," in first:
        return filter(None, csv.reader(lines, skipinitialspace=True))
    if "\t" in first:
        return ([field.strip() for field in line.split("\t")] for line in lines if line.strip())
    return (line.split() for line in lines if line.strip())


def _line(values: Sequence[str | None]) -> _Line:
    """Return a line from the values of COLUMNS."""
    image, label, split, group = values
    return _Line(image, label, split, group and (group.strip() or None))


def _list_line(fields: list[str]) -> _Line:
    if len(fields) > 2:
        hint = "names with blanks need a comma or a tab between them"
        return _Line(problem=f"not `image label`, it has {len(fields)} fields; {hint}")
    return _Line(*(name or None for name in fields))


def _parquet_lines(stream: IO[bytes], manifest: Source) -> Iterator[_Line]:
    file = pq.ParquetFile(stream)
    schema = file.schema_arrow
    _columns(schema.names, manifest)
    names = [name for name in COLUMNS if name in schema.names]
    for name in names:
        kind = schema.field(name).type
        is_number = name == "group" and pa.types.is_integer(kind)
        if not is_number and not any(is_text(kind) for is_text in TEXT_TYPES):
            raise SettingsError(f"{manifest.uri}: column {name} must be text, it is {kind}")
    for batch in file.iter_batches(columns=names, batch_size=8192):
        missing = pa.nulls(batch.num_rows, pa.string())
        columns = [batch.column(name).cast(pa.string()) if name in names else missing for name in COLUMNS]
        yield from map(_line, zip(*(column.to_pylist() for column in columns), strict=True))


def _columns(names: list[str], manifest: Source) -> list[int]:
    """Return the index of each of COLUMNS, -1 where it is missing."""
    if not set(COLUMNS[:2]) <= set(names):
        has = ", ".join(map(shown_name, names[:20]))[:300]
        raise SettingsError(
            f"{manifest.uri}: a manifest needs the columns images and masks, a list without a header two "
            f"names of images a line; it has: {has or 'none'}"
        )
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise SettingsError(f"{manifest.uri}: the column {twice[0]} occurs more than once")
    return [names.index(name) if name in names else -1 for name in COLUMNS]
