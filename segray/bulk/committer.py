"""Commit results: buffered rows -> a commit -> merged parts; the driver is the only writer.

Tiles wait in commits of their own until all of their item have arrived; then they are merged into one row,
and the item is like any other. So its instances become visible at once, and a kill in the middle costs no
tile.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segray import schema
from segray.bulk.ledger_db import LedgerDb
from segray.bulk.task import BulkTask
from segray.errors import JobFailedError, SegrayError
from segray.interrupts import INTERRUPTS
from segray.output.folder import IMAGES, INSTANCES
from segray.output.lease import Lease
from segray.output.progress import Progress
from segray.output.store import MERGE_BYTES, STAGING, TILE_RESULTS, Part, Store
from segray.sources.item import Kept

BUFFER_BYTES = 64 << 20
SMALL_BYTES, MOST_SMALL = 1 << 20, 8
"""Number of parts below this size, instances included, that are merged at the end of a run."""

ASK_EVERY_S = 2.0
"""Interval between queries of the total, which archives that are not read to their end leave open."""

_NONE: Mapping[str, Any] = MappingProxyType({})
WHOLE_ITEMS = 64
"""Maximum number of items merged from their tiles at a time; a large scene is merged nearly alone."""

UNPACKED = 8
"""A merge takes commits of `MERGE_BYTES` on disk, and of at most so many times that in memory: rows that are
much alike compress a hundred times."""

SHARE_AT_RISK, EARLY_SHARE, EARLIEST_S = 0.01, 0.05, 1.0
"""A kill costs at most about these shares of the time so far: young runs commit more often than the
settings say, because each start costs seconds; old ones less often, so that they make few commits."""


class Committer:
    """Takes tables of schema ANNOTATED, and keeps `ledger` and the output in step."""

    def __init__(
        self,
        store: Store,
        ledger: LedgerDb,
        lease: Lease[Store],
        parts: Sequence[Part],
        every_s: float,
        task: BulkTask,
    ) -> None:
        self.store, self.ledger, self.lease, self.task = store, ledger, lease, task
        self.every_s = every_s
        self.merge_tiles: Callable[[Sequence[pa.Table]], Sequence[pa.Table]] = lambda items: [
            task.merge_tiles(tiles) for tiles in items
        ]
        """Merges all tiles of each item into its row."""
        self.items = 0
        """Number of items that were committed."""
        self._tiles = {part.number: part for part in parts if part.folder == TILE_RESULTS}
        self._staged = [part for part in parts if part.folder == STAGING]
        self._merged = [part for part in parts if part.folder == IMAGES]
        self._unpacked: dict[int, int] = {}
        """Number of a staged part -> bytes of its rows in memory, of those that this run committed."""
        self._buffer: list[pa.Table] = []
        self._buffered = 0
        """Bytes of these; summed up anew for each table, they took a third of the driver's time."""
        self._started, self._committed = (
            time.monotonic(),
            -math.inf,
        )  # first results are committed at once

    def add(self, table: pa.Table) -> None:
        """Buffer rows (schema ANNOTATED); commit when the last commit is old enough or much is in memory."""
        self._buffer.append(table)
        self._buffered += table.nbytes
        now = time.monotonic()
        age = now - self._started
        wait = max(min(self.every_s, max(EARLIEST_S, EARLY_SHARE * age)), SHARE_AT_RISK * age)
        if now - self._committed >= wait or self._buffered >= BUFFER_BYTES:
            self.commit()

    def commit(self) -> None:
        """Commit everything that was added."""
        self.lease.check()
        self._committed = time.monotonic()
        if not self._buffer:
            return
        rows = _once_each(pa.concat_tables([table.cast(schema.ANNOTATED) for table in self._buffer]))
        if self.task.settings.location:
            rows = self.ledger.with_times(rows)
        rows = self.ledger.with_kept(rows, self.store.kept)
        is_tile = pc.is_valid(rows["tile"])
        tiles = rows.filter(is_tile)
        items = [rows.filter(pc.invert(is_tile))]
        if tiles.num_rows:
            part = self.store.commit(tiles, TILE_RESULTS)
            self._tiles[part.number] = part
            self.ledger.add_tiles(tiles, part)
        self._buffer, self._buffered = [], 0
        if items[0].num_rows:
            self._commit_items(items[0])
        self.merge_whole_items()

    def merge_whole_items(self) -> None:
        """Merge each item all of whose tiles are committed into a row, and delete its tiles."""
        whole = self.ledger.whole()
        for some in _batches(whole, WHOLE_ITEMS):
            numbers = sorted({number for image_id in some for number in whole[image_id]})
            results = pa.concat_tables([self.store.results(self._tiles[number]) for number in numbers])
            of_item = [results.filter(pc.equal(results["image_id"], image_id)) for image_id in some]
            merged = self.merge_tiles([tiles.select(schema.ANNOTATED.names) for tiles in of_item])
            kept = pa.concat_tables([tiles.slice(0, 1).select(self.store.kept) for tiles in of_item])
            self._commit_items(_beside(pa.concat_tables(merged), kept))
            for image_id in some:
                self.ledger.forget_tiles(image_id, keeps=self.task.keeps_tiles)
                self.task.after_merge(self.store, image_id)
        if whole:
            self._discard_tiles()

    def _discard_tiles(self) -> None:
        for number, part in list(self._tiles.items()):
            if not self.ledger.holds_tiles(part):
                self.store.discard(self._tiles.pop(number))

    def _commit_items(self, rows: pa.Table) -> None:
        part = self.store.commit(rows)
        self.ledger.add_committed(rows, part)
        self.items += len(rows) - rows["image_id"].null_count
        self._staged.append(part)
        self._unpacked[part.number] = rows.nbytes
        if sum(self._weight(part) for part in self._staged) >= MERGE_BYTES:
            self._merge_staged()

    def _weight(self, part: Part) -> int:
        return max(part.size, self._unpacked.get(part.number, 0) // UNPACKED)

    def finish(self) -> None:
        """Merge what is staged, drop replaced rows, mark vanished ones, update changed manifest columns.

        Raises JobFailedError when an item of the listing has no result.
        """
        self.commit()
        if lost := self.ledger.without_result():
            raise JobFailedError(
                *(f"{uri}: no result was returned for it" for uri in lost),
                "the job lost items; run it again to process them",
            )
        self._merge_staged()
        for part in list(self._merged):
            vanished = self.ledger.vanished(part)
            kept = self.ledger.relabelled(part, self.store.kept)
            if vanished or kept or self.ledger.stale([part])[part.number]:
                self._merged.remove(part)
                self._merge([part], vanished, kept)
        instances = self.store.files(INSTANCES)
        small = [
            part
            for part in self._merged
            if part.size + instances.get(part.instances, SMALL_BYTES) < SMALL_BYTES
        ]
        if len(small) >= MOST_SMALL:  # left by many short runs
            self._merged = [part for part in self._merged if part not in small]
            self._merge(small)
        self.ledger.forget_useless_tiles()  # of items that changed or vanished before they were complete
        self._discard_tiles()
        self.task.finish(self.store)

    def _merge_staged(self) -> None:
        group: list[Part] = []
        for part in self._staged:
            group.append(part)
            if sum(self._weight(member) for member in group) >= MERGE_BYTES:
                self._merge(group)
                group = []
        if group:
            self._merge(group)
        self._staged, self._unpacked = [], {}

    def _merge(
        self, parts: Sequence[Part], vanished: Mapping[str, bool] = _NONE, kept: Mapping[str, Kept] = _NONE
    ) -> None:
        self.lease.check()
        stale = self.ledger.stale(parts)  # queried once: the listing may continue meanwhile
        merged = self.store.merge(parts, stale, vanished, kept)
        self.ledger.moved(stale, merged, vanished, kept)
        self._merged.append(merged)
        replaced = [gone for ids in stale.values() for gone in ids if not self.ledger.holds(gone)]
        self.task.discard(self.store, replaced)


def commit(
    results: Generator[pa.Table, None, None],
    committer: Committer,
    progress: Progress,
    known_total: Callable[[], int | None],
) -> None:
    """Commit results (schema ANNOTATED) as they come, the last step; an interrupt loses none that arrived.

    known_total: of the images, None while it is unknown.
    """
    asked = _tell_total(progress, known_total, -math.inf)
    with closing(results):  # else Ray Data's thread would continue while its Ray is stopped
        try:
            for table in results:
                asked = _tell_total(progress, known_total, asked)
                committer.add(table)
                _count(table, progress)
                _raise_interrupt()
            committer.commit()
            _raise_interrupt()
        except (KeyboardInterrupt, SegrayError):
            INTERRUPTS.ignore()
            committer.commit()  # returned results are not computed again
            if INTERRUPTS.struck.is_set():  # even if a library converted it
                raise KeyboardInterrupt from None
            raise


def _raise_interrupt() -> None:
    """Raise KeyboardInterrupt where a library has swallowed one."""
    if INTERRUPTS.struck.is_set():
        raise KeyboardInterrupt


def _count(results: pa.Table, progress: Progress) -> None:
    items = results.filter(pc.is_valid(results["image_id"]))
    rejected = pc.sum(pc.equal(items["status"], "rejected")).as_py() or 0
    tiles = progress.see_tiles(items["image_id"].to_pylist(), items["scene"].to_pylist())
    instances = pc.sum(items["instances"]).as_py() or 0
    progress.add(items.num_rows - tiles, instances, rejected, tiles)


def _tell_total(progress: Progress, known_total: Callable[[], int | None], asked: float) -> float:
    """Set the total once it is known; return when it was last queried."""
    now = time.monotonic()
    if progress.total is not None or now - asked <= ASK_EVERY_S:
        return asked
    progress.total = known_total()
    return now


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(names)
    while some := list(islice(left, size)):
        yield some


def _beside(rows: pa.Table, more: pa.Table) -> pa.Table:
    """Return the columns of both tables, which have the same number of rows."""
    for name in more.column_names:
        rows = rows.append_column(name, more[name])
    return rows


def _once_each(rows: pa.Table) -> pa.Table:
    """Drop repeated rows of an item or tile: Ray may deliver a block again after a worker died."""
    seen: set[tuple[str, int | None]] = set()
    keep = []
    for key in zip(rows["image_id"].to_pylist(), rows["tile"].to_pylist(), strict=True):
        keep.append(key[0] is None or key not in seen)
        seen.add(key)
    return rows.filter(pa.array(keep, pa.bool_()))
