"""Mask AP of the bundled model: segray's model step, in both precisions, against torchvision's own forward.

Needs `--labelled FOLDER`, which holds `images/` and `instances.json` (COCO) of the images that the model's
card names; its test split is scored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN

from jobs.benchmarks.measure import Figure, Options
from segray.annotate.predictor import Predictor
from segray.data.coco_listing import list_coco
from segray.data.pair_reader import CocoExample, CocoReading
from segray.data.splits import SplitRule
from segray.errors import ItemError
from segray.evaluate.average_precision import InstanceScores
from segray.masks.rle import encode_image_masks, encode_roi_masks
from segray.models import bundled_models
from segray.models.device import Precision
from segray.models.modelfile import ModelCard, load_model_file
from segray.models.weights import LoadedModel, load_weights
from segray.storage import StorageSettings

WEIGHTS = "nuclei-small"
GOAL = "<= 0.2"
MAX_PIXELS = 100_000_000


def figures(options: Options) -> Iterator[Figure]:
    """The goal is a difference in points, of 100."""
    names: list[Precision] = ["fp32", "bf16"]
    if options.labelled is None:
        for precision in names:
            yield Figure(
                f"points of AP off torchvision's, {precision}", GOAL, [], ["needs --labelled FOLDER"]
            )
        return
    images = labelled_test_images(options.labelled)
    images = images[:5] if options.quick else images
    model = load_model_file(Path(bundled_models()[WEIGHTS]))
    assert isinstance(model.card, ModelCard)
    truth = score_torchvision(model.module, model.card, images).compute()["ap"]
    loaded = load_weights(WEIGHTS, StorageSettings())
    for precision in names:
        ours = score_step(loaded, precision, images).compute()["ap"]
        told = f"{len(images)} test images: AP {100 * ours:.2f} against {100 * truth:.2f}"
        yield Figure(f"points of AP off torchvision's, {precision}", GOAL, [abs(ours - truth) * 100], [told])


def labelled_test_images(folder: Path) -> list[CocoExample]:
    """Read the images of the test split (seed 0) of a COCO folder, in the order of their contents."""
    storage = StorageSettings()
    listing = list_coco(str(folder), storage)
    pairs = listing.pairs
    rule, found = SplitRule.of(pairs, seed=0), list[CocoExample]()
    for pair, example in zip(
        pairs, CocoReading(listing.categories, MAX_PIXELS, storage).reader().read(pairs), strict=True
    ):
        if isinstance(example, ItemError):
            raise example
        if rule.split_by(pair.split, example.digest) == "test":
            found.append(example)
    return sorted(found, key=lambda example: example.digest)


@torch.inference_mode()
def score_torchvision(model: MaskRCNN, card: ModelCard, images: list[CocoExample]) -> InstanceScores:
    """Score torchvision's own forward pass in float32; `model` is in evaluation mode."""
    scores, ids = InstanceScores(), sorted(card.categories)
    for image in images:
        height, width = _add_truth(scores, image)
        pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1).float() / 255
        found = model([pixels])[0]
        masks = encode_image_masks(found["masks"][:, 0].numpy(), height, width)
        categories = [ids[label - 1] for label in found["labels"].tolist()]
        _add_found(scores, image, masks.counts, categories, found["scores"].tolist())
    return scores


def score_step(loaded: LoadedModel, precision: Precision, images: list[CocoExample]) -> InstanceScores:
    """Score what `annotate`'s model step finds, above the model's own threshold."""
    threshold = float(loaded.module.roi_heads.score_thresh)
    predictor = Predictor(loaded, "cpu", precision, threshold, batch_size=1)
    scores = InstanceScores()
    for image in images:
        height, width = _add_truth(scores, image)
        (found,) = predictor.detector.detect([image.pixels])
        masks = encode_roi_masks(found.masks, found.boxes, height, width)
        categories = predictor._category_ids(found.labels).tolist()
        _add_found(scores, image, masks.counts, categories, found.scores.tolist())
    return scores


def _add_truth(scores: InstanceScores, image: CocoExample) -> tuple[int, int]:
    """Add an image and its instances; returns (height, width)."""
    height, width = image.pixels.shape[:2]
    scores.add_image(image.digest, (height, width))
    for each in image.instances:
        if each.mask is not None and not each.crowd:
            scores.add_truth(image.digest, each.mask, each.category)
    return height, width


def _add_found(
    scores: InstanceScores, image: CocoExample, counts: list[str], categories: list[int], found: list[Any]
) -> None:
    size = list(image.pixels.shape[:2])
    for each, category, score in zip(counts, categories, found, strict=True):
        scores.add_prediction(image.digest, {"size": size, "counts": each}, category, score)
