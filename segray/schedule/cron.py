"""Cron expressions: parsed by cronsim, written so that every scheduler reads the same times.

Dialects differ: Kubernetes does not accept 7 for Sunday, Slurm's steps count from the first value of the
field and not of the range, Debian's cron accepts no names in lists and no `5/15`. Numbers, ranges and lists
are the same everywhere.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from typing import Any

FIELDS = "minute, hour, day of the month, month, day of the week"
NICKNAMES = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SHORTEST_RUN = 3
"""Minimum number of consecutive values to write as a range."""


@dataclass(frozen=True, slots=True)
class Cron:
    """The values of each field of a cron expression; None where a field matches all."""

    typed: str
    """The five fields as the user typed them."""
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    """Days of the month, from 1."""
    months: tuple[int, ...] | None
    """Months, from 1."""
    weekdays: tuple[int, ...] | None
    """Days of the week, from 0 (Sunday) to 6."""
    both: bool
    """Where days and weekdays are given: whether both must match; otherwise one of them is enough."""

    @property
    def portable(self) -> str:
        """The five fields in a form that all dialects read alike.

        Raises ValueError where both days must match, which dialects write differently.
        """
        if self.both:
            day, weekday = self.typed.split()[2::2]
            raise ValueError(
                f"{day!r} as day of the month with {weekday!r} as day of the week: cron runs on days where "
                "both match, others where one does; only systemd and crontab support both. List the days"
            )
        return self._fields(_joined(self.days), _joined(self.weekdays))

    @property
    def vixie(self) -> str:
        """The five fields for cron itself, where a day that begins with a star requires both to match.

        Raises ValueError where that cannot be written.
        """
        if not self.both:
            return self.portable
        day, weekday = self.typed.split()[2::2]
        if re.fullmatch(r"\*/\d+", day):
            return self._fields(day, _joined(self.weekdays))
        if re.fullmatch(r"\*/\d+", weekday):
            return self._fields(_joined(self.days), weekday)
        raise ValueError(f"write {day!r} and {weekday!r} as lists of numbers with commas")

    @property
    def on_calendar(self) -> tuple[str, ...]:
        """One or two calendar events of systemd (systemd.time(7)), of which one must match; no time zone."""
        months = _joined(self.months, "..")
        clock = ":".join(_joined(_whole(some, end), "..", two_digits) for some, end in self._clock) + ":00"
        dates = "*" if self.days is None else _joined(self.days, "..", two_digits)
        if self.weekdays is None:
            return (f"*-{months}-{dates} {clock}",)
        weekdays = _joined(sorted(day or 7 for day in self.weekdays), "..", lambda day: _DAYS[day - 1])
        if self.days is None or self.both:
            return (f"{weekdays} *-{months}-{dates} {clock}",)
        return f"*-{months}-{dates} {clock}", f"{weekdays} *-{months}-* {clock}"

    @property
    def shortest_s(self) -> int:
        """Shortest time between two consecutive starts, in seconds."""
        from cronsim import CronSim

        starts = islice(CronSim(self.typed, datetime(2026, 1, 1)), 100)
        return min(int((after - before).total_seconds()) for before, after in pairwise(starts))

    @property
    def _clock(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        return (self.hours, 24), (self.minutes, 60)

    def _fields(self, days: str, weekdays: str) -> str:
        hours, minutes = (_joined(_whole(some, end)) for some, end in self._clock)
        return f"{minutes} {hours} {days} {_joined(self.months)} {weekdays}"


def cron(text: str) -> Cron:
    """Parse an expression of five fields. Raises ValueError for an invalid one."""
    from cronsim import CronSim, CronSimError

    typed = " ".join(text.split())
    if typed.lower() in NICKNAMES:
        raise ValueError(f"write {NICKNAMES[typed.lower()]!r} for {typed}")
    if len(typed.split()) != 5:
        raise ValueError(f"must have five fields: {FIELDS}")
    try:
        found = CronSim(typed, datetime(2026, 1, 1))
        next(found)
    except CronSimError as error:
        field = str(error).removeprefix("Bad ").replace("-", " ").replace("day of", "day of the")
        raise ValueError(f"its {field} is invalid; the five fields are: {FIELDS}") from error
    except (AssertionError, ValueError, StopIteration) as error:  # steps of its `L`; very long numbers
        raise ValueError(f"is invalid, or never matches; the five fields are: {FIELDS}") from error
    return _cron(typed, found)


def _cron(typed: str, found: Any) -> Cron:
    """Convert a parsed expression of cronsim, `found`. Raises ValueError for L, W and #."""
    if any(isinstance(day, tuple) for day in found.weekdays) or min(found.days) < 1:
        raise ValueError("has L, W or #, which cron does not support")
    days = _part(found.days, 31)
    weekdays = _part({day % 7 for day in found.weekdays}, 7)
    if not found.day_and and (days is None or weekdays is None):
        days = weekdays = None  # `1-31` or a Monday: every day
    both = days is not None and weekdays is not None and found.day_and
    minutes, hours = tuple(sorted(found.minutes)), tuple(sorted(found.hours))
    return Cron(typed, minutes, hours, days, _part(found.months, 12), weekdays, both)


def _part(values: Iterable[int], all_of_them: int) -> tuple[int, ...] | None:
    """Return the values of a field, sorted; None where they are all."""
    found = tuple(sorted(values))
    return None if len(found) == all_of_them else found


def _whole(values: tuple[int, ...], all_of_them: int) -> tuple[int, ...] | None:
    return None if len(values) == all_of_them else values


def two_digits(number: int) -> str:
    """Return a number with two digits."""
    return f"{number:02}"


def _joined(values: Iterable[int] | None, dash: str = "-", name: Callable[[int], str] = str) -> str:
    """Return values as text, consecutive ones as ranges: `1,5-7`."""
    if values is None:
        return "*"
    runs = list[list[int]]()
    for value in values:
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = list[str]()
    for run in runs:
        is_range = len(run) >= _SHORTEST_RUN
        parts += [f"{name(run[0])}{dash}{name(run[-1])}"] if is_range else map(name, run)
    return ",".join(parts)
