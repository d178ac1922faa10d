"""COCO AP and AR through pycocotools, as an accumulator that adds: shards are scored apart and merged."""

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray.evaluate.settings import COCO_DETECTIONS
from segray.masks.types import Box, Rle

DETECTIONS_PER_IMAGE = 500
"""Detections per image that count. COCO's own 100 is below the truth of dense microscope images."""
_AREAS = ("", "_small", "_medium", "_large")
"""COCOeval's areas, in its order; the first is all."""

Kind = Literal["segm", "bbox"]
"""What IoU is computed of: masks or boxes."""


@dataclass(frozen=True)
class InstanceScores:
    """Truth and predictions added so far; `a + b` holds those of both, which have no image in common."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image id -> height and width in pixels."""
    truth: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def add_image(self, image_id: str, size: tuple[int, int]) -> None:
        """Add an image of (height, width) pixels; one without any instance counts too.

        Raises ValueError for an image that was added before.
        """
        if image_id in self.images:
            raise ValueError(f"image {image_id} is scored twice")
        self.images[image_id] = size

    def add_truth(
        self,
        image_id: str,
        mask: Rle | None,
        category_id: int,
        *,
        crowd: bool = False,
        box: Box | None = None,
        area: float | None = None,
    ) -> None:
        """Add one true instance; box and area default to those of the mask.

        Without a mask only boxes can be scored, and a box is required. COCO's `area` decides which instances
        are small; it is that of the polygons, not of their pixels. Raises ValueError without mask and box.
        """
        row = _row(image_id, mask, category_id, box) | {"iscrowd": int(crowd)}
        self.truth.append(row if area is None else row | {"area": float(area)})

    def add_prediction(
        self, image_id: str, mask: Rle | None, category_id: int, score: float, *, box: Box | None = None
    ) -> None:
        """Add one predicted instance with its score in 0..1; mask and box as for the truth.

        Raises ValueError without mask and box.
        """
        row = _row(image_id, mask, category_id, box) | {"score": float(score)}
        self.predictions.append(row if box is None else row | {"box_area": float(box[2] * box[3])})

    def __add__(self, other: "InstanceScores") -> "InstanceScores":
        """Return the scores of both shards. Raises ValueError if they share an image."""
        shared = self.images.keys() & other.images.keys()
        if shared:
            raise ValueError(f"image {min(shared)} is scored twice")
        return InstanceScores(
            self.images | other.images, self.truth + other.truth, self.predictions + other.predictions
        )

    def without(self, image_ids: Collection[str]) -> "InstanceScores":
        """Return the scores of all other images."""
        rest = {name: size for name, size in self.images.items() if name not in image_ids}
        truth, predictions = (
            [row for row in rows if row["image_id"] in rest] for rows in (self.truth, self.predictions)
        )
        return InstanceScores(rest, truth, predictions)

    @staticmethod
    def digest_of(rows: Iterable[Mapping[str, Any]]) -> str:
        """Return the sha256 over instances, independent of their order, hex."""
        return hashlib.sha256(b"".join(sorted(map(_digest, rows)))).hexdigest()

    def compute(self, detections_per_image: int = DETECTIONS_PER_IMAGE) -> dict[str, float]:
        """Return `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large` of masks; NaN without truth.

        Shares in 0..1 as COCOeval defines them: IoU 0.50:0.05:0.95, 101 recall points, the mean over
        categories; small is below 32 x 32 pixels of area, large above 96 x 96.
        """
        return _precision_figures(self._evaluated("segm", [detections_per_image])["precision"])

    def figures(self, kind: Kind, detections_per_image: int = COCO_DETECTIONS) -> "InstanceFigures":
        """Return COCO's twelve figures, in 0..1 and NaN without truth, and those of each category.

        `ar1` and `ar10` are the recall with 1 and 10 detections per image. The size of a prediction is, for
        masks, the area of its mask (COCO.loadRes uses its box, where it has one), for boxes that of its box,
        where one was given, as in COCO.loadRes.
        """
        most = sorted({1, 10, detections_per_image})
        found = self._evaluated(kind, most)
        precision, recall = found["precision"], found["recall"]
        place = most.index(detections_per_image)
        few = {
            f"ar{number}": _mean(recall[:, :, 0, most.index(number)])
            for number in (1, 10)
            if number < detections_per_image
        }
        overall = (
            _precision_figures(precision[..., place : place + 1])
            | few
            | {f"ar{name}": _mean(recall[:, :, area, place]) for area, name in enumerate(_AREAS)}
        )
        per_category = {
            category: {
                "ap": _mean(precision[:, :, number, 0, place]),
                "ap50": _mean(precision[0, :, number, 0, place]),
                "ap75": _mean(precision[5, :, number, 0, place]),
                "ar": _mean(recall[:, number, 0, place]),
            }
            for number, category in enumerate(self.categories())
        }
        return InstanceFigures(overall, per_category)

    def cut(self, detections_per_image: int) -> tuple[int, int]:
        """Return (images with more predictions of a category than COCO counts, the maximum of one)."""
        numbers = Counter((row["image_id"], row["category_id"]) for row in self.predictions)
        images = {image for (image, _), number in numbers.items() if number > detections_per_image}
        return len(images), max(numbers.values(), default=0)

    def categories(self) -> list[int]:
        """Return the ids of all categories that were added, ascending."""
        return sorted({row["category_id"] for row in self.truth + self.predictions})

    def evaluated(self, kind: Kind, most: list[int], areas: Collection[str] | None = None) -> COCOeval:
        """Match the predictions of each image to its truth: COCOeval after `evaluate`, see its `evalImgs`.

        Images are in the order of their sorted ids; `most`: detections per image that count; `areas`: names
        of COCOeval's (`all`, `small` …), by default all of them. At least one instance is required.
        """
        numbers = {image_id: number for number, image_id in enumerate(sorted(self.images), start=1)}
        categories = self.categories()
        predictions = self.predictions if kind == "segm" else [_sized_by_box(row) for row in self.predictions]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(
                _coco(self.images, self.truth, categories, numbers),
                _coco(self.images, predictions, categories, numbers),
                kind,
            )
            evaluation.params.maxDets = most
            if areas is not None:
                kept = [place for place, name in enumerate(evaluation.params.areaRngLbl) if name in areas]
                evaluation.params.areaRng = [evaluation.params.areaRng[place] for place in kept]
                evaluation.params.areaRngLbl = [evaluation.params.areaRngLbl[place] for place in kept]
            evaluation.evaluate()
        return evaluation

    def _evaluated(self, kind: Kind, most: list[int]) -> dict[str, NDArray[np.float64]]:
        """Return `precision` (iou, recall, category, area, detections), `recall` likewise; -1: no truth."""
        if not self.categories():
            return {
                "precision": np.full((10, 101, 0, 4, len(most)), -1.0),
                "recall": np.full((10, 0, 4, len(most)), -1.0),
            }
        evaluation = self.evaluated(kind, most)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        return {name: evaluation.eval[name] for name in ("precision", "recall")}


