"""The work to do: the listing compared with the ledger, in a scratch database on the driver's disk.

SQLite holds both sides, so that neither memory nor code grows with the number of items: duplicate addresses,
resume, changed and vanished sources and the final account are one query each. An item that is processed in
tiles has a row for each tile that came back, until all have and it becomes an item like the others. Where
some of them are rejected, the rows are kept next to it: a retry processes those alone.
"""

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from tempfile import gettempdir
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segray.errors import JobFailedError
from segray.output.store import TILE_RESULTS, End, GoneError, Part, Store, ends_of
from segray.scenes.scene import scene_from
from segray.schema import ANNOTATED
from segray.sources.item import Kept, Source, kept_text
from segray.sources.name_filter import kind_of

LEDGER_COLUMNS = [
    "uri", "member", "member_index", "version", "status", "error_type", "error", "instances",
    "empty_masks", "vanished", "tiles", "tiles_rejected", "tiles_skipped", "note",
]  # fmt: skip

_SOURCE = [each.name for each in fields(Source)]
_ROWS = 1000
_TABLES = """
CREATE TABLE source (uri TEXT PRIMARY KEY, address TEXT, kind TEXT, version TEXT, size INTEGER,
                     error_type TEXT, error TEXT, kept TEXT, taken_at INTEGER) WITHOUT ROWID;
CREATE TABLE ledger (image_id TEXT PRIMARY KEY, uri TEXT, member TEXT, member_index INTEGER, version TEXT,
                     status TEXT, error_type TEXT, error TEXT, instances INTEGER, empty_masks INTEGER,
                     vanished INTEGER, tiles INTEGER, tiles_rejected INTEGER, tiles_skipped INTEGER,
                     note TEXT, kept TEXT, part INTEGER, done INTEGER) WITHOUT ROWID;
CREATE INDEX ledger_uri ON ledger (uri, version, member, done, member_index);
CREATE INDEX ledger_part ON ledger (part);
CREATE TABLE tile (image_id TEXT, tile INTEGER, tiles INTEGER, part INTEGER, rejected INTEGER, kept INTEGER,
                   PRIMARY KEY (image_id, tile)) WITHOUT ROWID;
CREATE INDEX tile_part ON tile (part);
CREATE TABLE stale (part INTEGER, image_id TEXT);
CREATE INDEX stale_part ON stale (part);
CREATE TABLE ended (uri TEXT, version TEXT, items INTEGER, ignored INTEGER, broken INTEGER,
                    PRIMARY KEY (uri, version));
CREATE VIEW unreached AS SELECT * FROM source s WHERE s.version = '' AND s.error_type IS NOT NULL
    AND EXISTS (SELECT 1 FROM ledger l WHERE l.uri = s.uri AND l.version != '');
CREATE VIEW listed AS SELECT * FROM source s WHERE s.version != '' OR s.error_type IS NULL
    OR NOT EXISTS (SELECT 1 FROM ledger l WHERE l.uri = s.uri AND l.version != '');
"""
_PARTLY = "(SELECT image_id FROM ledger WHERE status = 'annotated' AND tiles_rejected > 0)"
"""Items whose tiles are worth keeping."""
_RESULTS = "(SELECT count(*) FROM ledger l WHERE l.uri = s.uri AND l.version = s.version AND l.done)"
"""Number of items of a source's present version that have a result."""

_OPEN_ARCHIVES = """
    SELECT s.* FROM listed s LEFT JOIN ended e ON e.uri = s.uri AND e.version = s.version
    WHERE s.kind != 'file' AND (e.items IS NULL OR e.items > (
        SELECT count(l.member_index) + (e.broken AND count(*) > count(l.member_index)) FROM ledger l
        WHERE l.uri = s.uri AND l.version = s.version AND l.done)) ORDER BY s.uri"""
"""Archives whose end was not read, or with members (or, broken, the archive's own row) without a result."""


