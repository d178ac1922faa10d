"""What all arms share: pairs that take turns, the gate before them, and a figure with its goal."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class UnequalError(Exception):
    """The arms gave different outputs: their times say nothing."""


def check(equal: Any, what: str) -> None:
    """The gate. Raises UnequalError."""
    if not equal:
        raise UnequalError(what)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    scratch: Path
    """A folder for pictures and outputs; emptied when the benchmark ends."""
    quick: bool = False
    images: int | None = None
    """Pictures of the larger of two job sizes; None: each part's own number."""
    pairs: int | None = None
    photos: Path | None = None
    price_per_hour: float = 0.1
    labelled: Path | None = None
    """A folder of images with COCO labels that the bundled model was tested on."""
    people: Sequence[str] | None = None
    """Model, data and split of `after`."""
    streets: Sequence[str] | None = None

    def rounds(self, usual: int) -> int:
        """How often the arms take turns."""
        return self.pairs or (1 if self.quick else usual)


@dataclass(frozen=True)
class Figure:
    """One ratio of two arms, and what is told beside it."""

    name: str
    goal: str
    """`>= 15`, `<= 2`, or empty where none was set."""
    ratios: Sequence[float]
    """One a pair; empty where it could not be measured here."""
    facts: Sequence[str] = field(default=())

    @property
    def median(self) -> float:
        """Of the pairs."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None where there is no goal or no figure."""
        if not self.ratios or not self.goal:
            return None
        sign, value = self.goal.split()
        return self.median >= float(value) if sign == ">=" else self.median <= float(value)

    def lines(self) -> list[str]:
        """For a person."""
        said = {True: "met", False: "MISSED", None: ""}[self.met]
        if not self.ratios:
            return [f"{self.name:62}{self.goal:>9}  not measured", *(f"    {fact}" for fact in self.facts)]
        spread = f"{_short(self.median):>9}  ({_short(min(self.ratios))} to {_short(max(self.ratios))})"
        return [f"{self.name:62}{self.goal:>9}{spread:32} {said}", *(f"    {fact}" for fact in self.facts)]

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "goal": self.goal,
            "median": self.median if self.ratios else None,
            "ratios": list(self.ratios),
            "met": self.met,
            "facts": list(self.facts),
        }


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def take_turns(arms: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """What each arm returned in each round, arms first; every second round runs backwards against drift."""
    values: list[list[float]] = [[] for _ in arms]
    order = list(range(len(arms)))
    for number in range(rounds):
        for index in order if number % 2 == 0 else reversed(order):
            values[index].append(arms[index]())
    return values


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Of each pair."""
    return [one / other for one, other in zip(above, below, strict=True)]


def seconds_a_call(call: Callable[[], object], at_least_s: float) -> float:
    """Mean time of a call, over so many calls that they take `at_least_s` seconds together."""
    calls, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < at_least_s or not calls:
        call()
        calls += 1
    return passed / calls


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the start of the block; afterwards, of the block."""
    started = time.perf_counter()
    stopped: list[float] = []
    yield lambda: (stopped[0] if stopped else time.perf_counter()) - started
    stopped.append(time.perf_counter())
