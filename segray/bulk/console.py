"""The summary that a bulk job prints at its end, and the contents of run.json."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from segray.bulk.ledger_db import LedgerDb
from segray.bulk.task import BulkTask
from segray.settings import printable
from segray.storage import canonical_uri, shown
from segray.versions import versions

_KINDS = 5
"""Maximum number of suffixes that are printed."""


def run_record(
    task: BulkTask,
    identity: dict[str, Any],
    ledger: LedgerDb,
    left_out: Counter[str],
    seconds: float,
    items: int,
) -> dict[str, Any]:
    """Return the contents of run.json: settings without secrets, versions, model, counts and rates.

    `seconds` and `items` are those of the run that finished; counts are those of the whole output.
    """
    settings, counts = task.settings, ledger.counts()
    kinds = left_out + Counter({"in archives": counts.pop("ignored_members")})
    counts |= {"ignored": kinds.total(), "ignored_by_kind": dict(kinds.most_common())}
    return {
        "verb": task.name,
        "settings": yaml.safe_load(printable(settings)),
        "identity": identity,
        "versions": versions(),
        "counts": counts,
        "rates": {
            "seconds": round(seconds, 3),
            "items": items,
            "images_per_s": round(items / seconds, 3) if seconds > 0 else None,
        },
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summary_lines(
    task: BulkTask, ledger: LedgerDb, record: dict[str, Any], did: str, hours: Sequence[str] = ()
) -> list[str]:
    """Return the summary of a run: counts, rejects by type, where the output is and how to open it."""
    counts = record["counts"]
    output = shown(task.settings.output).rstrip("/")
    found = f"{counts['instances']:,} instances; " if task.keeps_instances else ""
    lines = [
        f"{did}",
        f"  {counts['items']:,} items: {counts['annotated']:,} annotated, {counts['rejected']:,} rejected; "
        f"{found}{_ignored(Counter(counts.get('ignored_by_kind', {'': counts['ignored']})))}",
    ]
    if counts["vanished"]:
        lines.append(
            f"  {counts['vanished']:,} items are no longer in the sources, or cannot be reached; "
            "kept and marked `vanished`"
        )
    number, example = ledger.unreached()
    if number:
        lines.append(f"  {number:,} sources cannot be reached now, earlier results are kept: {example}")
    lines += _twins(ledger)
    if counts["tiles"]:
        rejected, skipped = counts["tiles_rejected"], counts["tiles_skipped"]
        lines.append(f"  {counts['tiles']:,} tiles: {rejected:,} rejected, {skipped:,} without data")
    lines += [f"  {number:,} item{'s' * (number > 1)}: {note}" for note, number in ledger.notes().items()]
    for kind, number in counts["rejects_by_type"].items():
        lines.append(f"  rejected as {kind}: {number:,}{_kinds(Counter(counts['rejects_by_kind'][kind]))}")
    lines += [f"    for example {example}" for example in ledger.rejected_examples()]
    lines += [f"  {line}" for line in hours]
    return [*lines, f"output: {canonical_uri(output)}", *(f"  {line}" for line in task.opening(output))]


def reading(table: str, then: str) -> str:
    """Return a shell command that prints a table of the output with pandas, which Ray Data installs."""
    code = f"import pandas; print(pandas.read_parquet({json.dumps(table, ensure_ascii=False)}){then})"
    return f"uv run python -P -c {shlex.quote(code)}"


def _twins(ledger: LedgerDb) -> list[str]:
    message = "rows differ from an earlier one in their query string alone: both are one item"
    return [f"  {ledger.query_twins:,} {message}"] if ledger.query_twins else []


def _ignored(kinds: Counter[str]) -> str:
    return f"{kinds.total():,} other names ignored{_kinds(kinds)}"


def _kinds(kinds: Counter[str]) -> str:
    """Return ` (7 .md, 2 .txt)`, the most frequent suffixes."""
    named = [f"{number:,} {kind}" for kind, number in kinds.most_common(_KINDS) if kind and number]
    named += ["…"] * (len(kinds) > _KINDS)
    return f" ({', '.join(named)})" if named else ""


def dry_run_lines(
    task: BulkTask, ledger: LedgerDb, left_out: Counter[str], model: str, where: str
) -> list[str]:
    """Return lines on what a run would do."""
    files, archives = ledger.kinds()
    return [
        f"sources: {files:,} files and {archives:,} archives, {_ignored(left_out)}",
        *_twins(ledger),
        f"model: {model} on {where}, {task.about()}",
        f"output: {canonical_uri(task.settings.output)}",
        "dry run: nothing was written",
    ]