@dataclass(frozen=True, slots=True)
class InstanceFigures:
    """COCO's figures in 0..1; NaN where there is no truth."""

    overall: dict[str, float]
    """`ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar1`, `ar10`, `ar`, `ar_small` …"""
    per_category: dict[int, dict[str, float]]
    """Category id -> `ap`, `ap50`, `ap75`, `ar`."""


def _precision_figures(precision: NDArray[np.float64]) -> dict[str, float]:
    """Return the figures for one number of detections, the last axis of `precision`."""
    return {
        "ap": _mean(precision[:, :, :, 0]),
        "ap50": _mean(precision[0, :, :, 0]),
        "ap75": _mean(precision[5, :, :, 0]),
        **{f"ap{name}": _mean(precision[:, :, :, area]) for area, name in enumerate(_AREAS) if name},
    }


def _row(image_id: str, mask: Rle | None, category_id: int, box: Box | None) -> dict[str, Any]:
    row = {"image_id": image_id, "category_id": int(category_id), "iscrowd": 0}
    if mask is None:
        if box is None:
            raise ValueError(f"image {image_id}: an instance without mask and box")
        return row | {"area": float(box[2] * box[3]), "bbox": list(box)}
    counts = mask["counts"]
    rle = {"size": list(mask["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
    return row | {
        "segmentation": rle,
        "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist() if box is None else list(box),
    }


def _digest(row: Mapping[str, Any]) -> bytes:
    counts = row.get("segmentation", {}).get("counts", b"")
    rest = (row["image_id"], row["category_id"], row["iscrowd"], row["bbox"], row["area"], row.get("score"))
    return hashlib.sha256(repr(rest).encode() + counts).digest()


def _sized_by_box(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"area": row.get("box_area", row["area"])}


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
