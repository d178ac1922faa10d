"""List the sources into the ledger in a background thread: work begins before a large listing has ended.

A bucket lists 1,000 names per request, so a million take minutes. Work is done in rounds: what is listed so
far, then what was listed meanwhile. Each round waits for four times the listing of the one before, so even
where work is as fast as the listing there are few of them, and few starts of the model.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from segray.bulk.ledger_db import LedgerDb
from segray.errors import JobFailedError, SegrayError
from segray.output.progress import Progress
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.name_filter import EVERYTHING, Choice
from segray.storage import StorageSettings

FIRST_ROUND_S = 3.0
"""Seconds of listing before the first round; listings that take less are done in one."""
_LONGER = 4
_STOP_S = 5.0
"""Seconds that a request of the listing may take to end when the job ends before it."""


class BackgroundListing:
    """List `sources` into `ledger` in a thread, as a context manager."""

    def __init__(
        self,
        sources: Sequence[str],
        storage: StorageSettings,
        ledger: LedgerDb,
        choice: Choice = EVERYTHING,
        keep_columns: Sequence[str] = (),
    ) -> None:
        self.listing = Listing(sources, storage, choice, keep_columns)
        self._ledger = ledger
        self._listed = 0
        self._error: Exception | None = None
        self._ended, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._list, name="segray-listing", daemon=True)
        self._rounds, self._was_last = 0, False

    def __enter__(self) -> "BackgroundListing":
        self._started = time.monotonic()
        self._next = self._started + FIRST_ROUND_S
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_STOP_S)

    @property
    def ended(self) -> bool:
        """Return whether the listing is complete."""
        return self._ended.is_set()

    def complete(self, progress: Progress) -> None:
        """Wait until the listing is complete. Raises what the listing raises."""
        self._next = math.inf
        self._wait(progress)
        if self._error is not None:
            raise self._error

    def next_round(self, progress: Progress | None = None) -> bool:
        """Wait until there is enough work to begin with; return False when there is none left.

        Results must be in the ledger before this is called again. Raises what the listing raises; once work
        has begun as JobFailedError.
        """
        while not self._wait(progress):
            asked = time.monotonic()
            if self._ledger.has_work():
                break
            now = time.monotonic()
            self._next = now + max(1.0, _LONGER * (now - asked))
        if self._error is not None:
            raise self._failure(self._error)
        if self._was_last or not self._ledger.has_work():
            return False
        self._was_last = self.ended
        self._rounds += 1
        now = time.monotonic()
        self._next = now + (_LONGER - 1) * (now - self._started)
        return True

    def _wait(self, progress: Progress | None) -> bool:
        """Wait until the listing is complete, and return True, or until the next round."""
        while (left := self._next - time.monotonic()) > 0 and not self._ended.wait(min(left, 0.5)):
            if progress is not None:
                progress.add(self._listed - progress.images)
        return self.ended

    def _failure(self, error: Exception) -> Exception:
        if self._rounds == 0:
            return error
        lines = error.lines if isinstance(error, SegrayError) else [str(error)]
        return JobFailedError(*lines, "the listing broke off; run again to continue")

    def _list(self) -> None:
        try:
            self._ledger.add_sources(self._until_stopped())
        except Exception as error:  # noqa: BLE001 - raised where the listing is waited for
            self._error = error
        self._ended.set()

    def _until_stopped(self) -> Iterator[Source]:
        for source in self.listing:
            if self._stop.is_set():
                return
            self._listed += 1
            yield source
