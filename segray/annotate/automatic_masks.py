"""SAM without prompts: a grid of points, and which of the masks are kept.

As in Kirillov et al. 2023, Segment Anything, https://arxiv.org/abs/2304.02643, appendix B, and in their
`SamAutomaticMaskGenerator`: masks above a predicted IoU, stable under a change of the threshold, and without
duplicates by NMS of their boxes. One crop, the whole image; holes and specks stay.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from segray.annotate.settings import SamSettings
from segray.masks.grids import GridFrame
from segray.masks.rle import runs_of

THRESHOLD = 0.0
"""Logits above it are the mask."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mask that is above both thresholds."""

    score: float
    """Predicted IoU."""
    box: tuple[int, int, int, int]
    """First column, first row, last column, last row of the mask, inclusive."""
    runs: NDArray[np.int64]
    """See `rle.runs_of`."""


def point_grid(side: int, height: int, width: int) -> Tensor:
    """Return side * side points, row by row, float32 (n, 2): x and y in pixels of the image."""
    middle = (torch.arange(side) + 0.5) / side
    rows, cols = torch.meshgrid(middle * height, middle * width, indexing="ij")
    return torch.stack([cols, rows], -1).reshape(-1, 2)


def candidates(logits: Tensor, scores: Tensor, frame: GridFrame, settings: SamSettings) -> list[Candidate]:
    """Return the masks that are good and stable enough.

    logits: float32 (n, masks, grid, grid); scores: predicted IoU, float32 (n, masks).
    """
    good = scores > settings.predicted_iou
    pairs = zip(logits[good].cpu().numpy(), scores[good].tolist(), strict=True)
    found = (_candidate(grid, score, frame, settings) for grid, score in pairs)
    return [each for each in found if each is not None]


def _candidate(
    grid: NDArray[np.float32], score: float, frame: GridFrame, settings: SamSettings
) -> Candidate | None:
    window = frame.window(grid, THRESHOLD - settings.stability_offset)
    if window is None or not stability(window.values, settings.stability_offset) > settings.stability:
        return None
    crop = window.values > THRESHOLD
    rows, cols = np.flatnonzero(crop.any(1)), np.flatnonzero(crop.any(0))
    if not len(rows):
        return None
    top, left = window.row_start, window.col_start
    box = int(left + cols[0]), int(top + rows[0]), int(left + cols[-1]), int(top + rows[-1])
    return Candidate(score, box, runs_of(crop, top, left, frame.height))


def stability(logits: NDArray[np.float32], offset: float) -> float:
    """Return the stability score: IoU of the masks at a threshold raised and lowered by `offset`; 0 for none.

    The one lies in the other, so that is the ratio of their areas.
    """
    larger = np.count_nonzero(logits > THRESHOLD - offset)
    return np.count_nonzero(logits > THRESHOLD + offset) / larger if larger else 0.0


def without_duplicates(found: list[Candidate], most_iou: float) -> list[Candidate]:
    """Return the candidates that NMS of their boxes keeps, the best first."""
    if not found:
        return []
    boxes = torch.tensor([each.box for each in found], dtype=torch.float32)
    kept = nms(boxes, torch.tensor([each.score for each in found]), most_iou)
    return [found[index] for index in kept.tolist()]
