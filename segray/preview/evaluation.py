"""Pages of an evaluation, or two: figures, classes, precision and recall, thresholds, the worst images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from segray.errors import SegrayError, SettingsError
from segray.preview.classes import coloured
from segray.preview.compare import settings_apart
from segray.preview.figures import classes_of, figures_of
from segray.preview.folder import PageFolder
from segray.preview.instances import draw, instances_of, with_nameless
from segray.preview.ledger import instance_files_of, read_ledger, rows_of
from segray.preview.runs import Run, find_run
from segray.preview.sample import Sampler
from segray.preview.settings import PreviewSettings
from segray.preview.training import confusion_of

MOST_CURVES = 20
"""Classes whose curve is drawn, those of the lowest AP; all are in the table."""
_KINDS = {"segm": "masks", "bbox": "boxes"}


def evaluation_pages(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages of one evaluation, or of two; return lines for the summary."""
    if len({str(run.record.get("task")) for run in runs}) > 1:
        tasks = " and ".join(str(run.record.get("task")) for run in runs)
        raise SettingsError(f"run: evaluations of {tasks} cannot be compared")
    scores = [_overall(runs)]
    for run in runs:
        of = f" ({run.about()['name']})" if len(runs) > 1 else ""
        scores += [{**each, "title": each["title"] + of} for each in _sections(run.record)]
    if len(runs) == 2:
        scores.append(settings_apart(runs))
    counts = runs[-1].record.get("counts") or {}
    facts = [[counts.get("compared", 0), "images compared"], [counts.get("failed", 0), "in no score"]]
    values: dict[str, Any] = {"scores": [each for each in scores if each]}
    lines = list[str]()
    if len(runs) == 1:
        shown, lines = _worst_pictures(runs[0], settings, folder)
        values |= shown
    confusion = runs[-1].record.get("confusion")
    if confusion:
        names = [str(row["class"]) for row in runs[-1].record.get("classes") or []]
        values["confusion"] = confusion_of(confusion, names)
    page = {"kind": "instances", "runs": [run.about() for run in runs], "facts": facts, "first": "Scores"}
    folder.put("page", page=page, **values)
    return [f"{counts.get('compared', 0):,} images compared", *lines]


