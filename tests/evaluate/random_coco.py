"""Random and adversarial COCO sets, and pycocotools' own figures of them."""

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZES = ((64, 48), (120, 160), (200, 230))
STATS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip
_BORDERS = (32.0**2, 96.0**2, 32.0**2 + 0.5, 96.0**2 - 0.5, 0.0)


def encoded(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """A mask (height, width) as a COCO segmentation."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


class RandomSet:
    """Truth as COCO JSON, and results: every difficulty that COCO's matching knows, by chance."""

    def __init__(self, seed: int) -> None:
        self.random = random = np.random.default_rng(seed)
        self.categories = random.choice(90, random.integers(1, 4), replace=False).tolist()
        self.ties, self.shapes = random.random() < 0.5, random.random() < 0.5
        self.truth: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": f"class {number}"} for number in self.categories],
        }
        self.results: list[dict[str, Any]] = []
        ids = random.permutation(1000)[: random.integers(1, 9)].tolist()
        for image_id in ids:
            self._add_image(image_id, SIZES[random.integers(len(SIZES))])
        random.shuffle(self.results)

    def _add_image(self, image_id: int, size: tuple[int, int]) -> None:
        random = self.random
        self.truth["images"].append(
            {"id": image_id, "file_name": f"{image_id}.jpg", "height": size[0], "width": size[1]}
        )
        for _ in range(random.choice([0, 1, 3, 8])):
            place, category = self._place(size), int(random.choice(self.categories))
            self._annotate(image_id, category, place, size)
            for _ in range(random.choice([0, 1, 1, 2, 4])):
                moved = place + random.choice([0, 0, 1, 2, 5, -1, -3], 4)
                self._detect(image_id, category if random.random() < 0.9 else self.categories[0], moved, size)
        if random.random() < 0.3:
            self._add_between(image_id, size)
        for _ in range(random.choice([0, 1, 4, 130], p=[0.4, 0.3, 0.25, 0.05])):
            self._detect(image_id, int(random.choice(self.categories)), self._place(size), size)

    def _add_between(self, image_id: int, size: tuple[int, int]) -> None:
        """A prediction with the same IoU of two objects, and one that fits either of them."""
        category = int(self.random.choice(self.categories))
        left, middle, right = (np.array([20 + step, 10, 16, 16]) for step in (-3, 0, 3))
        for place in self.random.permutation([left, right]):
            self._annotate(image_id, category, place, size)
        for place in (middle, left if self.random.random() < 0.5 else right):
            self._detect(image_id, category, place, size)

    def _place(self, size: tuple[int, int]) -> NDArray[np.int64]:
        """x, y, width, height; some have sides at which COCO's sizes change, or half of another's area."""
        height, width = size
        sides = self.random.choice([4, 8, 16, 32, 33, 64, 96, 97, *self.random.integers(2, 120, 6)], 2)
        x, y = self.random.integers(0, [width - 2, height - 2])
        return np.array([x, y, *sides])

    def _mask(self, place: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
        x, y, width, height = np.maximum(place, [0, 0, 1, 1]).tolist()
        mask = np.zeros(size, np.uint8)
        mask[y : y + height, x : x + width] = 1
        if self.shapes:
            rows, cols = np.mgrid[: size[0], : size[1]]
            mask *= (rows - y) * width + (cols - x) * height <= width * height
        if not mask.any():
            mask[-1, -1] = 1
        return mask

    def _annotate(
        self, image_id: int, category: int, place: NDArray[np.int64], size: tuple[int, int]
    ) -> None:
        mask, random = self._mask(place, size), self.random
        segmentation = encoded(mask)
        self.truth["annotations"].append(
            {
                "id": len(self.truth["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category,
                "segmentation": segmentation,
                "bbox": coco_mask.toBbox(segmentation).tolist(),
                "area": float(mask.sum()) if random.random() < 0.7 else float(random.choice(_BORDERS)),
                "iscrowd": int(random.random() < 0.15),
            }
        )

    def _detect(self, image_id: int, category: int, place: NDArray[np.int64], size: tuple[int, int]) -> None:
        score = float(self.random.random())
        self.results.append(
            {
                "image_id": image_id,
                "category_id": int(category),
                "segmentation": encoded(self._mask(place, size)),
                "score": round(score, 1) if self.ties else score,
            }
        )

    def boxes(self) -> list[dict[str, Any]]:
        """The results as boxes."""
        return [
            {name: row[name] for name in ("image_id", "category_id", "score")}
            | {"bbox": coco_mask.toBbox(row["segmentation"]).tolist()}
            for row in self.results
        ]


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """COCOeval as its own demo calls it: the twelve figures, -1 without truth."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        found = coco.loadRes([dict(row) for row in results]) if results else COCO()
        if not results:
            found.dataset = truth | {"annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]
