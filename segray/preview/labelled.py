"""Pages of an output of predict: pictures under their label maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from segray.errors import ItemError
from segray.palette import VOID, palette
from segray.preview.classes import lighter
from segray.preview.figures import figures_of
from segray.preview.folder import PageFolder
from segray.preview.instances import entry_of, facts, rejects_of, summary
from segray.preview.label_maps import LabelMap, MapReader
from segray.preview.ledger import address_of, read_ledger, rows_of
from segray.preview.pictures import PictureReader
from segray.preview.runs import Run, copies_of, notes_on_copies
from segray.preview.sample import Sampler
from segray.preview.settings import PreviewSettings


def labelled_pages(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages of an output of predict; return lines for the summary.

    Raises SettingsError where the tables cannot be read, NothingToDoError where there is no label map.
    """
    (run,) = runs
    sampler = Sampler(settings.images)
    ledger = read_ledger(run, sampler)
    sampler.groups.pop("empty", None)  # no image of predict has instances
    reasons = sampler.chosen()
    rows = rows_of(run, ledger, reasons)
    _, histograms = figures_of(run)
    names = class_names(run)
    images, lost = draw_maps([run], rows, len(names), settings, folder)
    folder.put(
        "page",
        page={
            "kind": "labels",
            "runs": [run.about()],
            "facts": facts(ledger, None),
            "notes": notes_on_copies(runs),
        },
        classes=classes_of_maps(names),
        images=images,
        figures=histograms,
        rejects=rejects_of(ledger),
    )
    return [*summary(ledger, images, lost), *notes_on_copies(runs)]


def class_names(run: Run) -> list[str]:
    """Return the names of the classes, by their value in the maps."""
    found = (run.record.get("identity") or {}).get("classes") or []
    return [str(each) for each in found][:VOID]


def classes_of_maps(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return each class with its value and a colour: the palette's, made lighter; class 0, black there, None.

    The page draws a class without a colour only where it is chosen, for black hides the picture.
    """
    colours = [None, *map(lighter, palette(VOID).tolist()[1:])]
    return [{"name": name, "value": value, "colour": colours[value]} for value, name in enumerate(names)]


def draw_maps(
    runs: Sequence[Run],
    rows: Sequence[dict[str, Any]],
    classes: int,
    settings: PreviewSettings,
    folder: PageFolder,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write pictures and the maps of one run, or of two; return entries and a line for each lost picture.

    Where a run blurred regions of its images, its copies are shown.
    """
    place = {row["image_id"]: number for number, row in enumerate(rows)}
    present, faults = _write_maps(runs, rows, classes, settings, folder)
    entries: list[dict[str, Any]] = [{} for _ in rows]
    lost = []
    copies = copies_of(runs)
    with PictureReader(settings.side, settings.max_pixels, settings.storage, copies) as reader:
        for row, picture in reader.read(rows):
            number = place[row["image_id"]]
            entry = entry_of(row, picture, number, folder) | {"scene": False}
            entry["present"] = sorted(present[number])
            entry["error"] = entry["error"] or faults.get(number)
            if entry["error"]:
                lost.append(f"{address_of(row)}: {entry['error']}")
            entries[number] = entry
    return entries, lost


def _write_maps(
    runs: Sequence[Run],
    rows: Sequence[dict[str, Any]],
    classes: int,
    settings: PreviewSettings,
    folder: PageFolder,
) -> tuple[list[set[int]], dict[int, str]]:
    """Write the map of each row, one at a time; return the classes in each, and why some have no map."""
    present: list[set[int]] = [set() for _ in rows]
    faults = dict[int, str]()
    for side, run in zip(("", "2"), runs, strict=False):
        with MapReader(run, settings.max_pixels) as reader:
            for number, found in enumerate(reader.read(rows)):
                if isinstance(found, ItemError):
                    faults[number] = f"label map: {found.error_type}: {found.reason}"
                    found = LabelMap(np.full((1, 1), VOID, np.uint8))
                shown = found.for_page()
                folder.put(f"images{side}/{number}", **{f"image{side}/{number}": shown})
                present[number] |= {value for value in shown["shares"] if value < classes}
    return present, faults