def _overall(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the figures over everything, a row each, with intervals where there are any."""
    flat = [_flat(run.record.get("metrics") or {}) for run in runs]
    bounds = [_flat(_intervals(run.record)) for run in runs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    rows = []
    for name in names:
        row: dict[str, Any] = {"what": name.replace("_", " ")}
        for at, (figures, known) in enumerate(zip(flat, bounds, strict=True)):
            row |= {f"value{at}": figures.get(name), f"bounds{at}": _bounds(known.get(name))}
        rows.append(row)
    columns = [["what", "figure"]]
    for at, run in enumerate(runs):
        columns += [[f"value{at}", run.name], [f"bounds{at}", "interval"]]
    columns = [each for each in columns if any(row[each[0]] not in (None, "") for row in rows)]
    return {"title": "Over all images", "columns": columns, "rows": rows}


def _intervals(record: Mapping[str, Any]) -> dict[str, Any]:
    found = record.get("intervals") or {}
    return {kind: found[kind] for kind in _KINDS if isinstance(found.get(kind), dict)}


def _bounds(value: Any) -> str:
    return f"{value[0]:.4f} to {value[1]:.4f}" if isinstance(value, list) and None not in value else ""


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return `segm ap`: value, and values that are not nested by their own name."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            found |= {f"{_KINDS.get(name, name)}: {each}": figure for each, figure in value.items()}
        else:
            found[name] = value
    return found


def _sections(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a record has, in the order of the page."""
    sections = [_table("Classes", record.get("classes")), *_curves(record), *_thresholds(record)]
    sections += [_groups(record), _table("Images with the most errors", record.get("worst"))]
    sections.append(_table("In no score", record.get("failed")))
    return [each for each in sections if each]


def _table(title: str, rows: Any) -> dict[str, Any]:
    """Return a table of rows with plain values; empty without rows."""
    if not isinstance(rows, list) or not rows:
        return {}
    names = list(
        dict.fromkeys(
            name for row in rows for name, value in row.items() if not isinstance(value, dict | list)
        )
    )
    return {"title": title, "columns": [[name, name.replace("_", " ")] for name in names], "rows": rows}


def _groups(record: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        _flat({name: value for name, value in row.items() if name != "intervals"})
        for row in record.get("groups") or []
    ]
    return _table("Groups", rows)


def _thresholds(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each kind the score of the best F1 by class."""
    found = []
    for kind, title in _KINDS.items():
        rows = [
            {"class": row["class"], **row[kind]}
            for row in record.get("thresholds") or []
            if isinstance(row.get(kind), dict)
        ]
        found.append(_table(f"Score of the best F1, {title} at IoU 0.5", rows))
    return found


def _curves(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return precision over recall, and F1 over the score, of each kind."""
    found = []
    for kind, title in _KINDS.items():
        rows = (record.get("curves") or {}).get(kind) or []
        plots = []
        for iou in dict.fromkeys(
            name for row in rows for name, value in row.items() if isinstance(value, dict)
        ):
            known = sorted((row for row in rows if iou in row), key=lambda row: sum(row[iou]["precision"]))
            curves = [
                {"name": str(row["class"]), "values": row[iou]["precision"]} for row in known[:MOST_CURVES]
            ]
            steps = [at / 100 for at in range(101)]
            plots.append(
                {
                    "title": f"Precision over recall, {title}, {_iou(iou)}",
                    "x": steps,
                    "xlabel": "recall",
                    "curves": curves,
                    "low": 0,
                    "high": 1,
                }
            )
            plots += _f1(known[:MOST_CURVES], iou, title)
        if plots:
            note = (
                f"The {MOST_CURVES} classes of the lowest precision are drawn."
                if len(rows) > MOST_CURVES
                else None
            )
            found.append({"title": f"Precision and recall, {title}", "note": note, "curves": plots})
    return found


def _iou(name: str) -> str:
    digits = "".join(each for each in name if each.isdigit())
    return f"IoU 0.{digits}" if digits else name


def _f1(rows: Sequence[Mapping[str, Any]], iou: str, title: str) -> list[dict[str, Any]]:
    """Return F1 over the score from which predictions count: of each class the points of its curve."""
    steps = [at / 50 for at in range(51)]
    curves = []
    for row in rows:
        points: list[float | None] = [None] * len(steps)
        for at, (precision, score) in enumerate(
            zip(row[iou]["precision"], row[iou].get("scores") or [], strict=False)
        ):
            recall = at / 100
            if score and precision + recall:
                place = round(score * 50)
                points[place] = max(points[place] or 0.0, 2 * precision * recall / (precision + recall))
        curves.append({"name": str(row["class"]), "values": _filled(points)})
    if not any(value is not None for each in curves for value in each["values"]):
        return []
    return [
        {
            "title": f"F1 over the score, {title}, {_iou(iou)}",
            "x": steps,
            "xlabel": "minimum score",
            "curves": curves,
            "low": 0,
            "high": 1,
        }
    ]


def _filled(points: list[float | None]) -> list[float | None]:
    """Fill gaps between points by a line."""
    known = [at for at, value in enumerate(points) if value is not None]
    for start, stop in pairwise(known):
        one, other = points[start], points[stop]
        assert one is not None
        assert other is not None
        for at in range(start + 1, stop):
            points[at] = one + (other - one) * (at - start) / (stop - start)
    return points


def _worst_pictures(
    run: Run, settings: PreviewSettings, folder: PageFolder
) -> tuple[dict[str, Any], list[str]]:
    """Draw the predictions of the worst images, where their run can still be read."""
    worst = [row for row in run.record.get("worst") or [] if isinstance(row, dict) and row.get("image_id")]
    address = (run.record.get("settings") or {}).get("predictions") or run.record.get("predictions")
    if not worst or not address:
        return {}, []
    try:
        predictions = find_run(str(address), run.storage)
        ledger = read_ledger(predictions, Sampler(1))
        errors = {str(row["image_id"]): row for row in worst[: settings.images]}
        shown = instances_of(predictions, instance_files_of(predictions), list(errors))
        classes = with_nameless(classes_of(figures_of(predictions)[0]), [shown])
        images, lost = draw(
            rows_of(predictions, ledger, list(errors)), [shown], list(classes), settings, folder
        )
    except SegrayError as error:
        return {}, [f"  the worst images are not drawn: {error.lines[0]}"]
    for entry in images:
        row = errors[entry["id"]]
        entry["errors"] = row["false_positives"] + row["false_negatives"]
        entry["why"] = f"{row['false_positives']} false positives, {row['false_negatives']} missed"
        entry["note"] = entry["why"]
    return {"images": images, "classes": coloured(list(classes), classes)}, lost
