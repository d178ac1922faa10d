"""COCO AP and AR of instances that are added one by one and kept, as training and its gate do."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segray.evaluate.matching import Instances, Kind, Matches, match
from segray.evaluate.precision_recall import InstanceFigures, figures, ranked
from segray.evaluate.settings import COCO_DETECTIONS
from segray.masks.run_ends import RunEnds
from segray.masks.types import Box, Rle

DETECTIONS_PER_IMAGE = 500
"""Detections per image that count. COCO's own 100 is below the truth of dense microscope images."""
_NO_BOX = (np.nan,) * 4


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
        self.predictions.append(_row(image_id, mask, category_id, box) | {"score": float(score)})

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
        found = self.figures("segm", detections_per_image).overall
        return {name: value for name, value in found.items() if name.startswith("ap")}

    def figures(self, kind: Kind, detections_per_image: int = COCO_DETECTIONS) -> InstanceFigures:
        """Return COCO's twelve figures, in 0..1 and NaN without truth, and those of each category.

        `ar1` and `ar10` are the recall with 1 and 10 detections per image. The size of a prediction is, for
        masks, the area of its mask (COCO.loadRes uses its box, where it has one), for boxes that of its box,
        where one was given, as in COCO.loadRes.
        """
        return figures(ranked(self.matches(kind), kind, detections_per_image), detections_per_image)

    def matches(self, *kinds: Kind) -> Matches:
        """Match the predictions of each image to its truth; images are numbered as their ids sort."""
        numbers = {image_id: number for number, image_id in enumerate(sorted(self.images))}
        rows = [*self.truth, *self.predictions]
        masks = [row["segmentation"] for row in rows if "segmentation" in row]
        whole = len(masks) == len(rows)
        return match(
            Instances(
                np.array([numbers[row["image_id"]] for row in rows], np.int64),
                np.array([row["category_id"] for row in rows], np.int64),
                np.array([row.get("score", np.nan) for row in rows], np.float64),
                np.array([row["iscrowd"] for row in rows], bool),
                np.array([row["area"] for row in rows], np.float64),
                np.array([row["bbox"] if row["own_box"] else _NO_BOX for row in rows]).reshape(-1, 4),
                RunEnds.of([mask["counts"] for mask in masks]) if whole else None,
                coco_mask.toBbox(masks).reshape(-1, 4) if whole and masks else np.zeros((0, 4)),
            ),
            kinds,
        )

    def cut(self, detections_per_image: int) -> tuple[int, int]:
        """Return (images with more predictions of a category than COCO counts, the maximum of one)."""
        numbers = Counter((row["image_id"], row["category_id"]) for row in self.predictions)
        images = {image for (image, _), number in numbers.items() if number > detections_per_image}
        return len(images), max(numbers.values(), default=0)

    def categories(self) -> list[int]:
        """Return the ids of all categories that were added, ascending."""
        return sorted({row["category_id"] for row in self.truth + self.predictions})


def _row(image_id: str, mask: Rle | None, category_id: int, box: Box | None) -> dict[str, Any]:
    row = {"image_id": image_id, "category_id": int(category_id), "iscrowd": 0, "own_box": box is not None}
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
