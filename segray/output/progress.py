"""What a person sees while a job runs: one calm line on a terminal, plain lines in a log."""

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
"""How long, and how many answers after the first, until a rate says how long the rest will take: what is
loaded and warmed up before the first answer is no part of it."""


def pace(rate: float, what: str = "image") -> str:
    """`3.2 images/s`, or below one a second `4.1 s/image`."""
    return f"{rate:,.1f} {what}s/s" if rate >= 1 or rate <= 0 else f"{1 / rate:,.1f} s/{what}"


def clock(seconds: float) -> str:
    """`1:02:46`."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Progress:
    """Context manager; `total` is None while it is unknown (archives are counted when they are read).

    It counts images, and of those that are done in tiles, their tiles besides. The speed is that of the
    tiles, with each image that is not tiled as one.
    """

    nouns: ClassVar[Mapping[bool, str]] = {False: "image", True: "tile"}

    def __init__(self, what: str, total: int | None = None, *, finds: bool = True) -> None:
        """total: images. finds: whether to show the number of instances."""
        self.what, self._total, self._finds = what, total, finds
        self.images = self.tiles = 0
        """Done."""
        self._left: dict[str, int] = {}
        """Item that is done in tiles -> its tiles that are not."""
        self.instances = self.rejected = 0
        self._units = 0
        """Done in this run: tiles, and images that have none."""
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._told: tuple[int, int] | None = None
        self._started = self._logged = time.monotonic()
        self._answers: deque[tuple[float, int]] = deque()
        """(Time, units) of the answers of about the last minute."""

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
        elif self._told not in (None, (self.images, self.tiles)):
            self._tell()

    @property
    def total(self) -> int | None:
        """Images that there will be in the end."""
        return self._total

    @total.setter
    def total(self, images: int | None) -> None:
        is_news = images is not None and images != self._total
        self._total = images
        if is_news:
            self._show(now=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float | None:
        """Tiles and whole images a second after the first answer; None while that is not known well.

        Of a listing always: nobody waits for it.
        """
        if self.what == "listing" or len(self._answers) <= KNOWN_AFTER_ANSWERS:
            return None
        (start, before), (end, after) = self._answers[0], self._answers[-1]
        return (after - before) / (end - start) if end - start >= KNOWN_AFTER_S and after > before else None

    def add(self, images: int, instances: int = 0, rejected: int = 0, tiles: int = 0) -> None:
        """So much more is done: whole images, and tiles of others (see `see_tiles`)."""
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
        """Count the rows that are tiles, and the images that are whole with them; returns the tiles.

        To be called before `add`. scenes: None of a row that is a whole image.
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
        """So many are done, by earlier runs too. left: item that is begun -> its tiles that are not done."""
        self.images, self.tiles = images, tiles
        self._left.update(left)

    def exported(self) -> dict[str, float | None]:
        """As metrics; any thread may ask."""
        return {
            "items_done": self.images,
            "items_left": None if self._total is None else max(0, self._total - self.images),
            "items_rejected": self.rejected,
            "instances": self.instances if self._finds else None,
            "tiles": self.tiles,
            "images_per_second": self.rate,
        }

    def told(self) -> dict[str, Any]:
        """For who asks from outside; any thread may."""
        return {"total": self._total, "images_per_s": self.rate}

    def figures(self) -> dict[str, Any]:
        """What a line says, for programs; None: not known, or nothing that is counted here."""
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
            self._tell()

    def _done_of(self) -> tuple[int, int | None]:
        """Tiles and whole images that are done, and all of them as far as known."""
        done = self.images + self.tiles
        if self._total is None:
            return done, None
        return done, done + sum(self._left.values()) + self._total - self.images - len(self._left)

    def _tell(self) -> None:
        self._told = self.images, self.tiles
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
