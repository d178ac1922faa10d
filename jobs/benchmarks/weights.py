"""A Mask R-CNN of COCO's size without a download: `maskrcnn_resnet50_fpn`, random, but well behaved.

Its convolutions are random and its batch norms fit the pictures, so that signals neither die nor explode;
its heads are scaled so that about ten instances an image pass a threshold of 0.5. What it finds means
nothing; what it costs is what COCO's weights cost.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

WANTED = 10
"""Detections an image above `THRESHOLD`."""
THRESHOLD = 0.5


def write_random_resnet50(path: Path, pictures: Sequence[Path]) -> None:
    """A state dict like torchvision's file of COCO weights: frozen batch norms, without counters."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=THRESHOLD)
    images = [decode_image(str(each), ImageReadMode.RGB).float() / 255 for each in pictures]
    with torch.inference_mode():
        _fit(model, images)
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name] + 1e-5  # the frozen ones of COCO's file add no epsilon
    torch.save(state, path)


def _fit(model: MaskRCNN, images: list[Tensor]) -> None:
    batch, _ = model.transform(images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of what it sees now, and of nothing else
    model.backbone(batch.tensors)  # in training mode: statistics are taken
    model.eval()
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    heads: Any = model.roi_heads
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))
    _standardise(heads.box_predictor.cls_score, heads.box_predictor.cls_score(pooled), 3.0)
    _standardise(heads.box_predictor.bbox_pred, heads.box_predictor.bbox_pred(pooled), 0.5)
    _set_background(heads, pooled, proposals, batch.image_sizes)
    boxes = [each[:50] for each in proposals]
    masks = heads.mask_head(heads.mask_roi_pool(features, boxes, batch.image_sizes))
    logits = heads.mask_predictor(masks).transpose(0, 1).flatten(1).T
    _standardise(heads.mask_predictor.mask_fcn_logits, logits, 3.0)


def _standardise(layer: Any, outputs: Tensor, std: float) -> None:
    """Outputs (n, channels) get mean 0 and, all together, this standard deviation."""
    mean = outputs.mean(0)
    scale = std / (outputs - mean).std()
    layer.bias.copy_((layer.bias - mean) * scale)
    layer.weight.mul_(scale)


def _set_background(heads: Any, pooled: Tensor, proposals: list[Tensor], sizes: Any) -> None:
    """The background's bias by bisection: the higher, the fewer detections."""
    low, high = 0.0, 60.0
    for _ in range(16):
        heads.box_predictor.cls_score.bias[0] = (low + high) / 2
        logits, deltas = heads.box_predictor(pooled)
        boxes, _, _ = heads.postprocess_detections(logits, deltas, proposals, sizes)
        too_many = sum(map(len, boxes)) > WANTED * len(boxes)
        low, high = ((low + high) / 2, high) if too_many else (low, (low + high) / 2)