_MARKS = """
    FROM (SELECT l.*, s.uri IS NULL OR l.version != s.version AS gone
          FROM ledger l LEFT JOIN source s USING (uri))
    WHERE gone != vanished"""
"""Ledger rows whose mark `vanished` differs from the listing; `gone` is the right one."""

_RELABELLED = """
    FROM ledger l JOIN source s USING (uri) WHERE l.version = s.version AND l.kept IS NOT s.kept"""
"""Ledger rows whose kept columns differ from the manifest's present values."""

_REPLACED = """
    FROM ledger l JOIN source s USING (uri) WHERE l.version != s.version AND (
        EXISTS (SELECT 1 FROM ledger n WHERE n.uri = l.uri AND n.version = s.version AND n.member IS l.member
                AND coalesce(n.error_type, '') NOT IN ('missing', 'storage'))
        OR l.member IS NULL
        AND EXISTS (SELECT 1 FROM ended e WHERE e.uri = l.uri AND e.version = s.version))"""
"""Ledger rows that the newest version of the same item replaces. An unreadable version replaces nothing, nor
does an archive that no longer has a member."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive with work left, and which of its members are done already."""

    source: Source
    done: bytes
    """Bitmap over member indices: bit `i % 8` of byte `i // 8` is set where the member is in the ledger."""

    def __contains__(self, member_index: object) -> bool:
        """Return whether a member is done; called by `read_archive`."""
        if not isinstance(member_index, int) or member_index >> 3 >= len(self.done):
            return False
        return bool(self.done[member_index >> 3] >> (member_index & 7) & 1)


