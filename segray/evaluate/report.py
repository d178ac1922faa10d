"""The result of an evaluation: metrics.json for programs, a table for people."""

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
    """The scores of one evaluation, of any kind."""

    task: str
    """`semantic` or `instances`."""
    compared: int
    """True images in the scores."""
    problems: Sequence[Problem]
    """One for each true image that is not."""
    extra: int
    """Predicted images without a truth."""
    metrics: Mapping[str, Any]
    """Figures over everything; for instances by `segm` and `bbox`."""
    classes: Sequence[Mapping[str, Any]]
    """One row per class: name and figures."""
    digests: Mapping[str, str]
    """Name -> sha256, hex, of what was compared."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of metrics.json."""
    notes: Sequence[str] = ()
    """Lines to print."""

    @property
    def labels(self) -> int:
        """Return the number of true images."""
        return self.compared + len(self.problems)

    @property
    def failed_share(self) -> float:
        """Return the share of them that is in no score."""
        return len(self.problems) / max(1, self.labels)


class Evaluation(Protocol):
    """What was found before the comparison begins."""

    def about(self) -> list[str]:
        """Return lines on what would be compared, for a dry run."""

    def run(self) -> Outcome:
        """Compare, and return the scores."""


class Progress:
    """Prints a line on stderr every ten seconds."""

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
    """Return the contents of metrics.json; NaN and infinity become null."""
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
    """Return the final lines of a run, to print."""
    lines = [f"done: {outcome.compared:,} of {outcome.labels:,} labels compared in {seconds:,.1f} s"]
    if outcome.extra:
        lines.append(f"  {outcome.extra:,} predictions without a label")
    lines += [f"  {note}" for note in outcome.notes]
    lines += [f"  {line}" for line in table(outcome.classes)]
    lines += [f"  {line}" for line in _overall(outcome.metrics)]
    return [*lines, *problem_lines(outcome.problems), f"output: {where}"]


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Return lines on the first problems, each with its name."""
    if not problems:
        return []
    lines = [f"  {len(problems):,} in no score:"]
    lines += [f"    {problem.name}: {problem.reason}" for problem in problems[:SHOWN]]
    left = len(problems) - SHOWN
    return [*lines, f"    and {left:,} more, see {'metrics.json'}"] if left > 0 else lines


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows with the same keys as aligned columns: text to the left, numbers to the right."""
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
    """Format shares with four digits, counts with commas, and NaN as `-`."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _overall(metrics: Mapping[str, Any]) -> list[str]:
    """Return one line, or one for each kind of instance figures."""
    if any(isinstance(value, Mapping) for value in metrics.values()):
        return [f"{kind}: {_named(figures)}" for kind, figures in metrics.items()]
    return [_named(metrics)]


def _named(figures: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {shown(value)}" for name, value in figures.items())


def without_nan(value: Any) -> Any:
    """Return the value with None for NaN and infinity, as JSON requires."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {name: without_nan(each) for name, each in value.items()}
    return [without_nan(each) for each in value] if isinstance(value, list | tuple) else value
