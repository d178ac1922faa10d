"""Pages of a retraining: each round's decision, champion against challenger, the last round's curves."""

import json
from collections.abc import Sequence
from typing import Any

from segray.errors import SettingsError
from segray.output.io import files_below, read_file, read_if_there
from segray.output.names import METRICS
from segray.preview.folder import PageFolder
from segray.preview.runs import Run
from segray.preview.settings import PreviewSettings
from segray.preview.training import curves_of, history_of, write_samples


def retraining_pages(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages of a retraining; return lines for the summary.

    Raises SettingsError for two of them, and where a decision cannot be read.
    """
    if len(runs) != 1:
        raise SettingsError(
            "run: two retrainings are not compared; preview one, or the trainings of their rounds"
        )
    (run,) = runs
    rounds = [
        _decision(run, file.uri) for file in files_below(f"{run.url}/rounds", ("decision.json",), run.storage)
    ]
    last = f"rounds/{int(run.record.get('round') or 0):04d}"
    values: dict[str, Any] = {"scores": [_reasons(run), *_rounds(rounds)]}
    curves = _over_rounds(rounds)
    if read_if_there(f"{run.url}/{last}/train/{METRICS}", run.storage, "run") is not None:
        curves += curves_of(runs, [history_of(run, f"{last}/train/{METRICS}")])
        values["samples"], _ = write_samples(run, settings, folder, f"{last}/train/samples")
    report = read_if_there(f"{run.url}/{last}/report.html", run.storage, "run")
    page: dict[str, Any] = {"kind": "training", "runs": [run.about()], "facts": _facts(run, rounds)}
    if report is not None:
        (folder.path / "data/report.html").write_bytes(report)
        page["links"] = [["Report of the last round", "data/report.html"]]
    folder.put("page", page=page, curves=curves, **values)
    return [f"{len(rounds):,} rounds"]


def _decision(run: Run, uri: str) -> dict[str, Any]:
    """Return the decision of a round, with its number."""
    data = read_file(uri, run.storage, "run")
    try:
        decision = json.loads(data)
        return {**decision, "round": int(uri.split("/")[-2])}
    except (ValueError, TypeError) as error:
        raise SettingsError(f"run: {uri} is damaged: {error}") from error


def _facts(run: Run, rounds: Sequence[dict[str, Any]]) -> list[list[Any]]:
    promoted = sum(bool(each.get("promoted")) for each in rounds)
    return [[len(rounds), "rounds"], [promoted, "promoted"]]


def _reasons(run: Run) -> dict[str, Any]:
    record = run.record
    what = "promoted" if record.get("promoted") else "refused"
    rows = [{"reason": str(each)} for each in record.get("reasons") or []]
    title = f"Round {record.get('round')}: {record.get('model')}@{record.get('version')} {what}"
    return {"title": title, "columns": [["reason", "reasons"]], "rows": rows}


def _rounds(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table with a row for each round."""
    rows = [
        {
            "round": each["round"],
            "decision": "promoted" if each.get("promoted") else "refused",
            "metric": each.get("metric"),
            **{who: _figure(each, who) for who in ("champion", "challenger")},
            **{f"{who} interval": _interval(each, who) for who in ("champion", "challenger")},
            "images": each.get("images"),
            "reasons": " ".join(map(str, each.get("reasons") or [])),
        }
        for each in rounds
    ]
    columns = [[name, name] for name in rows[0]] if rows else []
    return [{"title": "Rounds", "columns": columns, "rows": rows}] if rows else []


def _figure(decision: dict[str, Any], who: str) -> float | None:
    value = (decision.get(who) or {}).get("figure")
    return float(value) if isinstance(value, int | float) else None


def _interval(decision: dict[str, Any], who: str) -> str:
    each = decision.get(who) or {}
    bounds = each.get("low"), each.get("high")
    return "" if None in bounds else f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _over_rounds(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plot of champion and challenger over the rounds."""
    if not rounds:
        return []
    curves = [
        {"name": who, "values": [_figure(each, who) for each in rounds]} for who in ("champion", "challenger")
    ]
    numbers = [each["round"] for each in rounds]
    title = f"{rounds[-1].get('metric')} on the holdout"
    return [{"title": title, "x": numbers, "xlabel": "round", "curves": curves}]
