"""Made holdouts: discs and what models of known skill find in them, already matched by pycocotools."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.evaluate.average_precision import InstanceScores
from segray.masks.types import Rle
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


def pair(seed: int, images: int, skills: tuple[float, float]) -> tuple[InstanceMatches, InstanceMatches]:
    """What two models find among the same discs; a skill is how far off the masks are, in radii.

    An object that is hard is so for both, and three quarters of the variance of an error are shared: the one
    was trained from the other. So 65 images show a gain of about 0.02. The random numbers are the same for
    all skills.
    """
    random = np.random.default_rng(seed)
    models = InstanceScores(), InstanceScores()
    for number in range(images):
        name = f"{number:04d}"
        hard = random.lognormal(0, 0.3)
        for model in models:
            model.add_image(name, (SIDE, SIDE))
        for _ in range(int(random.integers(8, 31))):
            x, y, radius = random.uniform(12, 84), random.uniform(12, 84), random.uniform(4, 11)
            off, shared = hard * random.lognormal(0, 0.4), random.normal(size=4)
            for model, skill in zip(models, skills, strict=True):
                model.add_truth(name, disc(x, y, radius), 1)
                error = skill * off * (np.sqrt(0.75) * shared + 0.5 * random.normal(size=4))
                score = 1 / (1 + np.exp(-1.5 + 8 * np.abs(error[:3]).sum() + random.normal(0, 0.7)))
                size = radius * float(np.clip(1 + error[2], 0.5, 1.5))
                if error[3] < 0.25:  # the others are missed
                    found = disc(x + radius * error[0], y + radius * error[1], size)
                    model.add_prediction(name, found, 1, float(score))
                chance, left, top, *rest = random.random(5)
                if chance < skill:
                    false = disc(8 + 80 * left, 8 + 80 * top, 3 + 6 * rest[0])
                    model.add_prediction(name, false, 1, 0.7 * rest[1])
    return InstanceMatches.of(models[0]), InstanceMatches.of(models[1])


def of_images(model: InstanceMatches, chosen: NDArray[np.bool_], other: InstanceMatches) -> InstanceMatches:
    """The answers of `model` on the chosen images, bool (images,), and of `other` on the rest."""
    mine, theirs = chosen[model.image], ~chosen[other.image]
    score = np.concatenate((model.score[mine], other.score[theirs]))
    image = np.concatenate((model.image[mine], other.image[theirs]))
    rank = np.lexsort((image, -score))
    return replace(
        model,
        category=np.zeros(len(rank), np.int64),
        image=image[rank],
        score=score[rank],
        matched=np.concatenate((model.matched[:, mine], other.matched[:, theirs]), 1)[:, rank],
        ignored=np.concatenate((model.ignored[:, mine], other.ignored[:, theirs]), 1)[:, rank],
    )


def sample(model: InstanceMatches, places: NDArray[np.int64]) -> InstanceMatches:
    """A smaller holdout: these images alone, by ascending index."""
    kept = np.isin(model.image, places)
    return replace(
        model,
        images=tuple(model.images[place] for place in places),
        category=model.category[kept],
        image=np.searchsorted(places, model.image[kept]),
        score=model.score[kept],
        matched=model.matched[:, kept],
        ignored=model.ignored[:, kept],
        truth=model.truth[:, places],
    )


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
