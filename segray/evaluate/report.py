"""What an evaluation comes to: metrics.json for programs, a table for people."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from segray.evaluate.compare_pairs import Problem
from segray.evaluate.settings import EvaluateSettings
from segray.log import say
from segray.settings import printable
from segray.versions import versions

SHOWN = 10
"""Problems that are printed; metrics.json has all."""
_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The scores of one evaluation, whatever was compared."""

    task: str
    """`semantic` or `instances`."""
    compared: int
    """True pictures that are in the scores."""
    problems: Sequence[Problem]
    """One for each that is not."""
    extra: int
    """Predicted pictures without a truth."""
    metrics: Mapping[str, Any]
    """Figures over everything; of instances by `segm` and `bbox`."""
    classes: Sequence[Mapping[str, Any]]
    """One row a class: name and figures."""
    digests: Mapping[str, str]
    """sha256, hex, of what was compared."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of metrics.json."""
    notes: Sequence[str] = ()
    """Lines for a person."""

    @property
    def labels(self) -> int:
        """All true pictures."""
        return self.compared + len(self.problems)

    @property
    def failed_share(self) -> float:
        """The share of them that is in no score."""
        return len(self.problems) / max(1, self.labels)


class Evaluation(Protocol):
    """What was found before work begins."""

    def about(self) -> list[str]:
        """What would be compared, for a dry run."""

    def run(self) -> Outcome:
        """Compare."""


class Progress:
    """A line on stderr every ten seconds."""

    def __init__(self, total: int, what: str = "compared") -> None:
        self._total, self._what, self._done, self._told = total, what, 0, time.monotonic()

    def add(self, number: int) -> None:
        """Count so many more."""
        self._done += number
        if time.monotonic() - self._told > _EVERY_S:
            self._told = time.monotonic()
            line = f"{self._done:,} of {self._total:,} {self._what}"
            say(line, images=self._done, total=self._total)


def metrics_record(settings: EvaluateSettings, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The contents of metrics.json; what is not a number is null."""
    record = {
        "task": outcome.task,
        "metrics": outcome.metrics,
        "classes": outcome.classes,
        "counts": {
            "labels": outcome.labels,
            "compared": outcome.compared,
            "failed": len(outcome.problems),
            "extra": outcome.extra,
        },
        "failed": [{"name": problem.name, "reason": problem.reason} for problem in outcome.problems],
        **outcome.more,
        "digests": outcome.digests,
        "settings": yaml.safe_load(printable(settings)),
        "versions": versions(),
        "seconds": round(seconds, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    plain: dict[str, Any] = without_nan(record)
    return plain


def summary_lines(outcome: Outcome, where: str, seconds: float) -> list[str]:
    """The end of a run for a person."""
    lines = [f"done: {outcome.compared:,} of {outcome.labels:,} labels compared in {seconds:,.1f} s"]
    if outcome.extra:
        lines.append(f"  {outcome.extra:,} predictions without a label")
    lines += [f"  {note}" for note in outcome.notes]
    lines += [f"  {line}" for line in table(outcome.classes)]
    lines += [f"  {line}" for line in _overall(outcome.metrics)]
    return [*lines, *problem_lines(outcome.problems), f"output: {where}"]


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """The first of them, each with its name."""
    if not problems:
        return []
    lines = [f"  {len(problems):,} in no score:"]
    lines += [f"    {problem.name}: {problem.reason}" for problem in problems[:SHOWN]]
    left = len(problems) - SHOWN
    return [*lines, f"    and {left:,} more, see {'metrics.json'}"] if left > 0 else lines


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of the same names as columns: text to the left, numbers to the right."""
    if not rows:
        return []
    cells = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in cells
    ]


def shown(value: Any) -> str:
    """Shares with four digits, counts with commas, `-` for what is not a number."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _overall(metrics: Mapping[str, Any]) -> list[str]:
    """One line, or one for each kind of instance figures."""
    if any(isinstance(value, Mapping) for value in metrics.values()):
        return [f"{kind}: {_named(figures)}" for kind, figures in metrics.items()]
    return [_named(metrics)]


def _named(figures: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {shown(value)}" for name, value in figures.items())


def without_nan(value: Any) -> Any:
    """The same, with null for what is not a number, as JSON has it."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {name: without_nan(each) for name, each in value.items()}
    return [without_nan(each) for each in value] if isinstance(value, list | tuple) else value
