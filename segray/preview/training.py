"""Pages of a training, or of two together: curves of metrics.jsonl, panels of samples."""

import json
import math
from collections.abc import Sequence
from typing import Any

from segray.errors import ItemError, NothingToDoError, SettingsError
from segray.output.io import files_below, read_file
from segray.output.names import METRICS
from segray.preview.compare import settings_apart
from segray.preview.folder import PageFolder
from segray.preview.pictures import jpeg, smaller
from segray.preview.runs import Run
from segray.preview.settings import PreviewSettings
from segray.sources.item import Source
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox

PANEL = 2_400
"""Longest side of a sample's panel, pixels."""
PLOTS = {
    "Loss": {"train_loss": "train", "val_loss": "val"},
    "Scores of the val images": {
        "miou": "mIoU",
        "dice": "Dice",
        "pixel_accuracy": "pixel accuracy",
        "ap": "AP",
    },
    "AP by IoU and size": {
        **{"ap50": "AP50", "ap75": "AP75"},
        **{f"ap_{size}": f"AP {size}" for size in ("small", "medium", "large")},
    },
    "Learning rate": {"lr": "learning rate"},
    "Speed, images a second": {"images_per_s": "images a second"},
}
"""Title -> column of metrics.jsonl -> name of the curve."""
MOST_CLASSES = 20
"""Classes whose IoU is drawn: those of the lowest at the end."""


def training_pages(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages of one training, or of two; return lines for the summary.

    Raises SettingsError where metrics.jsonl cannot be read, NothingToDoError where it has no epoch.
    """
    histories = [history_of(run) for run in runs]
    samples, lost = write_samples(runs[-1], settings, folder)
    best = runs[-1].record.get("best") or {}
    facts = [[len(histories[-1]), "epochs"]]
    scores = [(_number(best.get(key)), name) for key, name in (("miou", "mIoU"), ("ap", "AP"))]
    facts += [[score, f"best {name}"] for score, name in scores if score is not None]
    values: dict[str, Any] = {"curves": curves_of(runs, histories), "samples": samples}
    confusion = runs[-1].record.get("confusion")
    if confusion:
        values["confusion"] = confusion_of(confusion, class_names(runs[-1], len(confusion)))
    if len(runs) == 2:
        values["scores"] = [settings_apart(runs)]
    folder.put(
        "page", page={"kind": "training", "runs": [run.about() for run in runs], "facts": facts}, **values
    )
    return [f"{len(histories[-1]):,} epochs, {len(samples):,} samples", *lost]


def history_of(run: Run, name: str = METRICS) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl. Raises SettingsError for one that is damaged."""
    lines = read_file(f"{run.url}/{name}", run.storage, "run").decode("utf-8", "replace").splitlines()
    try:
        found = [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise SettingsError(f"run: {name} of {run.shown} is damaged: {error}") from error
    if not found:
        raise NothingToDoError(f"{run.shown}: no epoch has ended")
    return found


def curves_of(runs: Sequence[Run], histories: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the plots of one training, or of two by the same epochs."""
    epochs = sorted({int(line["epoch"]) for history in histories for line in history})
    names = [run.name for run in runs]
    by_epoch = [{int(line["epoch"]): line for line in history} for history in histories]
    plots: list[dict[str, Any]] = []
    for title, columns in PLOTS.items():
        curves: list[dict[str, Any]] = [
            {"name": f"{who}: {name}" if len(runs) > 1 else name, "values": _column(lines, key, epochs)}
            for who, lines in zip(names, by_epoch, strict=True)
            for key, name in columns.items()
        ]
        curves = [each for each in curves if any(value is not None for value in each["values"])]
        if curves:
            plots.append({"title": title, "x": epochs, "xlabel": "epoch", "curves": curves})
    of_classes = [_of_classes(run, epochs, lines) for run, lines in zip(runs, by_epoch, strict=True)]
    return plots + [each for each in of_classes if each is not None]


def _column(lines: dict[int, dict[str, Any]], key: str, epochs: Sequence[int]) -> list[float | None]:
    return [_number(lines.get(epoch, {}).get(key)) for epoch in epochs]


def _of_classes(run: Run, epochs: Sequence[int], lines: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the plot of each class's IoU; None where no line has them."""
    rows = [lines.get(epoch, {}).get("iou") or [] for epoch in epochs]
    curves: list[dict[str, Any]] = [
        {"name": name, "values": [_number(row[at]) if at < len(row) else None for row in rows]}
        for at, name in enumerate(class_names(run, max(map(len, rows))))
    ]
    known = [each for each in curves if each["values"][-1] is not None]
    known.sort(key=lambda each: float(each["values"][-1]))
    if not known:
        return None
    part = f"the {MOST_CLASSES} lowest of {len(known)} classes" if len(known) > MOST_CLASSES else "each class"
    title = f"IoU of {part} ({run.about()['name']})"
    return {"title": title, "x": list(epochs), "xlabel": "epoch", "curves": known[:MOST_CLASSES]}


def class_names(run: Run, number: int) -> list[str]:
    """Return the names of the classes; `class 3` where the record does not have it."""
    names = run.record.get("classes") or (run.record.get("settings") or {}).get("classes") or []
    return [
        str(names[at]) if isinstance(names, list) and at < len(names) else f"class {at}"
        for at in range(number)
    ]


def confusion_of(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    """Return a matrix of pixels, a row for each true class, for the page; a further column is `no class`."""
    columns = [*names, "no class"][: len(matrix[0])]
    return {"names": list(names), "columns": columns, "rows": [list(row) for row in matrix]}


def write_samples(
    run: Run, settings: PreviewSettings, folder: PageFolder, where: str = "samples"
) -> tuple[list[dict[str, Any]], list[str]]:
    """Copy the panels that the training drew; return them, and a line for each that cannot be read."""
    files: Sequence[Source] = files_below(f"{run.url}/{where}", (".png",), run.storage)[: settings.images]
    found, lost = [], []
    with DecodeSandbox() as sandbox:
        for number, source in enumerate(files):
            name = source.uri.rpartition("/")[2]
            try:
                (data,) = read_all([source], run.storage)
                if isinstance(data, ItemError):
                    raise data
                pixels = smaller(sandbox.decode(data, settings.max_pixels).pixels, PANEL)
            except ItemError as error:
                lost.append(f"  {name}: {error.error_type}: {error.reason}")
                continue
            picture = folder.picture(f"sample-{number}.jpg", jpeg(pixels))
            found.append({"name": name, "picture": picture, "size": list(pixels.shape[:2])})
    return found, lost


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
