"""COCO mask AP through pycocotools, as an accumulator that adds: shards are scored apart and merged."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

DETECTIONS_PER_IMAGE = 500
"""Most detections of an image that count. COCO's own 100 is below the truth of dense microscope images."""


class Rle(TypedDict):
    """COCO's compressed run-length encoding of a whole image; `size` is height, width."""

    size: Sequence[int]
    counts: str | bytes


@dataclass(frozen=True)
class InstanceScores:
    """Truth and predictions seen so far; `a + b` holds those of both and has no image in common."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image id to height and width in pixels."""
    truth: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def add_image(self, image_id: str, size: tuple[int, int]) -> None:
        """Announce an image of (height, width) pixels; one without any instance counts too.

        Raises ValueError for an image that was announced before.
        """
        if image_id in self.images:
            raise ValueError(f"image {image_id} is scored twice")
        self.images[image_id] = size

    def add_truth(self, image_id: str, mask: Rle, category_id: int, *, crowd: bool = False) -> None:
        """Add one true instance."""
        self.truth.append(_row(image_id, mask, category_id) | {"iscrowd": int(crowd)})

    def add_prediction(self, image_id: str, mask: Rle, category_id: int, score: float) -> None:
        """Add one predicted instance with its score in 0..1."""
        self.predictions.append(_row(image_id, mask, category_id) | {"score": float(score)})

    def __add__(self, other: "InstanceScores") -> "InstanceScores":
        """Return the scores of both shards; raises ValueError if they share an image."""
        shared = self.images.keys() & other.images.keys()
        if shared:
            raise ValueError(f"image {min(shared)} is scored twice")
        return InstanceScores(
            self.images | other.images, self.truth + other.truth, self.predictions + other.predictions
        )

    def compute(self, detections_per_image: int = DETECTIONS_PER_IMAGE) -> dict[str, float]:
        """Return `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large` in 0..1; NaN without truth.

        As COCOeval defines them: IoU 0.50:0.05:0.95, 101 recall points, the mean over categories; small is
        below 32 x 32 pixels of mask area, large above 96 x 96.
        """
        precision = self._precision(detections_per_image)  # (iou, recall, category, area)
        return {
            "ap": _mean(precision[..., 0]),
            "ap50": _mean(precision[0, ..., 0]),
            "ap75": _mean(precision[5, ..., 0]),
            "ap_small": _mean(precision[..., 1]),
            "ap_medium": _mean(precision[..., 2]),
            "ap_large": _mean(precision[..., 3]),
        }

    def _precision(self, detections_per_image: int) -> NDArray[np.float64]:
        categories = sorted({row["category_id"] for row in self.truth + self.predictions})
        if not categories:
            return np.full((10, 101, 1, 4), -1.0)
        numbers = {image_id: number for number, image_id in enumerate(sorted(self.images), start=1)}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(
                _coco(self.images, self.truth, categories, numbers),
                _coco(self.images, self.predictions, categories, numbers),
                "segm",
            )
            evaluation.params.maxDets = [detections_per_image]
            evaluation.evaluate()
            evaluation.accumulate()
        precision: NDArray[np.float64] = evaluation.eval["precision"][..., 0]
        return precision


def _row(image_id: str, mask: Rle, category_id: int) -> dict[str, Any]:
    counts = mask["counts"]
    rle = {"size": list(mask["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
    return {
        "image_id": image_id,
        "category_id": int(category_id),
        "segmentation": rle,
        "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": 0,
    }


def _coco(
    images: dict[str, tuple[int, int]],
    rows: list[dict[str, Any]],
    categories: list[int],
    numbers: dict[str, int],
) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": numbers[name], "height": height, "width": width}
            for name, (height, width) in images.items()
        ],
        "annotations": [
            row
            | {
                "id": number,
                "image_id": numbers[row["image_id"]],
            }  # ids from 1: COCOeval reads 0 as unmatched
            for number, row in enumerate(rows, start=1)
        ],
        "categories": [{"id": category_id} for category_id in categories],
    }
    coco.createIndex()
    return coco


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
