"""What a comparison leaves: table.csv for programs, table.md for a README, metrics.json with everything."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segray.comparison.candidates import Candidate
from segray.comparison.results import Cost, ModelResult, Results, differences, intervals
from segray.models.architectures import Task

TITLES = {
    **{"miou": "mIoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy", "iou": "IoU"},
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "AR", "box_ap": "box AP"},
}
_SHOWN: dict[Task, tuple[str, ...]] = {"semantic": ("miou", "pixel_accuracy"), "instance": ("ap", "ap50")}
"""Columns of table.md, the one that models are compared by first."""
_OF_CLASS: dict[Task, tuple[str, ...]] = {"semantic": ("iou",), "instance": ("ap", "ap50")}
LEVEL = "95 %"


@dataclass(frozen=True, slots=True)
class Compared:
    """All that is known at the end."""

    task: Task
    candidates: Sequence[Candidate]
    results: Results
    costs: Sequence[Cost]
    conditions: Mapping[str, Any]
    """What the costs hold for, see `Measuring.about`."""
    notes: Sequence[str]
    """Lines on how the figures came about."""

    @property
    def first(self) -> ModelResult:
        """Return the figures of the model that others are compared with."""
        return self.results.models[0]

    def models(self) -> list[dict[str, Any]]:
        """Return everything about each model, for metrics.json."""
        return [self._model(number) for number in range(len(self.candidates))]

    def _model(self, number: int) -> dict[str, Any]:
        candidate, result = self.candidates[number], self.results.models[number]
        cost = {name: value for name, value in asdict(self.costs[number]).items() if name != "input"}
        height, width = self.costs[number].input
        about = {
            "model": candidate.name,
            "weights": candidate.shown,
            "digest": candidate.digest,
            "arch": candidate.arch or None,
            "metrics": result.metrics,
            "intervals": intervals(result.drawn),
            "classes": [
                {"class": name, **figures, "intervals": intervals(result.class_drawn.get(name, {}))}
                for name, figures in result.classes.items()
            ],
            "parameters": candidate.parameters,
            "file_bytes": candidate.file_bytes,
            "input": {"height": height, "width": width},
            **cost,
            **result.more,
        }
        return about | ({"difference": self._differences(result)} if number else {})

    def _differences(self, result: ModelResult) -> dict[str, Any]:
        first = self.first
        overall = differences(result.overall, result.drawn, first.overall, first.drawn)
        of_classes = [
            {"class": name, **differences(figures, result.class_drawn.get(name, {}), *there)}
            for name, figures in result.classes.items()
            if (there := (first.classes.get(name, {}), first.class_drawn.get(name, {})))[0]
        ]
        return {"to": self.candidates[0].name, **overall, "classes": of_classes}

    # --- table.csv -------------------------------------------------------------------------------------

    def csv(self) -> bytes:
        """Return the table as CSV: a row a model, figures unrounded, unknown ones empty."""
        rows = [self._row(number) for number in range(len(self.candidates))]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
        return text.getvalue().encode()

    def _row(self, number: int) -> dict[str, Any]:
        candidate, result, cost = self.candidates[number], self.results.models[number], self.costs[number]
        row: dict[str, Any] = {"model": candidate.name, "weights": candidate.shown, "arch": candidate.arch}
        against = self._differences(result) if number else {}
        for name, value in result.overall.items():
            row[name] = value
            if bounds := intervals(result.drawn).get(name):
                row |= {f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
            row |= {
                "_".join([name, *["difference"] * (end != "difference"), end]): each
                for end, each in against.get(name, {}).items()
            }
        height, width = cost.input
        row |= {
            **{"parameters": candidate.parameters, "gflops": cost.gflops},
            **{"input_width": width, "input_height": height, "file_bytes": candidate.file_bytes},
            **{"images_per_s": cost.images_per_s, "images_per_s_low": min(cost.rates, default=None)},
            **{"images_per_s_high": max(cost.rates, default=None), "peak_bytes": cost.peak_bytes},
            **{"loaded_bytes": cost.loaded_bytes},
        }
        for figure in _OF_CLASS[self.task]:
            row |= {f"{figure} {name}": figures[figure] for name, figures in result.classes.items()}
        return row

    # --- table.md --------------------------------------------------------------------------------------

    def markdown(self) -> bytes:
        """Return the table as Markdown, with a second one of classes and a line on the conditions."""
        parts = [_markdown(self.overview()), _markdown(self.of_classes()), "\n\n".join(self.notes)]
        return ("\n\n".join(part for part in parts if part) + "\n").encode()

    def overview(self) -> list[list[str]]:
        """Return the table as rows of text, titles first; columns that no model has are left out."""
        main, *others = _SHOWN[self.task]
        drawn = f" [{LEVEL}]" if intervals(self.first.drawn) else ""
        titles = ["model", f"{TITLES[main]}{drawn}"]
        titles += [f"difference{drawn}"] * (len(self.candidates) > 1)
        titles += [TITLES[name] for name in others]
        titles += ["parameters", "GFLOPs", "input", "file", "images/s", "peak memory (of it predicting)"]
        rows = [self._shown(number, main, others) for number in range(len(self.candidates))]
        kept = [at for at in range(len(titles)) if any(row[at] != "-" for row in rows)]
        return [[row[at] for at in kept] for row in (titles, *rows)]

    def _shown(self, number: int, main: str, others: Sequence[str]) -> list[str]:
        candidate, result, cost = self.candidates[number], self.results.models[number], self.costs[number]
        row = [candidate.name, _with_bounds(result.overall[main], intervals(result.drawn).get(main))]
        if len(self.candidates) > 1:
            found = self._differences(result).get(main) if number else None
            bounds = [found["low"], found["high"]] if found and "low" in found else None
            row.append(_with_bounds(found["difference"], bounds, "+") if found else "-")
        row += [_share(result.overall[name]) for name in others]
        height, width = cost.input
        return [
            *row,
            _scaled(candidate.parameters, 1e6, " M"),
            _scaled(cost.gflops, 1, ""),
            "-" if cost.images_per_s is None else f"{width}x{height}",
            _scaled(candidate.file_bytes, 1e6, " MB"),
            _scaled(cost.images_per_s, 1, ""),
            _memory(cost),
        ]

    def of_classes(self) -> list[list[str]]:
        """Return a row a class, titles first: its figure by each model."""
        figures = _OF_CLASS[self.task]
        what = " / ".join(TITLES[name] for name in figures)
        rows = [[f"{what} of", *(each.name for each in self.candidates)]]
        for name in self.first.classes:
            found = [result.classes.get(name, {}) for result in self.results.models]
            texts = [" / ".join(_share(each.get(figure)) for figure in figures) for each in found]
            rows.append([name, *texts])
        return rows


def _plain(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _with_bounds(value: float, bounds: Sequence[float] | None, sign: str = "") -> str:
    if math.isnan(value):
        return "-"
    text = f"{value:{sign}.3f}"
    if bounds is None or any(math.isnan(each) for each in bounds):
        return text
    return f"{text} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def _scaled(value: float | None, unit: float, name: str) -> str:
    """Return three significant digits, with commas above a thousand."""
    if value is None or math.isnan(value):
        return "-"
    scaled = value / unit
    if scaled >= 100:
        return f"{scaled:,.0f}{name}"
    return f"{scaled:.{max(0, 2 - math.floor(math.log10(scaled)))}f}{name}" if scaled > 0 else f"0{name}"


def _memory(cost: Cost) -> str:
    if cost.peak_bytes is None or cost.loaded_bytes is None:
        return "-"
    predicting = max(0, cost.peak_bytes - cost.loaded_bytes)
    return f"{_scaled(cost.peak_bytes, 1e6, ' MB')} ({_scaled(predicting, 1e6, ' MB')})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    if len(rows) < 2:
        return ""
    lines = ["| " + " | ".join(each.replace("|", "\\|") for each in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def notes_of(
    task: Task, split: str, results: Results, draws: int, conditions: Mapping[str, Any], more: Sequence[str]
) -> list[str]:
    """Return lines on how the figures came about."""
    bootstrap = f"; intervals: {draws:,} draws of the bootstrap over images" if draws else ""
    paired = ", differences to the first model by the same draws (paired)" if draws else ""
    lines = [
        f"{results.compared:,} images of the split {split}{bootstrap}{paired}.",
        *more,
    ]
    if conditions.get("rounds"):
        threads = f", {conditions['threads']} threads" if conditions.get("threads") else ""
        memory = "resident memory of the process" if threads else "tensors on the GPU"
        lines.append(
            f"images/s and peak memory ({memory}; in brackets what predicting adds to the loaded model): "
            f"{conditions['device']}, "
            f"{conditions['precision']}{threads}, batches of {conditions['batch_size']} of the input size; "
            f"median of {conditions['rounds']} rounds of {conditions['round_s']:g} s, models in turn, each "
            "in a fresh process, without reading files. GFLOPs: one forward pass on one image of that size, "
            "2 for a multiplication with addition (torch.utils.flop_counter: convolutions, matrix products, "
            "attention)."
        )
    return lines
