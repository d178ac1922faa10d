"""Made holdouts: discs and what models of known skill find in them, already matched by pycocotools."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.evaluate.instance import InstanceScores, Rle
from segray.retrain.matches import InstanceMatches

SIDE = 96


def disc(x: float, y: float, radius: float) -> Rle:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    rle: Rle = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return rle


def random_scores(seed: int, images: int = 12, ties: bool = False) -> InstanceScores:
    """Discs of three categories with crowds, false and lost ones; images without truth, or with nothing.

    With `ties` scores are tenths, so that many of different images are equal, none within one image.
    """
    random = np.random.default_rng(seed)
    scores = InstanceScores()
    for number in range(images):
        name = f"image-{number:02d}"
        scores.add_image(name, (SIDE, SIDE))
        tenths = iter(random.permutation(11) / 10)
        for _ in range(int(random.integers(0, 9)) if number % 4 else 0):
            x, y, radius = random.uniform(8, 88), random.uniform(8, 88), random.uniform(3, 14)
            category = int(random.choice([1, 2, 7], p=[0.6, 0.3, 0.1]))
            scores.add_truth(name, disc(x, y, radius), category, crowd=random.random() < 0.15)
            if random.random() < 0.8:
                moved = disc(x + random.normal(0, 1), y, radius * random.uniform(0.85, 1.1))
                found = category if random.random() < 0.9 else 1
                scores.add_prediction(name, moved, found, next(tenths) if ties else random.random())
        for _ in range(int(random.integers(0, 3)) if number % 3 else 0):
            false = disc(random.uniform(8, 88), random.uniform(8, 88), random.uniform(3, 9))
            category = int(random.choice([1, 2, 9]))
            scores.add_prediction(name, false, category, next(tenths) if ties else random.random())
    return scores


def repeated(scores: InstanceScores, weights: Sequence[int]) -> InstanceScores:
    """Each image as often as its weight says; the copies of one are neighbours."""
    result = InstanceScores()
    for name, weight in zip(sorted(scores.images), weights, strict=True):
        for copy in range(weight):
            own = f"{name}-{copy}"
            result.images[own] = scores.images[name]
            result.truth.extend(row | {"image_id": own} for row in scores.truth if row["image_id"] == name)
            result.predictions.extend(
                row | {"image_id": own} for row in scores.predictions if row["image_id"] == name
            )
    return result


def dense_matches(seed: int, images: int, detections: int) -> InstanceMatches:
    """As many detections in each image, made without masks: the better the score, the likelier a match."""
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), detections)
    score = random.random(len(image))
    quality = 0.4 + 0.5 * score + random.normal(0, 0.15, len(image))  # the IoU
    rank = np.argsort(-score, kind="stable")
    matched = quality[None, rank] >= np.linspace(0.5, 0.95, 10)[:, None]
    return InstanceMatches(
        tuple(f"{number:05d}" for number in range(images)),
        np.array([1]),
        np.zeros(len(image), np.int64),
        image[rank],
        score[rank],
        matched,
        np.zeros_like(matched),
        np.full((1, images), detections),
    )


def draws(seed: int, number: int, images: int) -> NDArray[np.int64]:
    """Bootstrap weights (number, images)."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), number)
