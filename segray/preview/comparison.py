"""Pages of a comparison of models: the table, each class, differences to the first model, panels."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from segray.errors import SettingsError
from segray.output.io import read_file
from segray.output.names import SCORES
from segray.preview.folder import PageFolder
from segray.preview.runs import Run
from segray.preview.settings import PreviewSettings
from segray.preview.training import confusion_of, write_samples

PANELS = "panels"


def comparison_pages(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages of a comparison; return lines for the summary.

    Raises SettingsError for two of them, and where metrics.json cannot be read.
    """
    if len(runs) != 1:
        raise SettingsError("run: two comparisons are not compared; compare all of their models in one run")
    (run,) = runs
    try:
        scores = json.loads(read_file(f"{run.url}/{SCORES}", run.storage, "run"))
        models: list[dict[str, Any]] = scores["models"]
        sections = [_overview(scores, models), _differences(models), _classes(models)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SettingsError(f"run: {SCORES} of {run.shown} is damaged: {error}") from error
    sections.append(_table("In no score", scores.get("failed") or []))
    samples, lost = write_samples(run, settings, folder, PANELS)
    counts = run.record.get("counts") or {}
    facts = [[len(models), "models"], [counts.get("compared", 0), "images compared"]]
    facts += [[counts["rejected"], "in no score"]] if counts.get("rejected") else []
    page = {"kind": "training", "runs": [run.about()], "facts": facts, "first": "Scores"}
    values: dict[str, Any] = {"scores": [each for each in sections if each], "samples": samples}
    if models[0].get("confusion"):
        names = [str(row["class"]) for row in models[0]["classes"]]
        values["confusion"] = confusion_of(models[0]["confusion"], names)
    folder.put("page", page=page, **values)
    return [f"{len(models):,} models, {len(samples):,} panels", *lost]


def _overview(scores: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row a model."""
    rows = []
    for model in models:
        row: dict[str, Any] = {"model": model["model"]}
        for name, value in _figures(model).items():
            row |= {name: value, f"{name} interval": _bounds((model.get("intervals") or {}).get(name))}
        size = model["input"]
        row |= {
            "parameters": model.get("parameters"),
            "GFLOPs": model.get("gflops"),
            "input": f"{size['width']} x {size['height']}",
            "file MB": _mega(model.get("file_bytes")),
            "images/s": model.get("images_per_s"),
            "peak MB": _mega(model.get("peak_bytes")),
            "problem": model.get("error"),
        }
        rows.append(row)
    return {**_table("Models", rows), "note": " ".join(map(str, scores.get("notes") or []))}


def _figures(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures over everything; of instances those of masks."""
    metrics: Mapping[str, Any] = model["metrics"].get("segm") or model["metrics"]
    return {name: metrics[name] for name in model["intervals"] or metrics if name in metrics}


def _differences(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row for each other model: how its figures differ from the first one's."""
    rows = []
    for model in models[1:]:
        row: dict[str, Any] = {"model": model["model"]}
        for name, each in (model.get("difference") or {}).items():
            if isinstance(each, dict):
                row |= {name: each.get("difference"), f"{name} interval": _bounds(_ends(each))}
        rows.append(row)
    return _table(f"Difference to {models[0]['model']}, paired", rows)


def _classes(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row a class: IoU, or AP of masks, by each model."""
    figure = "iou" if "iou" in models[0]["classes"][0] else "ap"
    by_model = [{row["class"]: row for row in model["classes"]} for model in models]
    rows = [
        {"class": name}
        | {
            model["model"]: each.get(name, {}).get(figure)
            for model, each in zip(models, by_model, strict=True)
        }
        for name in by_model[0]
    ]
    return _table(f"{'IoU' if figure == 'iou' else 'AP'} of each class", rows)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a table without columns that are empty in all rows; empty without rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
    if not kept:
        return {}
    return {"title": title, "columns": [[name, name.replace("_", " ")] for name in kept], "rows": [*rows]}


def _ends(difference: Mapping[str, Any]) -> list[Any] | None:
    return [difference["low"], difference["high"]] if "low" in difference else None


def _bounds(value: Any) -> str:
    known = isinstance(value, list) and None not in value
    return f"{value[0]:.4f} to {value[1]:.4f}" if known else ""


def _mega(value: Any) -> float | None:
    return round(value / 1e6, 2) if isinstance(value, int | float) else None
