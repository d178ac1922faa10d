"""Report page of one retraining, a self-contained HTML file: the decision, its reasons and figures."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

WIDTH, HEIGHT = 320, 120
"""Size of a curve, in SVG units."""
_CURVES = ("train_loss", "val_loss", "ap", "miou", "lr")
"""Columns of metrics.jsonl to draw, where present."""


def report_page(record: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]] = ()) -> str:
    """Return the page as HTML; every name in it is escaped, and nothing is loaded from the network.

    `record` has `model`, `version`, `time` and `decision` (of `Decision.to_json`), and, where known: `data`
    ({`new`, `changed`, `removed`, `rows`: [{`split`, `group`, `new`, `changed`, `removed`}]}), labels since
    the champion's snapshot; `history` (rows of metrics.jsonl); `versions` and `links`, both name to text.
    `pictures` are captions and PNG files.

    Raises ValueError where one of the first four is missing.
    """
    missing = [name for name in ("model", "version", "time", "decision") if name not in record]
    if missing:
        raise ValueError(f"the record of a report lacks {', '.join(missing)}")
    history: Sequence[Mapping[str, Any]] = record.get("history") or []
    optional = {name: record.get(name) or {} for name in ("data", "versions", "links")}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    formats = {"score": score, "signed": signed, "small": small}
    environment.filters |= formats
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        dict(record) | optional | formats,
        scores=_whiskers(_scores(record["decision"])),
        gain=_whiskers(_gain(record["decision"])),
        curves=[curve for name in _CURVES if (curve := _curve(name, history))],
        pictures=[(caption, base64.b64encode(png).decode()) for caption, png in pictures],
        width=WIDTH,
        height=HEIGHT,
    )


def score(value: float | None) -> str:
    """Return a score with four digits; a dash for None."""
    return "-" if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """Return a difference with its sign and four digits; a dash for None."""
    return "-" if value is None else f"{value:+.4f}"


def small(value: float | None) -> str:
    """Return an error level or a learning rate with two significant digits; a dash for None."""
    return "-" if value is None else f"{value:.2g}"


@dataclass(frozen=True, slots=True)
class Whisker:
    """One interval on an axis shared with others; positions are in 0..100."""

    name: str
    figure: float
    low: float
    high: float
    mark: float | None = None
    """Position of an additional mark."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Curve of one column over the epochs."""

    name: str
    lines: list[str]
    """Points of polylines, in SVG units; NaN values separate them."""
    first: int
    last: int
    """Epochs."""
    low: float
    high: float
    """Values at the lower and upper edge."""
    final: float


def _scores(decision: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None, float | None]]:
    return [(name, decision[name], None) for name in ("champion", "challenger")]


def _gain(decision: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None, float | None]]:
    gain = decision["gain"]
    return [("difference", gain["difference"], decision["margin"])] if gain else []


def _whiskers(rows: Iterable[tuple[str, Mapping[str, Any] | None, float | None]]) -> list[Whisker]:
    """Return intervals (name, estimate, additional mark) on one axis; those without figures are left out."""
    known = [
        (name, [each["figure"], each["low"], each["high"]], mark)
        for name, each, mark in rows
        if each is not None and None not in (each["figure"], each["low"], each["high"])
    ]
    values = [value for _, three, mark in known for value in [*three, *([] if mark is None else [mark])]]
    if not values:
        return []
    low, high = _padded(values)

    def placed(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return [
        Whisker(name, placed(figure), placed(start), placed(end), None if mark is None else placed(mark))
        for name, (figure, start, end), mark in known
    ]


def _curve(name: str, history: Sequence[Mapping[str, Any]]) -> Curve | None:
    """Return the curve of a column; None without any number."""
    rows = [(int(row["epoch"]), _number(row.get(name))) for row in history if "epoch" in row]
    values = [value for _, value in rows if value is not None]
    if not values:
        return None
    low, high = _padded(values)
    first, last = rows[0][0], rows[-1][0]
    lines: list[list[str]] = [[]]
    for epoch, value in rows:
        if value is None:
            lines.append([])
            continue
        x = WIDTH * (epoch - first) / max(1, last - first)
        lines[-1].append(f"{x:.1f},{HEIGHT * (high - value) / (high - low):.1f}")
    return Curve(name, [" ".join(line) for line in lines if line], first, last, low, high, values[-1])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and highest value, padded by a tenth of their distance, never equal."""
    low, high = min(values), max(values)
    around = (high - low) / 10 or max(abs(high), 1e-6) / 10
    return low - around, high + around
