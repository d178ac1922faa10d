"""curves.png: the lines of metrics.jsonl, drawn: losses, scores, IoU of each class, learning rate."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import fsspec

from segray.atomic import put_atomically
from segray.train.reporting.events import SCORES
from segray.train.reporting.lettering import class_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 1200, 900
"""Size of the image in pixels."""
LEGIBLE = 20
"""Maximum number of classes drawn: those of the lowest IoU."""
_DPI = 100
_MARKED = 30
"""Maximum number of epochs that are drawn with dots."""
_LOGARITHMIC = 10.0
"""An axis is logarithmic when its values, all positive, differ by more than this factor."""

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot."""

    name: str
    values: list[float]
    """One value per epoch; NaN where there is none."""

    def last(self) -> float:
        """Return the last finite value; NaN if there is none."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), math.nan)


def write_curves(
    filesystem: fsspec.AbstractFileSystem, path: str, history: Sequence[Line], classes: Sequence[str]
) -> None:
    """Write or replace the image (OUTPUT/curves.png)."""
    put_atomically(filesystem, path, curves(history, classes))


def curves(history: Sequence[Line], classes: Sequence[str]) -> bytes:
    """Return a PNG of 1200 x 900 pixels; where a value is None, NaN or infinite a curve has a gap.

    Needs no display, and does not change matplotlib's global state: pyplot is not loaded and no setting
    is changed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # lazy: it takes half a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)  # inches around each plot
    canvas = FigureCanvasAgg(figure)
    best = best_of(history)
    figure.suptitle(_title(history, best), fontsize=13)
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False)
    (loss, scores), (rate, ious) = above.subplots(1, 2), below.subplots(1, 2, width_ratios=(1, 2))
    _plot_losses(loss, history)
    _plot_scores(scores, history)
    if _decides(history) == "miou":
        _plot_classes(ious, history, classes)
    else:
        ious.set_visible(False)  # AP of each category is not kept per epoch
    _plot(rate, "learning rate", history, [_curve(history, "lr", "")])
    if best is not None:
        for axes in (loss, scores, ious):
            axes.axvline(best["epoch"], color="grey", linestyle=":", zorder=0)
    content = io.BytesIO()
    canvas.print_png(content)  # type: ignore[no-untyped-call]
    return content.getvalue()


def best_of(history: Sequence[Line]) -> Line | None:
    """Return the first epoch of the highest mIoU, or AP; None if none has one."""
    name = _decides(history)
    scored = [line for line in history if math.isfinite(_number(line.get(name)))]
    return max(scored, key=lambda line: float(line[name]), default=None)


def _decides(history: Sequence[Line]) -> str:
    return "ap" if any("ap" in line for line in history) else "miou"


def class_curves(history: Sequence[Line], classes: Sequence[str]) -> list[Curve]:
    """Return the IoU of each class, from the best at the end down to the worst; those without one last."""
    if not any("iou" in line for line in history):
        return []
    rows = [line.get("iou", [None] * len(classes)) for line in history]
    found = [
        Curve(name, [_number(row[index]) for row in rows]) for index, name in enumerate(class_names(classes))
    ]
    return sorted(found, key=lambda curve: -curve.last() if math.isfinite(curve.last()) else math.inf)


def lowest(found: list[Curve], number: int) -> list[Curve]:
    """Return the curves of the lowest IoU, in their order; those without an IoU are used last."""
    known = [curve for curve in found if math.isfinite(curve.last())]
    return (known[-number:] + [curve for curve in found if math.isnan(curve.last())])[:number]


def _title(history: Sequence[Line], best: Line | None) -> str:
    if best is None:
        return f"epoch {history[-1]['epoch']}" if history else "no epoch yet"
    name = _decides(history)
    figure = f"{SCORES[name]} {best[name]:.4f}"
    return f"epoch {history[-1]['epoch']}; best {figure} at epoch {best['epoch']} (dotted)"


def _curve(history: Sequence[Line], key: str, name: str) -> Curve:
    return Curve(name, [_number(line.get(key)) for line in history])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _plot_losses(axes: "Axes", history: Sequence[Line]) -> None:
    drawn = [_curve(history, "train_loss", "train")]
    if any("val_loss" in line for line in history) or not history:
        drawn.append(_curve(history, "val_loss", "val"))
    _plot(axes, "loss", history, drawn)
    values = [value for curve in drawn for value in curve.values if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > _LOGARITHMIC * min(values):
        axes.set_yscale("log")
    _name(axes, drawn, "upper right", form="#.3g")


def _plot_scores(axes: "Axes", history: Sequence[Line]) -> None:
    found = [key for key in SCORES if any(key in line for line in history)]
    drawn = [_curve(history, key, SCORES[key]) for key in found]
    _plot(axes, "validation scores", history, drawn)
    _name(axes, drawn, "lower right")


def _plot_classes(axes: "Axes", history: Sequence[Line], classes: Sequence[str]) -> None:
    found = class_curves(history, classes)
    drawn = lowest(found, LEGIBLE)
    part = f": the {LEGIBLE} lowest of {len(found)} classes" if len(drawn) < len(found) else " of each class"
    _plot(axes, f"validation IoU{part}", history, drawn)
    _name(axes, drawn, "center left", anchor=(1.0, 0.5), fontsize=8)


def _plot(axes: "Axes", title: str, history: Sequence[Line], drawn: list[Curve]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    epochs = [int(line["epoch"]) for line in history]
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    if all(math.isnan(curve.last()) for curve in drawn):
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color="grey")
        axes.yaxis.set_ticks([])
    colours = colormaps["tab20" if len(drawn) > 10 else "tab10"]
    marker, width = (".", 1.5) if len(epochs) <= _MARKED else ("", 1.0)
    for number, curve in enumerate(drawn):
        axes.plot(epochs, curve.values, marker=marker, linewidth=width, color=colours(number))


def _name(
    axes: "Axes",
    drawn: list[Curve],
    place: Literal["upper right", "lower right", "center left"],
    form: str = ".3f",
    anchor: tuple[float, float] | None = None,
    fontsize: int = 9,
) -> None:
    """Draw a legend: each curve's name and last value."""
    labels = [
        f"{curve.name}  {'none' if math.isnan(curve.last()) else format(curve.last(), form)}"
        for curve in drawn
    ]
    legend = axes.legend(
        axes.lines, labels, loc=place, bbox_to_anchor=anchor, fontsize=fontsize, edgecolor="white"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is literal
