"""Score a model on images with torchvision's own forward pass."""

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from segray.evaluate.instance import InstanceScores, Rle
from segray.models.modelfile import ModelCard
from segray.train.augment import target_of
from segray.train.dataset import InstanceImage


@torch.inference_mode()
def score_model(model: MaskRCNN, card: ModelCard, images: list[InstanceImage]) -> InstanceScores:
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
