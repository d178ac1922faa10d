"""Pages that compare two runs of annotate, or two of predict."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.drift.profile import Profile
from segray.errors import ItemError, SettingsError
from segray.preview.classes import coloured
from segray.preview.compare import (
    Both,
    apart,
    compared,
    difference,
    matches,
    most_different,
    settings_apart,
    tables_of,
)
from segray.preview.figures import classes_of, figures_of, histograms_of_both
from segray.preview.folder import PageFolder
from segray.preview.instances import Shown, draw, instances_of, rejects_of, summary, with_nameless
from segray.preview.label_maps import MapReader
from segray.preview.labelled import class_names, classes_of_maps, draw_maps
from segray.preview.ledger import instance_files_of, read_ledger, rows_of
from segray.preview.runs import Run, notes_on_copies
from segray.preview.sample import Sampler
from segray.preview.settings import PreviewSettings

DEFINED = {
    "instances+": "Difference of an image: 1 - 2 * (sum of the IoU of matched instances) / (instances of "
    "both); instances of one class match above IoU 0.5. Dashed outlines have no match.",
    "labels+": "Difference of an image: share of its pixels with another class.",
}


def two_runs(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages that compare two runs of one verb; return lines for the summary.

    Raises SettingsError for runs that cannot be compared, NothingToDoError where one has no image.
    """
    kinds = {"predict" if run.verb == "predict" else "annotate" for run in runs}
    if len(kinds) > 1:
        raise SettingsError("run: one run holds instances, the other label maps: they cannot be compared")
    ledgers = [read_ledger(run, Sampler(1)) for run in runs]
    both = compared(runs, ledgers, settings.images)
    profiles = [figures_of(run)[0] for run in runs]
    write = _instances if kinds == {"annotate"} else _maps
    kind, classes, images, lost, differences = write(runs, both, profiles, settings, folder)
    notes = [DEFINED[kind], _counted(both, len(images)), *notes_on_copies(runs)]
    folder.put(
        "page",
        page={
            "kind": kind,
            "runs": [run.about() for run in runs],
            "facts": [[both.common, "images of both"]],
            "notes": notes,
        },
        classes=classes,
        images=images,
        figures=[_of_differences(list(differences.values())), *histograms_of_both(runs, profiles)],
        scores=[tables_of(runs, _rows(both, profiles)), settings_apart(runs)],
        rejects=rejects_of(ledgers[1]),
    )
    return [*summary(ledgers[1], images, lost), *notes[1:]]


def _instances(
    runs: Sequence[Run],
    both: Both,
    profiles: Sequence[Profile],
    settings: PreviewSettings,
    folder: PageFolder,
) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]], list[str], dict[str, float]]:
    shown = [instances_of(run, instance_files_of(run), both.candidates) for run in runs]
    differences, marks = dict[str, float](), dict[str, tuple[set[int], set[int]]]()
    for image_id in both.candidates:
        found = [each[image_id] for each in shown]
        sides = [each.rows for each in found]
        pairs = matches(*sides)
        differences[image_id] = difference(pairs, *map(len, sides))
        if any(each.number > len(each.rows) for each in found):  # a part alone has no matches
            one, other = (each.number for each in found)
            differences[image_id] = abs(one - other) / (one + other)
        marks[image_id] = _unmatched(pairs, sides)
    chosen = most_different(differences, settings.images)
    classes = with_nameless({**classes_of(profiles[1]), **classes_of(profiles[0])}, shown)
    rows = rows_of(runs[0], both.ledgers[0], list(chosen))
    images, lost = draw(
        rows, [_marked(side, marks, at) for at, side in enumerate(shown)], list(classes), settings, folder
    )
    for entry in images:
        entry["difference"] = round(chosen[entry["id"]], 4)
    return "instances+", coloured(list(classes), classes), images, lost, differences


def _unmatched(
    pairs: Sequence[tuple[int, int, float]], sides: Sequence[Sequence[dict[str, Any]]]
) -> tuple[set[int], set[int]]:
    """Return the places of the rows of each side that are in no pair."""
    used = {one for one, _, _ in pairs}, {other for _, other, _ in pairs}
    first, second = (
        {at for at in range(len(side)) if at not in taken} for side, taken in zip(sides, used, strict=True)
    )
    return first, second


def _marked(
    shown: dict[str, Shown], marks: dict[str, tuple[set[int], set[int]]], side: int
) -> dict[str, Shown]:
    for image_id, found in shown.items():
        for at, row in enumerate(found.rows):
            row["mark"] = "unmatched" if at in marks[image_id][side] else None
    return shown


def _maps(
    runs: Sequence[Run],
    both: Both,
    profiles: Sequence[Profile],
    settings: PreviewSettings,
    folder: PageFolder,
) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]], list[str], dict[str, float]]:
    names = class_names(runs[0])
    if names != class_names(runs[1]):
        raise SettingsError(f"run: the classes differ: {names} and {class_names(runs[1])}")
    rows = rows_of(runs[0], both.ledgers[0], both.candidates)
    differences = dict[str, float]()
    with MapReader(runs[0], settings.max_pixels) as one, MapReader(runs[1], settings.max_pixels) as other:
        for row, first, second in zip(rows, one.read(rows), other.read(rows), strict=True):
            if not isinstance(first, ItemError) and not isinstance(second, ItemError):
                differences[row["image_id"]] = apart(first.values, second.values)
    chosen = most_different(differences, settings.images)
    rows = rows_of(runs[0], both.ledgers[0], list(chosen))
    images, lost = draw_maps(runs, rows, len(names), settings, folder)
    for entry in images:
        entry["difference"] = round(chosen[entry["id"]], 4)
    return "labels+", classes_of_maps(names), images, lost, differences


def _of_differences(values: Sequence[float]) -> dict[str, Any]:
    edges: NDArray[np.float64] = np.linspace(0, 1, 21)
    counts, _ = np.histogram(values, edges)
    return {
        "name": "difference",
        "title": "Difference of the images that were compared",
        "edges": edges.round(2).tolist(),
        "counts": counts.tolist(),
    }


def _rows(both: Both, profiles: Sequence[Profile]) -> list[tuple[str, Any, Any]]:
    first, second = (each.overall for each in profiles)
    rows: list[tuple[str, Any, Any]] = [
        ("images", first.images, second.images),
        ("rejected", first.rejected, second.rejected),
        ("images that the other run has not", *both.alone),
        ("instances", first.instances, second.instances),
    ]
    names = sorted(
        {*first.classes, *second.classes}, key=lambda name: -first.classes[name] - second.classes[name]
    )
    return rows + [(f"instances of {name}", first.classes[name], second.classes[name]) for name in names]


def _counted(both: Both, shown: int) -> str:
    alone = sum(both.alone)
    return (
        f"{len(both.candidates):,} of {both.common:,} images that both runs have were compared, "
        f"{shown:,} are shown" + (f"; {alone:,} images are in one run alone" if alone else "")
    )
