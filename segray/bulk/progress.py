"""What a person sees while a job runs: one calm line on a terminal, plain lines in a log."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from segray.scenes.scene import scene_from

LOG_EVERY_S = 10.0
RATE_OVER_S = 60.0


class Progress:
    """Context manager; `total` is None while it is unknown (archives are counted when they are read).

    It counts items, and of those that are done in tiles, their tiles.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0, *, finds: bool = True) -> None:
        """finds: whether instances are found, which are told."""
        self.what, self._items, self.items, self._finds = what, total, done, finds
        self._scenes = set[str]()
        self._more = 0
        """Tiles beyond one an item, as far as they are known."""
        self.done_before = done
        self.instances = self.rejected = 0
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._told: int | None = None
        self._started = self._logged = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(self._started, done)])

    def __enter__(self) -> "Progress":
        self._started = self._logged = time.monotonic()
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.items, rates="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._told not in (None, self.items):
            self._tell()

    @property
    def total(self) -> int | None:
        """What `items` will be in the end; set it to the number of items."""
        return None if self._items is None else self._items + self._more

    @total.setter
    def total(self, items: int | None) -> None:
        self._items = items

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Items a second, over about the last minute."""
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / max(end - start, 1e-9)

    def add(self, items: int, instances: int = 0, rejected: int = 0) -> None:
        """So much more is done."""
        self.items += items
        self.instances += instances
        self.rejected += rejected
        now = time.monotonic()
        self._recent.append((now, self.items))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_OVER_S:
            self._recent.popleft()
        if self._bar is not None:
            self._bar.update(self._task, total=self.total, completed=self.items, rates=self._rates())
        elif time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._tell()

    def see_tiles(self, items: Sequence[str], scenes: Sequence[str | None]) -> None:
        """The first tile that comes of an item tells how many there will be; to be told before `add`."""
        for item, scene in zip(items, scenes, strict=True):
            if scene is not None and item not in self._scenes:
                self._scenes.add(item)
                self._more += len(scene_from(scene).grid) - 1

    def recount(self, items: int, more: int, begun: Iterable[str] = ()) -> None:
        """So many are done: items of earlier runs count when they have been listed, and not into the rate.

        more: tiles beyond one an item, of the items that are `begun` and of those that are done.
        """
        self._more = more
        self._scenes.update(begun)
        new = items - self.items
        self.items, self.done_before = items, self.done_before + new
        self._recent = deque((when, count + new) for when, count in self._recent)

    def _tell(self) -> None:
        self._told = self.items
        print(f"segray: {self.what}: {self._line()}", file=sys.stderr, flush=True)

    def _rates(self) -> str:
        if self.what == "listing":
            return ""
        found = f"{self.instances:,} instances, " if self._finds else ""
        return f"{self.rate:,.1f} images/s, {found}{self.rejected:,} rejected"

    def _line(self) -> str:
        of = f" of {self.total:,}" if self.total else ""
        parts = [f"{self.items:,}{of} items{' and tiles' * bool(self._scenes)}", self._rates()]
        if self.total and self.rate:
            left = (self.total - self.items) / self.rate
            parts.append(f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02} left")
        return ", ".join(part for part in parts if part)
