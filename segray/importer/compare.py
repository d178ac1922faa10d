"""What a person changed in an image: drawn instances and those of the run, paired one to one."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.export.table import Instance
from segray.masks.types import Rle

SAME = 0.5
"""Least IoU of two masks that are taken for one object where no id says so."""


@dataclass(frozen=True, slots=True)
class Found:
    """One drawn instance, in its image."""

    counts: str
    """COCO compressed run lengths of the whole image."""
    category_id: int
    category: str
    instance_id: str | None
    """What the file says; after `compared` that of the run's instance, None for a new one."""
    crowd: bool | None = None
    """None where the file does not say; after `compared` as the run's instance has it."""


def compared(
    drawn: Sequence[Found],
    rows: Sequence[Instance],
    size: tuple[int, int],
    shown: Sequence[str] | None = None,
) -> tuple[list[Found], Counter[str]]:
    """Return the instances of an image as corrected, and counts of what happened to those of the run.

    size: height, width. shown: run lengths of what the format shows of each row, where that is not its mask;
    a row that comes back as it was shown was not touched, and keeps its own mask. So does one that the format
    did not show at all.
    """
    seen = [row.counts or "" for row in rows] if shown is None else list(shown)
    pairs = _paired(drawn, rows, seen, size)
    tally: Counter[str] = Counter(changed=0, reclassified=0, added=0, removed=0, unchanged=0)
    found = []
    for place, each in enumerate(drawn):
        if place not in pairs:
            tally["added"] += 1
            found.append(replace(each, instance_id=None))
            continue
        row, same = rows[pairs[place]], each.counts == seen[pairs[place]]
        other_class = each.category_id != row.category_id
        tally["unchanged" if same and not other_class else "changed"] += 1
        tally["reclassified"] += other_class
        counts = (row.counts or "") if same else each.counts
        crowd = row.iscrowd == 1 if each.crowd is None else each.crowd
        found.append(replace(each, counts=counts, instance_id=row.instance_id, crowd=crowd))
    for place in {*range(len(rows))} - {*pairs.values()}:
        if _is_empty(seen[place], size):
            tally["unchanged"] += 1
            found.append(_as_it_was(rows[place]))
        else:
            tally["removed"] += 1
    return found, tally


def _as_it_was(row: Instance) -> Found:
    return Found(row.counts or "", row.category_id, row.category, row.instance_id, row.iscrowd == 1)


def _is_empty(counts: str, size: tuple[int, int]) -> bool:
    return int(coco_mask.area({"size": list(size), "counts": counts})) == 0


def _paired(
    drawn: Sequence[Found], rows: Sequence[Instance], seen: Sequence[str], size: tuple[int, int]
) -> dict[int, int]:
    """Return drawn -> row, by the ids of the file, then by equal masks, then by IoU, the best first."""
    pairs: dict[int, int] = {}
    steps = (_by_id(drawn, rows), _by_mask(drawn, rows, seen), _by_iou(drawn, seen, size, pairs))
    for step in steps:
        taken = {*pairs.values()}
        for place, row in step:
            if place not in pairs and row not in taken:
                pairs[place] = row
                taken.add(row)
    return pairs


def _by_id(drawn: Sequence[Found], rows: Sequence[Instance]) -> Iterator[tuple[int, int]]:
    """Yield pairs of one id; a copy of an instance has its id as well: an equal mask comes first."""
    places = {row.instance_id: place for place, row in enumerate(rows)}
    named = [
        (each.counts != rows[places[each.instance_id]].counts, place, places[each.instance_id])
        for place, each in enumerate(drawn)
        if each.instance_id in places
    ]
    yield from ((place, row) for _, place, row in sorted(named))


def _by_mask(
    drawn: Sequence[Found], rows: Sequence[Instance], seen: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of equal masks, those of one class first."""
    equal: dict[str, list[int]] = defaultdict(list)
    for row, counts in enumerate(seen):
        equal[counts].append(row)
    found = [(place, row) for place, each in enumerate(drawn) for row in equal.get(each.counts, ())]
    yield from sorted(found, key=lambda pair: drawn[pair[0]].category_id != rows[pair[1]].category_id)


def _by_iou(
    drawn: Sequence[Found], seen: Sequence[str], size: tuple[int, int], pairs: dict[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield pairs by falling IoU, of those that are not in `pairs` when it begins."""
    taken = {*pairs.values()}
    left = [place for place in range(len(drawn)) if place not in pairs]
    right = [row for row in range(len(seen)) if row not in taken]
    if not left or not right:
        return
    masks: list[Rle] = [{"size": [*size], "counts": drawn[place].counts} for place in left]
    others: list[Rle] = [{"size": [*size], "counts": seen[row]} for row in right]
    tree = shapely.STRtree(_boxes(others))
    found = []
    for one, two in tree.query(_boxes(masks), "intersects").T.tolist():
        iou = float(coco_mask.iou([masks[one]], [others[two]], [0])[0, 0])
        if iou >= SAME:
            found.append((-iou, left[one], right[two]))
    yield from ((place, row) for _, place, row in sorted(found))


def _boxes(masks: list[Rle]) -> NDArray[np.object_]:
    x, y, width, height = coco_mask.toBbox(masks).reshape(-1, 4).T
    boxes: NDArray[np.object_] = shapely.box(x, y, x + width, y + height)
    return boxes
