"""Progress display of a job: one updating line on a terminal, plain lines in a log."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from segray.log import LOG, say
from segray.scenes.scene import scene_from

LOG_EVERY_S = 10.0
RATE_OVER_S = 60.0
KNOWN_AFTER_S, KNOWN_AFTER_ANSWERS = 10.0, 4
"""Seconds and number of results after the first one until the rate is used to estimate the time left; loading
and warm-up before the first result do not count."""


def pace(rate: float, what: str = "image") -> str:
    """Return a rate as text: `3.2 images/s`, or below one a second `4.1 s/image`."""
    return f"{rate:,.1f} {what}s/s" if rate >= 1 or rate <= 0 else f"{1 / rate:,.1f} s/{what}"


def clock(seconds: float) -> str:
    """Return seconds as `1:02:46`."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Progress:
    """Context manager; `total` is None while it is unknown (archives are counted when they are read).

    It counts images and, for images that are processed in tiles, also their tiles. The rate counts tiles,
    and each image that is not tiled as one.
    """

    nouns: ClassVar[Mapping[bool, str]] = {False: "image", True: "tile"}

    def __init__(self, what: str, total: int | None = None, *, finds: bool = True) -> None:
        """Set the label and the total number of images; finds: whether to show the number of instances."""
        self.what, self._total, self._finds = what, total, finds
        self.images = self.tiles = 0
        """Images and tiles done."""
        self._left: dict[str, int] = {}
        """Image id of a tiled image in progress -> number of its tiles left."""
        self.instances = self.rejected = 0
        self._units = 0
        """Tiles, and images without tiles, done in this run."""
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._printed: tuple[int, int] | None = None
        self._started = self._logged = time.monotonic()
        self._answers: deque[tuple[float, int]] = deque()
        """(Time, units) of the results of about the last minute."""

    def __enter__(self) -> "Progress":
        self._started = self._logged = time.monotonic()
        if self._console.is_terminal and not LOG.as_json:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
            )
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self.what, total=None, line="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._printed not in (None, (self.images, self.tiles)):
            self._print()

    @property
    def total(self) -> int | None:
        """Total number of images; None while unknown."""
        return self._total

    @total.setter
    def total(self, images: int | None) -> None:
        is_news = images is not None and images != self._total
        self._total = images
        if is_news:
            self._show(now=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float | None:
        """Tiles and whole images a second since the first result; None until enough results are in.

        For a listing it is always known: it has no warm-up.
        """
        if self.what == "listing" or len(self._answers) <= KNOWN_AFTER_ANSWERS:
            return None
        (start, before), (end, after) = self._answers[0], self._answers[-1]
        return (after - before) / (end - start) if end - start >= KNOWN_AFTER_S and after > before else None

    def add(self, images: int, instances: int = 0, rejected: int = 0, tiles: int = 0) -> None:
        """Count newly done whole images, their instances and rejects, and tiles (see `see_tiles`)."""
        self.images += images
        self.instances += instances
        self.rejected += rejected
        self._units += images + tiles
        now = time.monotonic()
        self._answers.append((now, self._units))
        while len(self._answers) > KNOWN_AFTER_ANSWERS + 1 and now - self._answers[0][0] > RATE_OVER_S:
            self._answers.popleft()
        self._show()

    def see_tiles(self, items: Sequence[str], scenes: Sequence[str | None]) -> int:
        """Count the rows that are tiles, and the images that they complete; return the number of tiles.

        Call it before `add`. scenes: the scene's JSON of each row, None for a whole image.
        """
        tiles = 0
        for item, scene in zip(items, scenes, strict=True):
            if scene is None:
                continue
            if item not in self._left:
                self._left[item] = len(scene_from(scene).grid)
            self._left[item] -= 1
            tiles += 1
            if self._left[item] == 0:
                del self._left[item]
                self.images += 1
        self.tiles += tiles
        return tiles

    def recount(self, images: int, tiles: int, left: Mapping[str, int]) -> None:
        """Set the counts, earlier runs included. left: image id of an image in progress -> its tiles left."""
        self.images, self.tiles = images, tiles
        self._left.update(left)

    def exported(self) -> dict[str, float | None]:
        """Return the values of the Prometheus gauges; safe to call from any thread."""
        return {
            "items_done": self.images,
            "items_left": None if self._total is None else max(0, self._total - self.images),
            "items_rejected": self.rejected,
            "instances": self.instances if self._finds else None,
            "tiles": self.tiles,
            "images_per_second": self.rate,
        }

    def told(self) -> dict[str, Any]:
        """Return the progress for the lease (`segray status`); safe to call from any thread."""
        return {"total": self._total, "images_per_s": self.rate}

    def figures(self) -> dict[str, Any]:
        """Return the figures of the progress line for the JSON log; None: not known or not counted."""
        return {
            "images": self.images,
            "total": self._total,
            "rejected": self.rejected,
            "instances": self.instances if self._finds else None,
            "tiles": self.tiles,
            "images_per_s": self.rate,
            "left_s": self._left_s,
        }

    @property
    def _left_s(self) -> float | None:
        rate, (done, total) = self.rate, self._done_of()
        return None if rate is None or total is None else (total - done) / rate

    def _show(self, *, now: bool = False) -> None:
        if self._bar is not None:
            done, total = self._done_of()
            self._bar.update(self._task, total=total, completed=done, line=self._line())
        elif now or time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._print()

    def _done_of(self) -> tuple[int, int | None]:
        """Return the number of tiles and whole images done, and the total; None while unknown."""
        done = self.images + self.tiles
        if self._total is None:
            return done, None
        return done, done + sum(self._left.values()) + self._total - self.images - len(self._left)

    def _print(self) -> None:
        self._printed = self.images, self.tiles
        say(f"{self.what}: {self._line()}", **self.figures())

    def _line(self) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{self.images:,}{of} images"]
        if self.tiles:
            parts.append(f"{self.tiles:,} tiles")
        if (rate := self.rate) is not None:
            parts.append(pace(rate, self.nouns[bool(self.tiles)]))
        if self.what != "listing":
            parts += [f"{self.instances:,} instances"] * self._finds + [f"{self.rejected:,} rejected"]
        if (left := self._left_s) is not None:
            parts.append(f"{clock(left)} left")
        return ", ".join(parts)
