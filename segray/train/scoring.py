"""Score a model on images with torchvision's own forward pass.

`python -m segray.train.scoring FOLDER [--weights FILE] [--split test]` prints the figures of a model card.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from segray.evaluate.average_precision import InstanceScores
from segray.masks.types import Rle
from segray.models import bundled_models
from segray.models.modelfile import Card, load_model_file
from segray.train.dataset import InstanceImage, load_coco, split_images
from segray.train.transforms.instances import target_of


@torch.inference_mode()
def score_model(model: MaskRCNN, card: Card, images: list[InstanceImage]) -> InstanceScores:
    """Predict every image in float32 and return truth and predictions; `model` is in evaluation mode."""
    scores = InstanceScores()
    ids = sorted(card.categories)
    for image in images:
        truth = target_of(image.instances, image.categories)
        height, width = image.instances.shape
        scores.add_image(image.digest, (height, width))
        for rle, category in zip(encode(truth["masks"]), truth["labels"].tolist(), strict=True):
            scores.add_truth(image.digest, rle, category)
        found = model([image.pixels.float() / 255])[0]
        masks = encode(found["masks"][:, 0] > 0.5)
        for rle, label, score in zip(masks, found["labels"].tolist(), found["scores"].tolist(), strict=True):
            scores.add_prediction(image.digest, rle, ids[label - 1], score)
    return scores


def encode(masks: Tensor) -> list[Rle]:
    """Return COCO's compressed RLE of (n, height, width) masks."""
    columns = np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8))
    rles: list[Rle] = coco_mask.encode(columns)
    return rles


def main() -> None:
    """Mask AP of a model file on one split (seed 0) of a COCO folder, as JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m segray.train.scoring", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="holds instances.json and images/")
    parser.add_argument("--weights", type=Path, default=bundled_models()["nuclei-small"])
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    given = parser.parse_args()
    model = load_model_file(given.weights)
    images = split_images(load_coco(given.folder)[0], seed=0)[given.split]
    scores = score_model(model.module, model.card, images)
    for most in (500, 100):
        found = scores.compute(detections_per_image=most)
        figures = {name: None if math.isnan(value) else round(value, 4) for name, value in found.items()}
        print(json.dumps({"split": given.split, "images": len(images), "detections": most, **figures}))


if __name__ == "__main__":
    main()
