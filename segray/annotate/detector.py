"""torchvision's Mask R-CNN, step by step, up to the masks inside their boxes.

The same arithmetic as its own `forward`, without the step that grows every mask to the image. In low
precision only the networks run in it: anchors, boxes, scores and NMS stay in float32.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from segray.annotate.fpn import InPlacePyramid
from segray.annotate.roialign import BagRoIAlign
from segray.masks.rle import MaskFrame
from segray.models.device import DTYPES, Precision, arithmetic
from segray.models.exact_boxes import keep_boxes_in_float32, keep_scales
from segray.models.fuse_activation import fuse_activations
from segray.models.fuse_batchnorm import cast_weights, fold_batch_norms
from segray.models.resize import has_known_sizes, resized


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections of a model in one image; n detections."""

    boxes: NDArray[np.float32]
    """(n, 4) float32: x0, y0, x1, y1 in pixels of the image."""
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: Any
    """(n, m, m) float32 probabilities relative to the boxes, (n, height, width) of the whole image, or
    (n, rows, cols) on a coarse grid over it; or EncodedMasks, whose frame is the image."""
    frame: MaskFrame
    extent: tuple[float, float] | None = None
    """Of `grid` masks, see `encode_grid_masks`."""


def is_plain_maskrcnn(model: object) -> bool:
    """Return whether the steps below are what `model` itself does: a subclass may have changed them."""
    return (
        isinstance(model, MaskRCNN)
        and type(model).forward is GeneralizedRCNN.forward
        and has_known_sizes(model.transform)
    )


class MaskRCNNDetector:
    """A MaskRCNN on its device, with the score threshold inside, so that no mask is computed below it.

    That gives the same detections as filtering afterwards: NMS is greedy from the highest score down, and the
    limit of detections per image keeps the highest.
    """

    def __init__(
        self,
        model: MaskRCNN,
        device: torch.device,
        precision: Precision,
        score_threshold: float,
        proposals: int | None = None,
    ) -> None:
        """Store the model; proposals: maximum regions of an image for its second stage; None: its own."""
        self.device, self.precision = device, precision
        self.model = copy.deepcopy(model).eval().to(device)
        self.model.roi_heads.score_thresh = score_threshold
        if proposals is not None:
            self.model.rpn._post_nms_top_n["testing"] = proposals
        keep_scales(self.model)
        fold_batch_norms(self.model)
        if device.type == "cpu":
            fuse_activations(self.model)
        self.channels_last = device.type == "cpu" or precision != "fp32"  # fp32 on a GPU: not measured
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        _add_in_place(self.model)
        if device.type == "cpu":
            _align_by_bags(self.model)
        if precision != "fp32":
            cast_weights(self.model, DTYPES[precision])
            keep_boxes_in_float32(self.model)

    def batch_key(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of an image inside the network; only equal ones may share a batch."""
        return padded_size(self.model.transform, height, width)

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return detections of each image (height, width, 3) uint8; the images have one `batch_key`."""
        with arithmetic(self.device, self.precision):
            batch = self._batch(images)
            features = self.model.backbone(batch.tensors)
            if isinstance(features, Tensor):
                features = OrderedDict([("0", features)])
            proposals, _ = self.model.rpn(batch, features)
            found, _ = self.model.roi_heads(features, proposals, batch.image_sizes)
            for each, size, image in zip(found, batch.image_sizes, images, strict=True):
                each["boxes"] = resize_boxes(each["boxes"], list(size), list(image.shape[:2]))
            return _to_host(found)

    def _batch(self, images: Sequence[NDArray[np.uint8]]) -> ImageList:
        transform = self.model.transform
        prepared = [self._prepared(image) for image in images]
        padded = transform.batch_images(list(prepared), transform.size_divisible)
        if self.channels_last:
            padded = padded.contiguous(memory_format=torch.channels_last)
        return ImageList(padded, [(each.shape[1], each.shape[2]) for each in prepared])

    def _prepared(self, image: NDArray[np.uint8]) -> Tensor:
        """Return the image normalised and resized on the device: (3, height, width) float32."""
        pixels = torch.tensor(image).to(self.device).permute(2, 0, 1).float().div_(255)
        normal = self.model.transform.normalize(pixels)
        size = resized(self.model.transform, *image.shape[:2])
        return interpolate(normal[None], size=size, mode="bilinear", align_corners=False)[0]


def padded_size(transform: GeneralizedRCNNTransform, height: int, width: int) -> tuple[int, int]:
    """Return height and width of an image in the network, resized and padded."""
    step = transform.size_divisible
    rows, cols = resized(transform, height, width)
    return math.ceil(rows / step) * step, math.ceil(cols / step) * step


def _add_in_place(model: MaskRCNN) -> None:
    pyramid = getattr(model.backbone, "fpn", None)
    if type(pyramid) is FeaturePyramidNetwork:
        pyramid.__class__ = InPlacePyramid


def _align_by_bags(model: MaskRCNN) -> None:
    for name in ("box_roi_pool", "mask_roi_pool"):
        pool = getattr(model.roi_heads, name)
        if type(pool) is MultiScaleRoIAlign and pool.sampling_ratio > 0:
            setattr(model.roi_heads, name, BagRoIAlign(pool))


def _to_host(found: Sequence[dict[str, Tensor]]) -> list[Detections]:
    """Transfer the whole batch at once: box, score, label and mask of each detection in one row."""
    rows = [
        torch.cat(
            [each["boxes"], each["scores"][:, None], each["labels"][:, None], each["masks"].flatten(1)], dim=1
        )
        for each in found
    ]
    table = torch.cat(rows).cpu().numpy()
    side = found[0]["masks"].shape[-1]
    parts = np.split(table, np.cumsum([len(each) for each in rows])[:-1])
    return [
        Detections(
            boxes=part[:, :4],
            scores=part[:, 4],
            labels=part[:, 5].astype(np.int64),
            masks=part[:, 6:].reshape(-1, side, side),
            frame="roi",
        )
        for part in parts
    ]
