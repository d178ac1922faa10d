"""Mask R-CNN with any encoder of timm under torchvision's feature pyramid.

timm is imported inside the functions: it imports torch's compiler, which takes seconds.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from segray.models.maskrcnn import LEVELS, Float32BoxPredictor, Float32MaskPredictor, Float32RPNHead
from segray.models.timm_encoder import Norm, timm_encoder


@dataclass(frozen=True)
class MaskRCNNSettings:
    """The parts around the encoder, by default torchvision's; a model file stores all of them."""

    norm: Norm = "batch"
    """Norm of the encoder: frozen statistics suit small batches, but only with pretrained weights."""
    head_norm: Literal["none", "batch"] = "none"
    """Norm after the convolutions of pyramid and mask head: batch suits heads that start from random."""
    fpn_width: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides of the square anchor of each level, pixels of the resized image; four levels, or five."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_iou: float = 0.7
    """IoU with an instance from which an anchor is foreground; with one size an octave 0.6 misses fewer."""
    proposals: int = 1000
    """Regions of an image for the second stage."""
    regions_per_image: int = 512
    """Regions of an image that the second stage learns from in a step."""
    canonical_scale: int = 224
    """Regions below half of this side (pixels of the resized image) use the map of stride 4."""
    sampling_ratio: int = 2
    """Samples per bin and axis of RoIAlign."""
    box_width: int = 1024
    mask_widths: tuple[int, ...] = (256, 256, 256, 256)
    detections_per_image: int = 100


class EncoderPyramid(nn.Module):
    """An encoder with a feature pyramid: (n, 3, h, w) to maps at strides 4, 8, 16, 32 and perhaps 64."""

    def __init__(self, encoder: Any, width: int, *, has_norm: bool, levels: int) -> None:
        super().__init__()
        self.out_channels = width  # torchvision's detectors read it
        self.body = encoder
        self.fpn = FeaturePyramidNetwork(
            encoder.feature_info.channels(),
            width,
            extra_blocks=LastLevelMaxPool() if levels > len(LEVELS) else None,
            norm_layer=nn.BatchNorm2d if has_norm else None,
        )

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the pyramid, finest map first, each (n, `out_channels`, h / stride, w / stride)."""
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict(zip(LEVELS, self.body(images), strict=True)))
        return pyramid


def build_encoder_maskrcnn(
    encoder: str, classes: int, settings: MaskRCNNSettings, pretrained: bool = False
) -> MaskRCNN:
    """Build the detector in training mode; it is a plain `MaskRCNN`, with random weights around the encoder.

    encoder: a name of timm, or one of `PACKAGES`; `classes` counts the categories without background.
    pretrained: the encoder has the weights of ImageNet that timm or its package has. Raises ValueError for
    settings out of range, SettingsError for an encoder that does not fit and weights that are not to be had.
    """
    levels = len(settings.anchor_sizes)
    if levels not in (len(LEVELS), len(LEVELS) + 1):
        raise ValueError(f"anchor_sizes are of {levels} levels, but must be of 4 or 5")
    has_norm = _choice("head_norm", settings.head_norm, ("none", "batch")) == "batch"
    body = timm_encoder(encoder, settings.norm, pretrained=pretrained)
    width, box_width, mask_widths = settings.fpn_width, settings.box_width, settings.mask_widths
    anchors = AnchorGenerator(
        tuple((size,) for size in settings.anchor_sizes), (settings.aspect_ratios,) * levels
    )
    roi_align = partial(
        MultiScaleRoIAlign,
        featmap_names=list(LEVELS),
        sampling_ratio=settings.sampling_ratio,
        canonical_scale=settings.canonical_scale,
    )
    model = MaskRCNN(
        EncoderPyramid(body, width, has_norm=has_norm, levels=levels),
        rpn_anchor_generator=anchors,
        rpn_head=Float32RPNHead(width, anchors.num_anchors_per_location()[0]),
        box_roi_pool=roi_align(output_size=7),
        box_head=TwoMLPHead(width * 7 * 7, box_width),
        box_predictor=Float32BoxPredictor(box_width, classes + 1),
        mask_roi_pool=roi_align(output_size=14),
        mask_head=MaskRCNNHeads(
            width, mask_widths, dilation=1, norm_layer=nn.BatchNorm2d if has_norm else None
        ),
        mask_predictor=Float32MaskPredictor(mask_widths[-1], mask_widths[-1], classes + 1),
        box_detections_per_img=settings.detections_per_image,
        rpn_pre_nms_top_n_train=max(1000, settings.proposals),
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_pre_nms_top_n_test=max(1000, settings.proposals),
        rpn_post_nms_top_n_test=settings.proposals,
        rpn_fg_iou_thresh=settings.anchor_iou,
        box_batch_size_per_image=settings.regions_per_image,
    )
    with torch.no_grad():  # nearly all anchors are background: start there (focal loss paper, section 4.1)
        model.rpn.head.cls_logits.bias.fill_(-4.0)
    return model


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but must be {' or '.join(choices)}")
    return value
