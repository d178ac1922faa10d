"""Whether two programs found the same: to the last bits in one precision, mostly in two."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from jobs.benchmarks.commands import Instances
from jobs.benchmarks.measure import check

SCORES, BOXES = 1e-4, 0.05
"""Largest differences in fp32: of a score; of a box, in pixels (1e-4 of a picture's side is about 0.1)."""
MASKS = 0.99
"""Least IoU of two masks in fp32: a pixel at the threshold may fall on either side."""
MATCH = 0.5
"""Least IoU of two masks that are one object, in two precisions."""


def check_same(
    ours: Instances, theirs: Instances, threshold: float, what: str, scores: float = SCORES
) -> None:
    """In one precision: the same instances. Only those within `scores` of the threshold may be alone."""
    check(ours.keys() == theirs.keys(), f"{what}: other pictures")
    for name in ours:
        first, second = ours[name], theirs[name]
        overlap = _overlaps(first, second)
        for rows, best in ((first, overlap.max(1, initial=0)), (second, overlap.max(0, initial=0))):
            sure = [row["score"] > threshold + scores for row in rows]
            alone = int((best[sure] < MASKS).sum())
            check(not alone, f"{what}: {alone} of {len(rows)} instances of {name} have no partner")
        for one, other in zip(*np.nonzero(overlap >= MASKS), strict=True):
            a, b = first[one], second[other]
            close = np.abs(np.subtract(a["box"], b["box"])).max() < BOXES
            check(abs(a["score"] - b["score"]) < scores and close, f"{what}: other score or box in {name}")


def check_alike(ours: Instances, theirs: Instances, least: float, what: str) -> float:
    """In two precisions: the share of instances that have a partner; it must be at least `least`."""
    partners = total = 0
    for name in ours:
        overlap = _overlaps(ours[name], theirs[name])
        partners += int(
            (overlap.max(1, initial=0) >= MATCH).sum() + (overlap.max(0, initial=0) >= MATCH).sum()
        )
        total += sum(overlap.shape)
    share = partners / max(total, 1)
    check(share >= least, f"{what}: only {share:.0%} of the instances have a partner")
    return share


def check_as_many(ours: Instances, theirs: Instances, what: str) -> None:
    """In two precisions, where random weights leave nothing else to compare: half to twice as many."""
    first, second = (sum(map(len, found.values())) for found in (ours, theirs))
    check(first <= 2 * second and second <= 2 * first, f"{what}: {first} instances against {second}")


def _overlaps(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> np.ndarray:
    """IoU of the masks, (n, m); 0 where the categories differ or a mask is empty."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    runs = [[{"size": row["size"], "counts": row["counts"]} for row in rows] for rows in (first, second)]
    kinds = [np.array([row["category_id"] for row in rows]) for rows in (first, second)]
    crowd = [0] * len(second)
    overlap: np.ndarray = np.nan_to_num(coco.iou(*runs, crowd)) * (kinds[0][:, None] == kinds[1])
    return overlap
