"""The files of a finished comparison: tables, metrics.json, and run.json last."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from segray.comparison.report import Compared
from segray.comparison.settings import CompareSettings
from segray.errors import JobFailedError
from segray.evaluate.report import problem_lines, table, without_nan
from segray.output.folder import Output
from segray.output.names import RUN, SCORES
from segray.registry.runs import note_run
from segray.settings import printable
from segray.versions import versions

TABLE, MARKDOWN = "table.csv", "table.md"


def write_results(
    settings: CompareSettings,
    store: Output,
    compared: Compared,
    panels: Mapping[str, str],
    run: dict[str, Any],
) -> dict[str, Any]:
    """Write table and figures, and run.json last; return its contents.

    panels: image -> name of its panels; run: further entries of run.json. Raises JobFailedError where a model
    was not measured.
    """
    results = compared.results
    number = results.compared + len(results.problems)
    counts = {
        "items": number,
        "compared": results.compared,
        "rejected": len(results.problems),
        "models": len(compared.candidates),
    }
    record = {
        "verb": "compare",
        "task": compared.task,
        "counts": counts,
        "summary": [*_columns(compared.overview()), *problem_lines(results.problems)],
        "panels": list(panels.values()),
        "settings": yaml.safe_load(printable(settings)),
        "versions": versions(),
        **run,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    scores = {
        "task": compared.task,
        "models": compared.models(),
        "conditions": compared.conditions,
        "notes": compared.notes,
        "intervals": {"level": 0.95, "draws": settings.draws, "seed": settings.seed},
        "counts": counts,
        "failed": [{"name": each.name, "reason": each.reason} for each in results.problems],
        "images": [
            {"name": each.name, "scores": each.scores, "why": each.why, "panel": panels.get(each.name)}
            for each in results.images
        ],
    }
    store.write(TABLE, compared.csv())
    store.write(MARKDOWN, compared.markdown())
    store.write_json(SCORES, without_nan(scores))
    failed = [
        f"{candidate.name} could not be measured: {cost.error}"
        for candidate, cost in zip(compared.candidates, compared.costs, strict=True)
        if cost.error is not None
    ]
    if failed:
        raise JobFailedError(
            *failed,
            f"{TABLE} and {MARKDOWN} have the rest; run the command again, or with another --batch-size",
        )
    plain: dict[str, Any] = as_json(record)
    store.write_json(RUN, plain)
    for each in compared.candidates:
        note_run(each.spec, settings.output, plain, settings.storage)
    return plain


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as aligned columns, the first one titles."""
    titles, *others = rows
    unique = [title if titles.index(title) == at else f"{title} " for at, title in enumerate(titles)]
    return [f"  {line}" for line in table([dict(zip(unique, row, strict=True)) for row in others])]


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back, null for NaN."""
    return json.loads(json.dumps(without_nan(value)))
