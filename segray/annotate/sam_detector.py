"""SAM on its device: objects in an image (`SamDetector`), or masks of given boxes (`SamMasks`)."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.annotate.automatic_masks import THRESHOLD, candidates, point_grid, without_duplicates
from segray.annotate.detector import Detections
from segray.annotate.settings import SamSettings
from segray.masks.grids import GridFrame
from segray.masks.rle import EncodedMasks, encode_runs, runs_of
from segray.models.device import Precision, arithmetic
from segray.models.sam import SegmentAnything

PROMPTS = 32
"""Prompts a call: each has a copy of the image's embedding, 4 MB in float32, and of wider ones."""
_NOTHING = np.zeros(0, np.int64)


class _Sam:
    """A SegmentAnything on its device."""

    def __init__(self, model: SegmentAnything, device: torch.device, precision: Precision) -> None:
        self.model = copy.deepcopy(model).eval().to(device)
        self.device, self.precision = device, precision

    def answers(
        self, image: NDArray[np.uint8], points: Tensor | None = None, boxes: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (logits, predicted IoUs), see `SegmentAnything.masks`, of an image (height, width, 3) uint8,
        for some prompts at a time; to be called in `arithmetic`. Raises ValueError for a too narrow image.
        """
        height, width = image.shape[:2]
        if min(self.model.resized(height, width)) < 1:
            raise ValueError(f"{width} x {height} pixels: too narrow for SAM")
        name, prompts = ("points", points) if points is not None else ("boxes", boxes)
        assert prompts is not None
        embedding = self.model.embed(torch.tensor(image).to(self.device).permute(2, 0, 1))
        for some in torch.split(prompts, PROMPTS):
            yield self.model.masks(embedding, (height, width), **{name: some})


class SamDetector(_Sam):
    """Finds objects without prompts, see `automatic_masks`."""

    def __init__(
        self,
        model: SegmentAnything,
        device: torch.device,
        precision: Precision,
        score_threshold: float,
        settings: SamSettings,
    ) -> None:
        """Store the model and its thresholds; score_threshold: of the predicted IoU, too."""
        super().__init__(model, device, precision)
        self.score_threshold, self.settings = score_threshold, settings

    def batch_key(self, height: int, width: int) -> None:
        """Return that any images may share a batch: they are processed one by one."""

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return the objects of each image (height, width, 3) uint8, of label 1.

        Raises ValueError for an image that is too narrow.
        """
        with arithmetic(self.device, self.precision):
            return [self._detected(image) for image in images]

    def _detected(self, image: NDArray[np.uint8]) -> Detections:
        height, width = image.shape[:2]
        found, frame = [], None
        points = point_grid(self.settings.points_per_side, height, width)
        for logits, scores in self.answers(image, points=points):
            frame = frame or self.model.frame(height, width, logits.shape[-1])
            found += candidates(logits, scores, frame, self.settings)
        kept = without_duplicates(
            [each for each in found if each.score > self.score_threshold], self.settings.nms_iou
        )
        edges = np.array([each.box for each in kept], np.float32).reshape(-1, 4)
        return Detections(
            boxes=edges + np.array([0, 0, 1, 1], np.float32),
            scores=np.array([each.score for each in kept], np.float32),
            labels=np.ones(len(kept), np.int64),
            masks=encode_runs([each.runs for each in kept], height, width),
            frame="image",
        )


class SamMasks(_Sam):
    """Turns boxes into masks."""

    def masks(self, image: NDArray[np.uint8], boxes: NDArray[np.float32]) -> EncodedMasks:
        """Return a mask for each box, float32 (n, 4) as x0, y0, x1, y1, of an image (height, width, 3) uint8.

        Raises ValueError for an image that is too narrow.
        """
        height, width = image.shape[:2]
        if not len(boxes):
            return encode_runs([], height, width)
        runs, frame = [], None
        with arithmetic(self.device, self.precision):
            for logits, _ in self.answers(image, boxes=torch.from_numpy(boxes)):
                frame = frame or self.model.frame(height, width, logits.shape[-1])
                runs += [_runs(grid, frame) for grid in logits[:, 0].cpu().numpy()]
        return encode_runs(runs, height, width)


def _runs(grid: NDArray[np.float32], frame: GridFrame) -> NDArray[np.int64]:
    window = frame.window(grid, THRESHOLD)
    if window is None:
        return _NOTHING
    return runs_of(window.values > THRESHOLD, window.row_start, window.col_start, frame.height)
