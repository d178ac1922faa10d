"""What an import did: run.json, and the last lines on the screen."""

import time
from collections import Counter
from typing import Any

import yaml

from segray.errors import ExitCode
from segray.importer.label_maps import map_lines
from segray.importer.prepare import Import
from segray.log import LOG
from segray.run import exit_code
from segray.settings import printable
from segray.versions import versions

REJECTS = "rejects.csv"


def record_of(job: Import, tally: Counter[str], started: float) -> dict[str, Any]:
    """Return the contents of run.json; started: by the monotonic clock, seconds."""
    rejects, total = job.rejects, job.images.table.count_images() if job.images.table else None
    seconds = max(time.monotonic() - started, 1e-3)
    usual = ("instances", "unchanged", "changed", "reclassified", "added", "removed")
    counts: dict[str, Any] = {"items": tally["images"], "annotated": tally["images"]}
    counts |= {**{name: tally[name] for name in usual}, **tally}
    counts |= {
        "rejected": rejects.total,
        "rejected_annotations": rejects.of_annotations,
        "images_not_placed": rejects.of_images,
        "images_not_in_file": None if total is None else total - tally["images"],
        "tasks_not_looked_at": rejects.not_looked_at,
        "vanished": 0,
        "ignored": 0,
    }
    return {
        "verb": "import",
        "settings": yaml.safe_load(printable(job.settings)),
        "identity": job.identity,
        "versions": versions(),
        "maps": job.is_maps,
        "counts": counts,
        "rejects": rejects.lines,
        "rates": {"seconds": round(seconds, 3), "images_per_s": round(tally["images"] / seconds, 3)},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def conclude(job: Import, record: dict[str, Any], done: str) -> ExitCode:
    """Print what a record says, after the line `done`; return the exit code by `max_rejects`."""
    counts = Counter({name: value or 0 for name, value in record["counts"].items()})
    with_run = job.settings.run is not None
    lines = [done, *(map_lines(counts, with_run=with_run) if job.is_maps else _lines(counts, with_run))]
    rejected = counts["rejected_annotations"], counts["images_not_placed"]
    if any(rejected):
        lines.append(f"  {rejected[0]:,} annotations and {rejected[1]:,} images are left out, see {REJECTS}:")
        lines += [f"    {line}" for line in record["rejects"]]
    left = counts["images_not_in_file"]
    lines += [f"  {left:,} images of the run are not in the file, and not in the output"] * bool(left)
    unseen = counts["tasks_not_looked_at"]
    lines += [f"  {unseen:,} tasks have no annotation: nobody looked at them"] * bool(unseen)
    lines += ["dry run: nothing was written"] * job.settings.dry_run
    LOG.conclude(lines)
    LOG.outcome = {"counts": record["counts"]}
    everything = counts["images"] + counts["instances"] + sum(rejected)
    return exit_code(sum(rejected) / max(everything, 1), job.settings.max_rejects)


def _lines(counts: Counter[str], with_run: bool) -> list[str]:
    lines = [f"  {counts['images']:,} images, {counts['instances']:,} instances"]
    if with_run:
        kinds = ("unchanged", "changed", "added", "removed")
        told = ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds)
        lines.append(f"  {told}" + f" ({counts['reclassified']:,} in class)" * bool(counts["reclassified"]))
    if late := counts["by_name_alone"]:
        lines.append(f"  {late:,} images were found by their file name alone, in other folders")
    new = [name.removeprefix("class ") for name in counts if name.startswith("class ")]
    return lines + [f"  new classes: {', '.join(new)}"] * bool(new)
