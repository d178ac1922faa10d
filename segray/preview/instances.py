"""Pages of an output of annotate: pictures with outlines, filters, figures, rejects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from pyproj.exceptions import ProjError

from segray.errors import ItemError
from segray.preview.classes import coloured
from segray.preview.figures import classes_of, figures_of
from segray.preview.folder import PageFolder
from segray.preview.ledger import (
    Ledger,
    address_of,
    batches_of,
    instance_files_of,
    offer_instances,
    read_ledger,
    rows_of,
)
from segray.preview.outlines import rings_of
from segray.preview.pictures import THUMBNAIL, Picture, PictureReader, jpeg, smaller
from segray.preview.runs import Run
from segray.preview.sample import Sampler, key_of
from segray.preview.settings import PreviewSettings
from segray.scenes.crs import through, transformer
from segray.scenes.scene import Scene, scene_from
from segray.schema import CRS84
from segray.sources.item import Source

DRAWN = 4_000
"""Maximum number of instances drawn of one image, by a hash of their ids: a scene may have millions."""
STEPS = 20
"""Bins of scores by which the page filters: 0.05 each."""
PERSON = STEPS
"""Bin of instances without a score."""
_COLUMNS = ("image_id", "category", "score", "area", "segmentation")
_MAY = ("instance_id",)


@dataclass
class Shown:
    """The instances of one image that is shown."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Those that are drawn."""
    number: int = 0
    """All of them."""
    total: float = 0.0
    scored: int = 0
    bins: dict[tuple[str, int], int] = field(default_factory=dict)
    """(class, bin of the score) -> instances."""

    def add(self, row: dict[str, Any]) -> None:
        """Count an instance; keep it if it is drawn."""
        score = row["score"] = row["score"] if row["score"] is not None and isfinite(row["score"]) else None
        place = PERSON if score is None else min(int(score * STEPS + 1e-6), STEPS - 1)
        key = row["category"] or "", place
        self.bins[key] = self.bins.get(key, 0) + 1
        self.number += 1
        if score is not None:
            self.total, self.scored = self.total + score, self.scored + 1
        self.rows.append(row)
        if len(self.rows) >= 2 * DRAWN:
            self.cut()

    def cut(self) -> None:
        """Keep at most DRAWN rows; the same whatever the order in which they came."""
        if len(self.rows) > DRAWN:
            self.rows = sorted(self.rows, key=lambda row: key_of(row.get("instance_id") or ""))[:DRAWN]

    @property
    def sureness(self) -> float | None:
        """Return the mean score; None without a score."""
        return round(self.total / self.scored, 4) if self.scored else None


