"""Pages of two runs over the same images: those on which they differ most, side by side.

The difference of an image is, for instances, 1 - 2 * (sum of the IoU of matched pairs) / (instances of both):
one minus the panoptic quality of one run as the truth of the other (Kirillov et al., Panoptic Segmentation,
2019, equation 2), pairs of one class matched greedily above IoU 0.5. For label maps it is the share of
pixels with another class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.errors import NothingToDoError, SettingsError
from segray.output.reader import row_batches
from segray.preview.ledger import Ledger
from segray.preview.runs import Run
from segray.preview.sample import Sampler, keys_of

MATCHED = 0.5
"""Two instances of a higher IoU are the same."""
_FACTOR = 5
"""So many times the images that are shown are compared, at least LEAST; all are counted in the tables."""
LEAST = 1_000


@dataclass
class Both:
    """The annotated images of two runs, by image_id."""

    ledgers: tuple[Ledger, Ledger]
    common: int = 0
    alone: tuple[int, int] = (0, 0)
    """Images that only the first, only the second run has."""
    candidates: list[str] = field(default_factory=list)
    """Images that are compared."""


def compared(runs: Sequence[Run], ledgers: Sequence[Ledger], images: int) -> Both:
    """Choose which images are compared: half by the difference of their numbers of instances, half by hash.

    Held in memory: about 500 bytes an image. Raises SettingsError where the runs share no image.
    """
    first, second = (_numbers(run, ledger) for run, ledger in zip(runs, ledgers, strict=True))
    ids, left, right = np.intersect1d(first[0], second[0], assume_unique=True, return_indices=True)
    if not len(ids):
        raise SettingsError(
            "run: the two runs share no image; images are the same where address and version of the file are"
        )
    names = [each.decode() for each in ids.tolist()]
    numbers = first[1][left].astype(float), second[1][right].astype(float)
    apart = np.abs(numbers[0] - numbers[1]) / np.maximum(numbers[0] + numbers[1], 1)
    sampler = Sampler(max(LEAST, _FACTOR * images))
    keys = keys_of(names)
    sampler.offer("any", "any", names, keys)
    sampler.offer("numbers", "numbers", names, keys - apart)  # equal ones by their hash
    both = Both((ledgers[0], ledgers[1]), len(ids), (len(first[0]) - len(ids), len(second[0]) - len(ids)))
    both.candidates = list(sampler.chosen())
    return both


def _numbers(run: Run, ledger: Ledger) -> tuple[NDArray[np.bytes_], NDArray[np.int32]]:
    """Return ids, (images,) bytes, and numbers of instances, int32 (images,), of the annotated images."""
    ids, numbers = [np.zeros(0, "S32")], [np.zeros(0, np.int32)]
    for file in ledger.files:
        for batch in row_batches(file, ("image_id", "status", "instances"), (), run.storage):
            good = np.array(batch["status"].to_pylist(), object) != "rejected"
            ids.append(np.array([each.encode() for each in batch["image_id"].to_pylist()], np.bytes_)[good])
            numbers.append(
                batch["instances"].fill_null(0).to_numpy(zero_copy_only=False)[good].astype(np.int32)
            )
    if not sum(map(len, ids)):
        raise NothingToDoError(f"{run.shown}: no annotated image ({ledger.rejects:,} rejected)")
    found, places = np.unique(np.concatenate(ids), return_index=True)
    return found, np.concatenate(numbers)[places]


def most_different(differences: Mapping[str, float], most: int) -> dict[str, float]:
    """Return the images of the largest differences, the largest first; of equal ones by id."""
    ordered = sorted(differences, key=lambda each: (-differences[each], each))[:most]
    return {image_id: differences[image_id] for image_id in ordered}


def matches(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]
) -> list[tuple[int, int, float]]:
    """Return (index in the first, index in the second, IoU) of the instances that are the same.

    Pairs of one class and IoU above MATCHED, the highest IoU first; each instance is in one pair at most.
    """
    found: list[tuple[int, int, float]] = []
    for name in {row["category"] for row in first} & {row["category"] for row in second}:
        ours, theirs = (
            [at for at, row in enumerate(rows) if row["category"] == name] for rows in (first, second)
        )
        overlaps = coco_mask.iou(
            [_rle(first[at]) for at in ours], [_rle(second[at]) for at in theirs], [0] * len(theirs)
        )
        pairs = np.argwhere(overlaps > MATCHED)
        values = overlaps[pairs[:, 0], pairs[:, 1]]
        used: tuple[set[int], set[int]] = set(), set()
        for at in np.lexsort((pairs[:, 1], pairs[:, 0], -values)).tolist():
            one, other = pairs[at].tolist()
            if one not in used[0] and other not in used[1]:
                used[0].add(one)
                used[1].add(other)
                found.append((ours[one], theirs[other], float(values[at])))
    return found


def difference(pairs: Sequence[tuple[int, int, float]], first: int, second: int) -> float:
    """Return the difference of an image with so many instances in each run; 0 where neither has any."""
    return 1.0 - 2 * sum(iou for *_, iou in pairs) / (first + second) if first + second else 0.0


def _rle(row: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(row["segmentation"]["size"]), "counts": row["segmentation"]["counts"].encode()}


def apart(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the share of pixels with another class in two maps; 1 for maps of different sizes."""
    return float((first != second).mean()) if first.shape == second.shape else 1.0


def tables_of(runs: Sequence[Run], rows: Sequence[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Return a table of the page: a figure of both runs, and their difference, a row."""
    columns = [
        ["what", ""],
        ["first", runs[0].name],
        ["second", runs[1].name],
        ["more", "difference"],
    ]
    body = []
    for what, one, other in rows:
        known = isinstance(one, int | float) and isinstance(other, int | float)
        body.append({"what": what, "first": one, "second": other, "more": other - one if known else None})
    return {"title": "Both runs", "columns": columns, "rows": body}


def settings_apart(runs: Sequence[Run]) -> dict[str, Any]:
    """Return a table of the settings and versions in which the runs differ."""
    plain = [
        _flat({name: run.record.get(name) or {} for name in ("identity", "settings", "versions")})
        for run in runs
    ]
    names = sorted({*plain[0], *plain[1]})
    rows = [
        {"what": name, "first": str(plain[0].get(name, "-")), "second": str(plain[1].get(name, "-"))}
        for name in names
        if plain[0].get(name) != plain[1].get(name)
    ]
    columns = [["what", "setting"], ["first", runs[0].name], ["second", runs[1].name]]
    return {"title": "Settings that differ", "columns": columns, "rows": rows}


def _flat(plain: dict[str, Any], start: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, dict) else {f"{start}{name}": value}
    return found
