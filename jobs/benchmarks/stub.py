"""Models that cost next to nothing, so that everything around the model shows.

`--weights python:jobs.benchmarks.stub:quick`, or `:slow`, which waits 0.1 s an image.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from jobs.benchmarks.pictures import score_of
from jobs.benchmarks.rle import smooth_masks

INSTANCES = 5


class Stub:
    """Five instances an image with the score that `pictures.score_of` gives it."""

    categories = {1: "thing"}  # noqa: RUF012 - the interface of a model of one's own
    digest = "stub-1"
    mask_frame = "roi"
    image_dtype = torch.uint8  # no floats of pixels that nobody multiplies

    def __init__(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        self.masks = torch.from_numpy(smooth_masks(INSTANCES))[:, None]

    def __call__(self, images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        time.sleep(self.wait_s * len(images))
        return [self._answer(image) for image in images]

    def _answer(self, image: torch.Tensor) -> dict[str, Any]:
        size = torch.tensor([image.shape[2], image.shape[1]])
        start = torch.linspace(0.1, 0.6, INSTANCES)[:, None] * size
        score = score_of(image.permute(1, 2, 0).numpy())  # torch would wake its threads for it
        return {
            "boxes": torch.cat([start, start + 0.15 * size], 1),
            "labels": torch.ones(INSTANCES, dtype=torch.int64),
            "scores": torch.full((INSTANCES,), score),
            "masks": self.masks,
        }


def quick() -> Stub:
    return Stub()


def slow() -> Stub:
    return Stub(0.1)
