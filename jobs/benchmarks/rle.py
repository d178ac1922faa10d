"""RoI masks to COCO run lengths: segray's encoder against torchvision's paste and pycocotools' encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from jobs.benchmarks.measure import Figure, Options, check, ratios, seconds_a_call, take_turns
from segray.masks.rle import encode_roi_masks

Floats = NDArray[np.float32]
Encode = Callable[[Floats, Floats, int, int], Any]
INSTANCES = 100
PASTED_BYTES = 1 << 30
"""torchvision's arm pastes so many masks at a time as make this size: more are slower, and do not fit."""


@dataclass(frozen=True)
class Case:
    """One image with instances in it."""

    name: str
    height: int
    width: int
    box: tuple[float, float] | float
    """Side of all boxes; or median and 95th percentile of a log-normal side, height and width apart."""
    goal: str


CASES = [
    Case("1 MP, street-like boxes", 800, 1280, (60.0, 300.0), ">= 15"),
    Case("1 MP, 30-px boxes", 800, 1280, 30.0, ">= 100"),
    Case("16 MP, 30-px boxes", 3464, 4618, 30.0, ">= 1000"),
]


def figures(options: Options, encode: Encode = encode_roi_masks) -> Iterator[Figure]:
    """One a case; `--quick` leaves out the large picture, whose paste takes ten seconds."""
    for case in CASES[:2] if options.quick else CASES:
        yield _figure(case, options, encode)


def _figure(case: Case, options: Options, encode: Encode) -> Figure:
    masks, boxes = smooth_masks(INSTANCES), boxes_of(case, INSTANCES)
    arguments = (masks, boxes, case.height, case.width)
    check(encode(*arguments).counts == paste_and_encode(*arguments), f"rle, {case.name}: other run lengths")
    at_least_s = 0.05 if options.quick else 0.5
    theirs, ours = take_turns(
        [
            lambda: seconds_a_call(lambda: paste_and_encode(*arguments), at_least_s),
            lambda: seconds_a_call(lambda: encode(*arguments), at_least_s),
        ],
        options.rounds(5 if case.height * case.width < 4e6 else 3),
    )
    area, slow, fast = (np.median(each) for each in (encode(*arguments).area, theirs, ours))
    return Figure(
        f"RoI masks to RLE / paste + pycocotools: {case.name}",
        case.goal,
        ratios(theirs, ours),
        [
            f"{INSTANCES} masks of 28 x 28 in {case.width} x {case.height} pixels, median area {area:,.0f}; "
            f"{slow * 1e3:,.1f} ms against {fast * 1e3:.2f} ms"
        ],
    )


def paste_and_encode(masks: Floats, boxes: Floats, height: int, width: int) -> list[str]:
    """As torchvision's own code does it, in `RoIHeads` and `references/detection/coco_eval.py`."""
    step = max(1, PASTED_BYTES // (4 * height * width))
    counts: list[str] = []
    for start in range(0, len(masks), step):
        part = torch.from_numpy(masks[start : start + step])[:, None]
        pasted = paste_masks_in_image(part, torch.from_numpy(boxes[start : start + step]), (height, width))
        for mask in (pasted > 0.5).numpy():
            counts += [coco.encode(np.array(mask[0, :, :, None], np.uint8, order="F"))[0]["counts"].decode()]
    return counts


def smooth_masks(n: int) -> Floats:
    """(n, 28, 28) like a network's: smooth, and mostly saturated at 0 and 1."""
    rng = np.random.default_rng(0)
    side = np.linspace(-1, 1, 28, dtype=np.float32)
    disc = 0.9 - np.hypot(side[:, None], side)  # fills about 60 % of its box, as COCO's objects do
    coarse = torch.from_numpy(rng.normal(0, 0.3, (n, 1, 5, 5)).astype(np.float32))
    bumps = interpolate(coarse, size=(28, 28), mode="bicubic")[:, 0].numpy()
    masks: Floats = (1 / (1 + np.exp(-12 * (disc + bumps)))).astype(np.float32)
    return masks


def boxes_of(case: Case, n: int) -> Floats:
    """(n, 4) as x0, y0, x1, y1, anywhere inside the image."""
    rng = np.random.default_rng(1)
    if isinstance(case.box, float):
        sides = np.full((n, 2), case.box)
    else:
        median, high = case.box
        sides = median * np.exp(rng.normal(0, np.log(high / median) / 1.645, (n, 2)))
    size = np.array([case.width, case.height])
    sides = np.clip(sides, 4, 0.9 * size)
    start = rng.uniform(0, 1, (n, 2)) * (size - sides)
    return np.concatenate([start, start + sides], axis=1).astype(np.float32)
