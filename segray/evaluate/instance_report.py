"""Matches of all images -> what metrics.json says of instances: figures, intervals, groups, curves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.evaluate.compare_pairs import Problem
from segray.evaluate.drawn_units import Units
from segray.evaluate.matching import CROWD, Bools, Kind, Matches
from segray.evaluate.precision_recall import (
    Category,
    InstanceFigures,
    Resampling,
    figures,
    image_hash,
    ranked,
)
from segray.evaluate.report import Outcome, table
from segray.evaluate.settings import EvaluateSettings
from segray.evaluate.spatial_blocks import BY_NUMBER

LEVEL = 0.95
_CURVES = {"iou50": 0, "iou75": 5}


@dataclass(frozen=True)
class Compared:
    """All that was matched, of images with an index."""

    matches: Matches
    kept: Bools
    """(images,) which are in the scores."""
    names: Sequence[str]
    """Of each image in the labels."""
    predicted: Sequence[str]
    """`image_id` of each image in an output of annotate; empty for COCO results."""
    groups: Sequence[str] | None
    """Of each image; None unless asked for."""
    categories: Mapping[int, str]
    unknown: Counter[str]
    """Predictions of categories that labels do not have."""
    problems: Sequence[Problem]
    extra: int
    digests: Sequence[str]
    """Of truth and predictions."""
    notes: Sequence[str]


@dataclass(frozen=True)
class Scored:
    """Figures of some images."""

    categories: dict[Kind, dict[int, Category]]
    figures: dict[Kind, InstanceFigures]
    intervals: dict[Kind, tuple[dict[str, list[float]], dict[int, dict[str, list[float]]]]]
    """Overall, and of each category; empty without draws."""
    units: Units
    """What was drawn."""

    @classmethod
    def of(cls, matches: Matches, units: Units, settings: EvaluateSettings) -> "Scored":
        """Compute them."""
        detections = settings.detections
        resampling = Resampling(units.hashes, settings.draws, settings.seed)
        categories = {
            kind: dict(ranked(matches, kind, detections, (units.found[kind], units.truth)))
            for kind in matches.states
        }
        found = {kind: figures(each.items(), detections) for kind, each in categories.items()}
        bounds = {kind: resampling.intervals(each, LEVEL) for kind, each in categories.items()}
        known = resampling.draws and len(resampling.hashes) > 1
        return cls(categories, found, bounds if known else {}, units)


def outcome_of(settings: EvaluateSettings, compared: Compared) -> Outcome:
    """Return the figures of the images that were compared."""
    matches = compared.matches if compared.kept.all() else compared.matches.of_images(compared.kept)
    hashes = np.array([image_hash(name) for name in compared.names], np.uint64)
    side = settings.interval_block or BY_NUMBER
    scored = Scored.of(matches, Units.of(matches, hashes, int(compared.kept.sum()), side), settings)
    crowds = (matches.truth_sizes & CROWD) > 0
    labels = Counter(matches.truth_category[~crowds].tolist())
    predictions = Counter(matches.category.tolist())
    notes = [*compared.notes, *_interval_lines(scored, settings)]
    groups = _groups(compared, matches, settings, hashes)
    notes += table([_short(group) for group in groups])
    if compared.unknown:
        most = ", ".join(f"{name} {number:,}" for name, number in compared.unknown.most_common(5))
        number = compared.unknown.total()
        notes.append(f"{number:,} predicted instances of categories that labels do not have: {most}")
    uncut = _uncut(matches, scored, settings.detections, notes)
    return Outcome(
        task="instances",
        compared=int(compared.kept.sum()),
        problems=compared.problems,
        extra=compared.extra,
        metrics={kind: each.overall for kind, each in scored.figures.items()},
        classes=_class_rows(compared.categories, scored, labels, predictions),
        digests=dict(zip(("labels", "predictions"), compared.digests, strict=True)),
        more={
            "instances": {
                "labels": labels.total(),
                "crowds": int(crowds.sum()),
                "predictions": len(matches.score),
                "unknown_categories": dict(compared.unknown),
            },
            **uncut,
            **_intervals(compared.categories, scored, settings),
            **({"groups": groups} if groups else {}),
            "thresholds": _thresholds(compared.categories, scored),
            "worst": _worst(compared, scored, settings.worst),
            "curves": _curves(compared.categories, scored),
        },
        notes=notes,
    )


def _class_rows(
    names: Mapping[int, str], scored: Scored, labels: Counter[int], predictions: Counter[int]
) -> list[dict[str, Any]]:
    """Return one row for each category of the labels or predictions."""
    rows = []
    for number, name in names.items():
        row: dict[str, Any] = {"class": name, "id": number}
        for kind, its in scored.figures.items():
            if number in its.per_category:
                row |= {f"{kind}_{each}": its.per_category[number][each] for each in ("ap", "ap50", "ar")}
        if len(row) > 2:
            rows.append(row | {"labels": labels[number], "predictions": predictions[number]})
    return rows


def _interval_lines(scored: Scored, settings: EvaluateSettings) -> list[str]:
    """Return a line for each kind, and one where that means little."""
    lines, units = [], scored.units
    drawn = f"{settings.draws:,} draws of {units.number:,} {units.name}"
    for kind, (overall, _) in scored.intervals.items():
        known = {name: each for name, each in overall.items() if not np.isnan(each[0])}
        bounds = [f"{name} {low:.4f} to {high:.4f}" for name, (low, high) in known.items()]
        if bounds:
            lines.append(f"{kind}, {LEVEL:.0%} intervals: {', '.join(bounds)} ({drawn})")
    return [*lines, *([units.warning] if lines and units.warning else [])]


def _intervals(
    names: Mapping[int, str], scored: Scored, settings: EvaluateSettings
) -> dict[str, dict[str, Any]]:
    """Return low and high of the figures, and of those of each class."""
    if not scored.intervals:
        return {}
    units = scored.units
    about: dict[str, Any] = {"level": LEVEL, "draws": settings.draws, "seed": settings.seed}
    about |= {"unit": units.name, "units": units.number}
    about |= {"warning": units.warning} if units.warning else {}
    overall = {str(kind): found for kind, (found, _) in scored.intervals.items()}
    classes = [
        {"class": name, "id": number}
        | {kind: found[number] for kind, (_, found) in scored.intervals.items() if number in found}
        for number, name in names.items()
    ]
    return {"intervals": {**about, **overall, "classes": [row for row in classes if len(row) > 2]}}


def _groups(
    compared: Compared, matches: Matches, settings: EvaluateSettings, hashes: NDArray[np.uint64]
) -> list[dict[str, Any]]:
    """Return the figures of each group of images, by its name."""
    if compared.groups is None:
        return []
    values, rows = np.array(compared.groups), []
    for value in np.unique(values[compared.kept]).tolist():
        here = (values == value) & compared.kept
        own, images = matches.of_images(here), int(here.sum())
        units = Units.of(own, hashes, images, settings.interval_block or BY_NUMBER)
        found = Scored.of(own, units, settings)
        row: dict[str, Any] = {"group": value, "images": images}
        row |= {kind: each.overall for kind, each in found.figures.items()}
        bounds = {str(kind): overall for kind, (overall, _) in found.intervals.items()}
        rows.append(row | ({"intervals": bounds} if bounds else {}))
    return rows


def _short(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group as a row to print."""
    kind = "segm" if "segm" in group else "bbox"
    low, high = group.get("intervals", {}).get(kind, {}).get("ap", (float("nan"),) * 2)
    row = {"group": group["group"] or "-", "images": group["images"], f"{kind}_ap": group[kind]["ap"]}
    return row | {"from": low, "to": high, f"{kind}_ap50": group[kind]["ap50"]}