def instance_pages(runs: Sequence[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages of an output of annotate; return lines for the summary.

    Raises SettingsError where the tables cannot be read, NothingToDoError where no image is annotated.
    """
    (run,) = runs
    sampler = Sampler(settings.images)
    ledger = read_ledger(run, sampler)
    files = instance_files_of(run)
    offer_instances(run, files, sampler)
    profile, histograms = figures_of(run)
    reasons = sampler.chosen()
    shown = instances_of(run, files, list(reasons))
    classes = with_nameless(classes_of(profile), [shown])
    images, lost = draw(rows_of(run, ledger, reasons), [shown], list(classes), settings, folder)
    for entry in images:
        entry["why"] = reasons[entry["id"]]
    folder.put(
        "page",
        page={"kind": "instances", "runs": [run.about()], "facts": facts(ledger, profile.overall.instances)},
        classes=coloured(list(classes), classes),
        images=images,
        figures=histograms,
        rejects=rejects_of(ledger),
    )
    return summary(ledger, images, lost)


def with_nameless(classes: Mapping[str, int], sides: Sequence[dict[str, Shown]]) -> dict[str, int]:
    """Return the classes, and '' where an instance that is shown has none."""
    bare = any(not name for side in sides for shown in side.values() for name, _ in shown.bins)
    return {**classes, "": classes.get("", 0)} if bare else dict(classes)


def instances_of(run: Run, files: Sequence[Source], ids: Sequence[str]) -> dict[str, Shown]:
    """Return the instances of these images."""
    shown = {image_id: Shown() for image_id in ids}
    for batch in batches_of(run, files, _COLUMNS, _MAY, ids):
        for row in batch.to_pylist():
            shown[row["image_id"]].add(row)
    for each in shown.values():
        each.cut()
    return shown


def draw(
    rows: Sequence[dict[str, Any]],
    sides: Sequence[dict[str, Shown]],
    classes: Sequence[str],
    settings: PreviewSettings,
    folder: PageFolder,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write pictures and outlines of one run, or two; return entries and a line for each lost picture."""
    place = {row["image_id"]: number for number, row in enumerate(rows)}
    number_of = {name: number for number, name in enumerate(classes)}
    entries: list[dict[str, Any]] = [{} for _ in rows]
    lost = []
    with PictureReader(settings.side, settings.max_pixels, settings.storage) as reader:
        for row, picture in reader.read(rows):
            number = place[row["image_id"]]
            entry = entry_of(row, picture, number, folder)
            if entry["error"]:
                lost.append(f"{address_of(row)}: {entry['error']}")
            for side, shown in zip(("", "2"), sides, strict=False):
                found = shown[row["image_id"]]
                drawn = _outlined(found.rows, row, entry, number_of)
                folder.put(f"images{side}/{number}", **{f"image{side}/{number}": drawn})
                entry |= _counts(found, number_of, side, entry)
            entries[number] = entry
    return entries, lost


def entry_of(
    row: dict[str, Any], picture: Picture | ItemError, number: int, folder: PageFolder
) -> dict[str, Any]:
    """Write the picture of an image; return what the page knows of the image from the start."""
    address = address_of(row)
    entry: dict[str, Any] = {
        "id": row["image_id"],
        "address": address,
        "height": row["height"],
        "width": row["width"],
        "scene": row.get("scene") is not None and bool(row.get("crs")),
        "error": None,
    }
    if entry["scene"]:
        entry["corners"] = corners_of(scene_from(row["scene"]))
    if isinstance(picture, ItemError):
        less = max(1.0, max(row["height"], row["width"]) / 1024)
        size = max(1, round(row["height"] / less)), max(1, round(row["width"] / less))
        return entry | {"error": f"{picture.error_type}: {picture.reason}", "size": list(size)}
    entry["size"] = list(picture.pixels.shape[:2])
    entry["picture"] = folder.picture(f"{number}.jpg", jpeg(picture.pixels))
    small = smaller(picture.pixels, THUMBNAIL)
    entry["thumbnail"] = entry["picture"]
    if small.shape != picture.pixels.shape:
        entry["thumbnail"] = folder.picture(f"{number}.small.jpg", jpeg(small))
    notes = [
        ("the file has changed since the run", picture.changed),
        ("no longer listed", row.get("vanished")),
    ]
    if known := [words for words, holds in notes if holds]:
        entry["note"] = "; ".join(known)
    return entry


def corners_of(scene: Scene) -> list[list[list[float]]] | None:
    """Return longitude and latitude of the upper, then the lower two corners; None where PROJ knows none."""
    if scene.crs is None or scene.transform is None:
        return None
    ends = np.array([(0, 0), (scene.width, 0), (0, scene.height), (scene.width, scene.height)], float)
    a, b, c, d, e, f = scene.transform
    placed = np.stack([ends @ (a, b) + c, ends @ (d, e) + f], axis=1)
    try:
        degrees = through(transformer(scene.crs, CRS84), placed)
    except ProjError:
        return None
    return degrees.round(7).reshape(2, 2, 2).tolist() if np.isfinite(degrees).all() else None


def _counts(found: Shown, number_of: dict[str, int], side: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the list of pictures filters and sorts by; of two runs, the bins of both."""
    bins = [value for (name, place), count in found.bins.items() for value in (number_of[name], place, count)]
    counted = {f"instances{side}": found.number, "bins": entry.get("bins", []) + bins}
    return counted if side else counted | {"sureness": found.sureness}


def _outlined(
    rows: Sequence[dict[str, Any]], image: dict[str, Any], entry: dict[str, Any], number_of: dict[str, int]
) -> dict[str, Any]:
    """Return the instances as columns, the largest first, so that small ones are drawn on top."""
    ordered = sorted(rows, key=lambda row: (-(row["area"] or 0), row.get("instance_id") or ""))
    texts = [(row["segmentation"] or {}).get("counts") or "" for row in ordered]
    scale = entry["size"][0] / image["height"]
    rings = rings_of(texts, image["height"], image["width"], scale)
    good = [(row, ring) for row, ring in zip(ordered, rings, strict=True) if ring]
    start = f"{image['image_id']}-"
    marks = {"mark": [row["mark"] for row, _ in good]} if good and "mark" in good[0][0] else {}
    return {
        **marks,
        "class": [number_of[row["category"] or ""] for row, _ in good],
        "score": [None if row["score"] is None else round(row["score"], 3) for row, _ in good],
        "area": [row["area"] for row, _ in good],
        "id": [(row.get("instance_id") or "").removeprefix(start) for row, _ in good],
        "rings": [ring for _, ring in good],
    }


def facts(ledger: Ledger, instances: int | None) -> list[list[Any]]:
    """Return the figures at the head of the page: [number, of what]."""
    found: list[list[Any]] = [[ledger.images, "images"]]
    if instances is not None:
        found.append([instances, "instances"])
    return [*found, [ledger.rejects, "rejected"]]


def rejects_of(ledger: Ledger) -> dict[str, Any]:
    """Return what the page says of rejects."""
    return {"types": dict(ledger.rejects_by_type.most_common()), "rows": ledger.rejected}


def summary(ledger: Ledger, images: Sequence[dict[str, Any]], lost: Sequence[str]) -> list[str]:
    """Return lines for the summary of the command."""
    lines = [f"{len(images):,} of {ledger.images:,} images are shown; {ledger.rejects:,} rejected"]
    lines += [f"{len(lost):,} pictures cannot be read:"] * bool(lost)
    lines += [f"  {line}" for line in lost[:10]]
    lines += [f"  and {len(lost) - 10:,} more, see the page"] * (len(lost) > 10)
    return lines
