"""Archives, read member by member: at most the members of one table are in memory.

A tar is read forwards, a zip through its central directory; both skip the bytes of members that are done,
where the format allows it. Nothing is ever written to disk, so a member's name is only a name.
"""

import hashlib
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa

from segray.errors import ItemError
from segray.sources.concurrent_requests import as_item_error
from segray.sources.item import Source
from segray.sources.name_filter import EVERYTHING, Choice
from segray.sources.names import archive_kind, is_image_name, printable
from segray.sources.read_step import MAX_FILE_BYTES
from segray.sources.reader import open_source
from segray.sources.rows import FetchedRows
from segray.sources.tar import tar_members
from segray.sources.zip import zip_members
from segray.storage import StorageSettings

_NESTED = ItemError("unsupported", "an archive inside an archive is not opened: unpack it")
_NAME_LETTERS = 4096
"""A longer name is not a path on any system (Linux PATH_MAX); tar allows any length."""


def read_archive(
    source: Source,
    done: Container[int],
    storage: StorageSettings,
    max_bytes: int = MAX_FILE_BYTES,
    choice: Choice = EVERYTHING,
) -> Iterator[pa.Table]:
    """Yield a tar's or zip's image members, in order, as tables of schema FETCHED; nested archives are
    rejected.

    `done` holds the `member_index` of members to leave out; they still count as items. The very last row is
    the control row. Where the archive breaks off, what was read stays, and one more rejected row, without a
    member, stands for the archive itself. Tables are cut by the members' sizes: alike for the same `done`.
    Storage errors become a rejected row too.
    """
    reading = _Reading(source, done, max_bytes, choice)
    try:
        if source.error_type is not None:
            raise ItemError(source.error_type, source.error or source.error_type)
        with open_source(source, storage) as stream:
            yield from reading.tables(stream)
    except Exception as error:  # noqa: BLE001 - an archive's fault costs the rest of it, not the job
        reading.break_off(as_item_error(error, "the archive"))
    reading.rows.add_end(source, reading.items, reading.ignored, reading.broken)
    yield reading.rows.take()


@dataclass
class _Reading:
    """Position in the archive, and counts so far."""

    source: Source
    done: Container[int]
    max_bytes: int
    choice: Choice
    rows: FetchedRows = field(default_factory=FetchedRows)
    items: int = 0
    ignored: int = 0
    broken: bool = False
    seen: Counter[bytes] = field(default_factory=Counter)
    """How often a name occurred, by its digest: a hostile archive has millions of long ones."""

    def tables(self, stream: IO[bytes]) -> Iterator[pa.Table]:
        members = tar_members(stream) if self.source.kind == "tar" else zip_members(stream)
        for member in members:
            is_archive = archive_kind(member.name) is not None
            if not (is_archive or is_image_name(member.name)) or self.choice.leaves_out(member.name):
                self.ignored += 1
                continue
            name = _shown(member.name)
            digest = hashlib.sha256(name.encode()).digest()[:16]
            occurrence = self.seen[digest]
            self.seen[digest] += 1
            if member.index not in self.done:
                if not self.rows.fits(member.size if member.size <= self.max_bytes and not is_archive else 0):
                    yield self.rows.take()
                data = _NESTED if is_archive else member.read(self.max_bytes)
                self.rows.add_member(self.source, name, occurrence, member.index, data)
            self.items += 1  # only now: a member that breaks the archive off is reported by the archive's row

    def break_off(self, error: ItemError) -> None:
        """Add the rejected row for the archive itself."""
        before = self.items + self.ignored
        where = f"after {before} member{'s' * (before > 1)}: " if before else ""
        self.rows.add_file(self.source, ItemError(error.error_type, where + error.reason))
        self.items += 1
        self.broken = True


def _shown(name: str) -> str:
    """Return the name as the ledger keeps it; names that are cut alike differ by their occurrence."""
    name = printable(name)
    return name if len(name) <= _NAME_LETTERS else name[:_NAME_LETTERS] + "…"