def _thresholds(names: Mapping[int, str], scored: Scored) -> list[dict[str, Any]]:
    """Return for each class the score from which on its F1 at IoU 0.5 is highest."""
    rows = [
        {"class": name, "id": number}
        | {kind: asdict(each[number].best_f1()) for kind, each in scored.categories.items() if number in each}
        for number, name in names.items()
    ]
    return [row for row in rows if len(row) > 2]


def _worst(compared: Compared, scored: Scored, number: int) -> list[dict[str, Any]]:
    """Return the images with the most errors at IoU 0.5, above the best threshold of each class."""
    kind, images = next(iter(scored.categories)), len(compared.names)
    false, missed = np.zeros(images, np.int64), np.zeros(images, np.int64)
    for category in scored.categories[kind].values():
        errors = category.errors(category.best_f1().score, images)
        false, missed = false + errors[0], missed + errors[1]
    order = np.argsort(-(false + missed), kind="stable")[:number]
    return [
        {
            "name": compared.names[index],
            **({"image_id": compared.predicted[index]} if compared.predicted[index] else {}),
            "false_positives": int(false[index]),
            "false_negatives": int(missed[index]),
        }
        for index in order.tolist()
        if false[index] + missed[index]
    ]


def _curves(names: Mapping[int, str], scored: Scored) -> dict[str, list[dict[str, Any]]]:
    """Return precision and score at recall 0, 0.01 … 1 of each class with truth, by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, categories in scored.categories.items():
        found[kind] = []
        for number, category in categories.items():
            if category.truth(0)[0]:
                row: dict[str, Any] = {"class": names[number], "id": number}
                for name, iou in _CURVES.items():
                    points = zip(("precision", "scores"), category.curve(iou), strict=True)
                    row[name] = {each: np.round(values, 5).tolist() for each, values in points}
                found[kind].append(row)
    return found


def _uncut(matches: Matches, scored: Scored, limit: int, notes: list[str]) -> dict[str, Any]:
    """Return the AP if all predictions counted, where some do not; adds a line to `notes`."""
    over = matches.rank >= limit
    if not over.any():
        return {}
    images, most = len(np.unique(matches.image[over])), int(matches.rank.max()) + 1
    every = {kind: figures(ranked(matches, kind, most), most).overall["ap"] for kind in matches.states}
    few = {kind: scored.figures[kind].overall["ap"] for kind in every}
    compared = ", ".join(f"{kind} AP {few[kind]:.3f} so, {ap:.3f} with all" for kind, ap in every.items())
    notes.append(
        f"{images:,} images have more than {limit} predictions of a category, up to {most:,}: only the "
        f"{limit} with the highest scores count ({compared}; --detections {most} counts all)"
    )
    return {"cut": {"images": images, "most": most, "ap_with_all": every}}