class LedgerDb:
    """The scratch database, as a context manager; a full disk becomes JobFailedError."""

    def __init__(self) -> None:
        self._filling = threading.Lock()
        self.query_twins = 0
        """Rows whose address differs from an earlier one's in the query string alone, which is in no id."""
        # a file that is deleted with the process; SQLite itself admits one thread at a time
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.create_function("kind_of", 1, kind_of, deterministic=True)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;" + _TABLES
        )

    def __enter__(self) -> "LedgerDb":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if isinstance(error, sqlite3.OperationalError):
            where = f"the folder for temporary files, {gettempdir()}"
            raise JobFailedError(
                f"{error}: {where}; make room there or set TMPDIR, then run again"
            ) from error

    # --- filling -------------------------------------------------------------------------------------

    def add_sources(self, sources: Iterable[Source]) -> None:
        """Add part of the listing; a repeated address is one source. Any thread may call it."""
        rows = (tuple(getattr(source, name) for name in _SOURCE) for source in sources)
        while some := list(islice(rows, _ROWS)):  # other threads wait for these at most
            self._many("INSERT OR IGNORE INTO source VALUES (?,?,?,?,?,?,?,?,?)", some)
            for uri, address, *_ in some:
                if uri.startswith("http"):
                    other = "SELECT count(*) FROM source WHERE uri = ? AND address != ?"
                    self.query_twins += int(self._db.execute(other, (uri, address)).fetchone()[0])

    def add_ledger(self, store: Store, part: Part) -> None:
        """Add one part's ledger rows; the oldest part must come first: newer rows make older ones stale."""
        if part.folder == TILE_RESULTS:
            with suppress(GoneError):  # deleted, late, by an earlier run: its items are processed again
                self.add_tiles(store.results(part), part)
            return
        for batch in store.ledger(part, [*LEDGER_COLUMNS, *store.kept]):
            self._add_rows(batch, part.number, store.kept)
        self.add_ends(store.ends(part))

    def add_committed(self, table: pa.Table, part: Part) -> None:
        """Add the rows of a commit of this run (schema ANNOTATED, and the kept columns)."""
        kept = [name for name in table.column_names if name not in ANNOTATED.names]
        rows = table.filter(pc.is_valid(table["image_id"])).select(["image_id", *LEDGER_COLUMNS, *kept])
        for batch in rows.to_batches():
            self._add_rows(batch, part.number, kept)
        self.add_ends(ends_of(table))

    def add_tiles(self, table: pa.Table, part: Part) -> None:
        """Add tiles that came back (schema ANNOTATED), of items that are not complete yet."""
        columns = (table[name].to_pylist() for name in ("image_id", "tile", "scene", "status"))
        self._many(
            "INSERT INTO tile VALUES (?,?,?,?,?,0) ON CONFLICT (image_id, tile) DO UPDATE SET"
            " part = excluded.part, rejected = excluded.rejected WHERE rejected OR NOT excluded.rejected",
            (
                (item, tile, len(scene_from(scene).grid), part.number, status == "rejected")
                for item, tile, scene, status in zip(*columns, strict=True)
            ),
        )

    def settle(self, *, keeps: bool) -> None:
        """Delete tiles of complete items; `keeps`: except of items with rejected tiles."""
        if keeps:
            self._db.execute(f"UPDATE tile SET kept = 1 WHERE image_id IN {_PARTLY}")
        self._db.execute("DELETE FROM tile WHERE NOT kept AND image_id IN (SELECT image_id FROM ledger)")

    def forget_tiles(self, image_id: str, *, keeps: bool) -> None:
        """Delete the tiles of a complete item; `keeps`: see `settle`."""
        if keeps:
            self._db.execute(
                f"UPDATE tile SET kept = 1 WHERE image_id = ? AND image_id IN {_PARTLY}", (image_id,)
            )
        self._db.execute("DELETE FROM tile WHERE image_id = ? AND NOT kept", (image_id,))

    def forget_useless_tiles(self) -> None:
        """Keep, at the end of a run, only tiles that a retry can use, now or when a source is back."""
        self._db.execute(f"DELETE FROM tile WHERE image_id NOT IN {_PARTLY}")

    def add_ends(self, ends: Sequence[End]) -> None:
        """Add archives that were read to their end; a complete read overrides a broken one."""
        self._many(
            "INSERT INTO ended VALUES (?,?,?,?,?) ON CONFLICT (uri, version) DO UPDATE SET"
            " items = excluded.items, ignored = excluded.ignored, broken = excluded.broken"
            " WHERE excluded.broken <= broken",
            ends,
        )
        whole = [(end.uri, end.version) for end in ends if not end.broken]
        rejected = "ledger WHERE uri = ? AND version = ? AND member_index IS NULL"
        self._many(f"INSERT INTO stale SELECT part, image_id FROM {rejected}", whole)
        self._many(f"DELETE FROM {rejected}", whole)  # recorded that the archive was broken

    def moved(
        self,
        stale: Mapping[int, Sequence[str]],
        to: Part,
        vanished: Mapping[str, bool],
        kept: Mapping[str, Kept],
    ) -> None:
        """Move the rows of merged parts to another part, without those that were `stale` then."""
        for part, dropped in stale.items():
            self._many(
                "DELETE FROM ledger WHERE part = ? AND image_id = ?",
                ((part, image_id) for image_id in dropped),
            )
            self._db.execute("DELETE FROM stale WHERE part = ?", (part,))
            self._db.execute("UPDATE ledger SET part = ? WHERE part = ?", (to.number, part))
        marks = [(int(gone), image_id) for image_id, gone in vanished.items()]
        self._many("UPDATE ledger SET vanished = ? WHERE image_id = ?", marks)
        texts = [(kept_text(values), image_id) for image_id, values in kept.items()]
        self._many("UPDATE ledger SET kept = ? WHERE image_id = ?", texts)

    def forget_rejected(self) -> None:
        """Mark rejected items, and those with rejected tiles, as not done.

        Their rows become stale when a new result is there.
        """
        self._db.execute("UPDATE ledger SET done = 0 WHERE status = 'rejected' OR tiles_rejected > 0")
        self._db.execute("DELETE FROM tile WHERE kept AND rejected")
        self._db.execute("UPDATE tile SET kept = 0")

    # --- asking --------------------------------------------------------------------------------------

    def sources(self) -> int:
        """Return the number of addresses in the listing."""
        return self._one("SELECT count(*) FROM source")

    def kinds(self) -> tuple[int, int]:
        """Return the numbers of files and archives in the listing."""
        files, archives = self._db.execute(
            "SELECT total(kind = 'file'), total(kind != 'file') FROM listed"
        ).fetchone()
        return int(files), int(archives)

    def unreached(self) -> tuple[int, str]:
        """Return how many sources with rows of an earlier run cannot be reached now, and one error."""
        number = self._one("SELECT count(*) FROM unreached")
        first = self._db.execute("SELECT uri, error FROM unreached LIMIT 1").fetchone()
        return number, ": ".join(first or ())

    def units(self) -> tuple[int, int, dict[str, int]]:
        """Return how many images and tiles of the present listing have a result, and which items are begun.

        Of these: image_id -> number of tiles without a result.
        """
        images, tiles = self._db.execute(
            "SELECT count(*), total(coalesce(tiles, 0)) FROM ledger l"
            " JOIN source s USING (uri) WHERE l.version = s.version AND l.done"
        ).fetchone()
        begun = self._db.execute(
            "SELECT image_id, max(tiles), count(*) FROM tile WHERE NOT kept GROUP BY image_id"
        ).fetchall()
        done = int(tiles) + sum(have for _, _, have in begun)
        return int(images), done, {item: tiles - have for item, tiles, have in begun}

    def with_kept(self, rows: pa.Table, names: Sequence[str]) -> pa.Table:
        """Return rows of ANNOTATED with the columns of the listing that `--keep-columns` names.

        If an address is listed twice, its first row counts.
        """
        if not names:
            return rows
        uris = rows["uri"].to_pylist()
        known = {uri: self._kept(uri) or [None] * len(names) for uri in set(uris)}
        columns = zip(*(known[uri] for uri in uris), strict=True) if uris else [()] * len(names)
        for name, values in zip(names, columns, strict=True):
            rows = rows.append_column(name, pa.array(values, pa.string()))
        return rows

    def with_times(self, rows: pa.Table) -> pa.Table:
        """Return rows of ANNOTATED with `taken_at` as STAC Items of the listing have it."""
        query = "SELECT taken_at FROM source WHERE uri = ? AND taken_at IS NOT NULL"
        times = {uri: self._db.execute(query, (uri,)).fetchone() for uri in set(rows["uri"].to_pylist())}
        if not any(times.values()):
            return rows
        column = pa.array([(times[uri] or (None,))[0] for uri in rows["uri"].to_pylist()], pa.int64())
        place = rows.schema.get_field_index("taken_at")
        known = pc.coalesce(column.cast(rows.schema.field(place).type), rows["taken_at"])
        return rows.set_column(place, rows.schema.field(place), known)

    def _kept(self, uri: str | None) -> Kept | None:
        row = self._db.execute("SELECT kept FROM source WHERE uri = ?", (uri,)).fetchone()
        found: Kept | None = json.loads(row[0]) if row and row[0] else None
        return found

    def known_total(self) -> int | None:
        """Return the number of items; None while an archive was not read to its end."""
        files, archives = self.kinds()
        ended = self._db.execute(
            "SELECT count(*), coalesce(sum(items), 0) FROM ended JOIN source s USING (uri, version)"
        ).fetchone()
        return files + int(ended[1]) if ended[0] == archives else None

    def has_work(self) -> bool:
        """Return whether any item of the listing has no result."""
        return bool(self.without_result())

    def is_finished(self) -> bool:
        """Return whether the ledger agrees with the listing."""
        return not self.has_work() and not any(
            self._one(f"SELECT EXISTS (SELECT 1 {rows})")
            for rows in ("FROM stale", _REPLACED, _MARKS, _RELABELLED)
        )

    def todo_files(self) -> Iterator[Source]:
        """Yield files without a result for their present version, by address."""
        for row in self._db.execute(
            f"SELECT * FROM listed s WHERE kind = 'file' AND {_RESULTS} = 0 ORDER BY uri"
        ):
            yield Source(*row)

    def done_tiles(self) -> dict[str, list[int]]:
        """Return the tiles that came back of incomplete items, by image_id."""
        done: dict[str, list[int]] = {}
        query = "SELECT image_id, tile FROM tile WHERE NOT kept ORDER BY image_id, tile"
        for image_id, tile in self._db.execute(query):
            done.setdefault(image_id, []).append(tile)
        return done

    def whole(self) -> dict[str, list[int]]:
        """Return items all of whose tiles came back: image_id -> numbers of the parts that hold them."""
        query = """
            SELECT DISTINCT image_id, part FROM tile WHERE image_id IN
            (SELECT image_id FROM tile WHERE NOT kept GROUP BY image_id HAVING count(*) = max(tiles))
            ORDER BY part"""
        parts: dict[str, list[int]] = {}
        for image_id, part in self._db.execute(query):
            parts.setdefault(image_id, []).append(part)
        return parts

    def holds_tiles(self, part: Part) -> bool:
        """Return whether a commit has tiles that are needed."""
        return bool(
            self._db.execute("SELECT EXISTS (SELECT 1 FROM tile WHERE part = ?)", (part.number,)).fetchone()[
                0
            ]
        )

    def holds(self, image_id: str) -> bool:
        """Return whether the ledger has a row of that image_id."""
        query = "SELECT EXISTS (SELECT 1 FROM ledger WHERE image_id = ?)"
        return bool(self._db.execute(query, (image_id,)).fetchone()[0])

    def todo_archives(self) -> Iterator[Archive]:
        """Yield archives of which not every member has a result."""
        rows = self._db.execute(_OPEN_ARCHIVES)
        for row in rows:
            source = Source(*row)
            yield Archive(source, self._done_bitmap(source))

    def stale(self, parts: Iterable[Part]) -> dict[int, list[str]]:
        """Return rows that a newer result or version replaces: part number -> image_ids."""
        query = (
            f"SELECT image_id FROM stale WHERE part = ?1 UNION SELECT image_id {_REPLACED} AND l.part = ?1"
        )
        return {part.number: [row[0] for row in self._db.execute(query, (part.number,))] for part in parts}

    def vanished(self, part: Part) -> dict[str, bool]:
        """Return rows of a part whose source is gone or back: image_id -> new mark `vanished`."""
        rows = self._db.execute(f"SELECT image_id, gone {_MARKS} AND part = ?", (part.number,))
        return {image_id: bool(gone) for image_id, gone in rows}

    def relabelled(self, part: Part, names: Sequence[str]) -> dict[str, Kept]:
        """Return rows of a part whose kept columns must change: image_id -> values."""
        rows = self._db.execute(f"SELECT image_id, s.kept {_RELABELLED} AND part = ?", (part.number,))
        return {image_id: json.loads(text) if text else [None] * len(names) for image_id, text in rows}

    def without_result(self) -> list[str]:
        """Return up to ten addresses that have no result: none when items = annotated + rejected."""
        files = [source.uri for source, _ in zip(self.todo_files(), range(10), strict=False)]
        archives = [archive.source.uri for archive, _ in zip(self.todo_archives(), range(10), strict=False)]
        return (files + archives)[:10]

    def counts(self) -> dict[str, Any]:
        """Return the counts of the ledger: items, annotated, rejected by type and suffix, and so on."""
        sums = ("instances", "vanished", "empty_masks", "tiles", "tiles_rejected", "tiles_skipped")
        items, instances, vanished, empty, *tiles = self._db.execute(
            f"SELECT count(*), {', '.join(f'coalesce(sum({name}), 0)' for name in sums)} FROM ledger"
        ).fetchone()
        by_kind = dict[str, Counter[str]]()
        for error_type, suffix, number in self._db.execute(
            "SELECT error_type, kind_of(coalesce(member, uri)), count(*) FROM ledger"
            " WHERE status = 'rejected' GROUP BY 1, 2"
        ):
            by_kind.setdefault(error_type, Counter())[suffix] += number
        by_type = Counter({error_type: suffixes.total() for error_type, suffixes in by_kind.items()})
        rejected = by_type.total()
        return {
            "items": items,
            "annotated": items - rejected,
            "rejected": rejected,
            "rejects_by_type": dict(by_type.most_common()),
            "rejects_by_kind": {name: dict(suffixes.most_common()) for name, suffixes in by_kind.items()},
            "instances": instances,
            "empty_masks": empty,
            "vanished": vanished,
            **dict(zip(sums[3:], tiles, strict=True)),
            "ignored_members": self._one(
                "SELECT coalesce(sum(ignored), 0) FROM ended JOIN source USING (uri, version)"
            ),
        }

    def rejected_share(self) -> float:
        """Return rejected over all items and tiles still listed (a tiled item counts by its tiles).

        A source that cannot be reached counts as one, though what an earlier run found in it is kept.
        """
        query = """
            SELECT total(bad) / max(total(number), 1) FROM (
                SELECT coalesce(tiles_rejected, status = 'rejected') AS bad, coalesce(tiles, 1) AS number
                FROM ledger WHERE NOT vanished UNION ALL SELECT 1, 1 FROM unreached)"""
        return float(self._db.execute(query).fetchone()[0])

    def notes(self) -> dict[str, int]:
        """Return the notes on scenes, and the number of each."""
        return dict(self._db.execute("SELECT note, count(*) FROM ledger WHERE note IS NOT NULL GROUP BY 1"))

    def rejected_examples(self, most: int = 3) -> list[str]:
        """Return some rejected items as `address member: reason`, one of each type first."""
        rows = self._db.execute(
            "SELECT uri, member, error FROM ledger WHERE status = 'rejected'"
            " GROUP BY error_type ORDER BY count(*) DESC LIMIT ?",
            (most,),
        )
        return [f"{uri} {member}: {error}" if member else f"{uri}: {error}" for uri, member, error in rows]

    # --- inside --------------------------------------------------------------------------------------

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def _many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._filling:
            try:
                self._db.execute("BEGIN")
                self._db.executemany(statement, rows)
            finally:  # also after an interrupt; rows that it cut off come again
                if self._db.in_transaction:  # a full disk ends it
                    self._db.execute("COMMIT")

    def _add_rows(self, batch: pa.RecordBatch, part: int, kept: Sequence[str]) -> None:
        ids = batch["image_id"].to_pylist()
        columns = [batch[name].to_pylist() for name in LEDGER_COLUMNS]
        values = zip(*(batch[name].to_pylist() for name in kept), strict=True) if kept else [()] * len(ids)
        columns.append([kept_text(each) for each in values])
        self._many(
            "INSERT INTO stale SELECT part, image_id FROM ledger WHERE image_id = ? AND part != ?",
            ((i, part) for i in ids),
        )
        self._many(
            "INSERT OR REPLACE INTO ledger VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,1)",
            zip(ids, *columns, [part] * len(ids), strict=True),
        )

    def _done_bitmap(self, source: Source) -> bytes:
        rows = self._db.execute(
            "SELECT member_index FROM ledger"
            " WHERE uri = ? AND version = ? AND done AND member_index IS NOT NULL",
            (source.uri, source.version),
        )
        bitmap = bytearray()
        for (index,) in rows:
            if index >> 3 >= len(bitmap):
                bitmap.extend(bytes((index >> 3) + 1 - len(bitmap)))
            bitmap[index >> 3] |= 1 << (index & 7)
        return bytes(bitmap)
