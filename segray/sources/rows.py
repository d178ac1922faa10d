"""Collect rows of FETCHED into tables that are cut by sizes alone, so that a rerun cuts alike."""

from dataclasses import dataclass, field

import pyarrow as pa

from segray.errors import ItemError
from segray.schema import FETCHED
from segray.sources.item import Source, image_id
from segray.sources.names import printable

TABLE_BYTES = 16 << 20
"""A table of encoded files is cut before it exceeds this (Ray moves blocks of this size well)."""
TABLE_ROWS = 64
_NO_SCENE = (None, None, None, None)
"""Values of `scene`, `tiles`, `address` and `size` in a row that holds its file's bytes."""


def fits(rows: int, held: int, size: int) -> bool:
    """Return whether `size` more bytes fit a table of `rows` rows, `held` bytes; an empty one takes any."""
    return rows == 0 or (rows < TABLE_ROWS and held + size <= TABLE_BYTES)


@dataclass
class FetchedRows:
    """A table that grows row by row; `take` returns it and starts a new one."""

    rows: list[tuple[object, ...]] = field(default_factory=list)
    size: int = 0

    def fits(self, size: int) -> bool:
        """Return whether a row of `size` bytes still fits this table."""
        return fits(len(self.rows), self.size, size)

    def add_file(self, source: Source, data: bytes | ItemError) -> None:
        """Add a source that is one item, or an archive's own rejection."""
        key = image_id(source.uri, None, 0, source.version)
        self._add((key, source.uri, None, None, source.version), data)

    def add_member(
        self, source: Source, name: str, occurrence: int, index: int, data: bytes | ItemError
    ) -> None:
        """Add a member of the archive `source`; `index` is its index among all members."""
        key = image_id(source.uri, name, occurrence, source.version)
        self._add((key, source.uri, name, index, source.version), data)

    def add_end(self, source: Source, items: int, ignored: int, broken: bool) -> None:
        """Add the control row after the last member."""
        end = {"items": items, "ignored": ignored, "broken": broken}
        self.rows.append((None, source.uri, None, None, source.version, None, None, None, end, *_NO_SCENE))

    def add_tiles(self, source: Source, scene: str, tiles: list[int]) -> None:
        """Add tiles of a scene, whose file is read later."""
        key = image_id(source.uri, None, 0, source.version)
        identity = (key, source.uri, None, None, source.version)
        self.rows.append((*identity, None, None, None, None, scene, tiles, source.address, source.size))

    def take(self) -> pa.Table:
        """Return the rows so far as a table of schema FETCHED."""
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in FETCHED)
        arrays = [pa.array(list(column), kind.type) for column, kind in zip(columns, FETCHED, strict=True)]
        self.rows, self.size = [], 0
        return pa.Table.from_arrays(arrays, schema=FETCHED)

    def _add(self, identity: tuple[object, ...], data: bytes | ItemError) -> None:
        if isinstance(data, ItemError):
            self.rows.append((*identity, None, data.error_type, printable(data.reason), None, *_NO_SCENE))
            return
        self.rows.append((*identity, data, None, None, None, *_NO_SCENE))
        self.size += len(data)
