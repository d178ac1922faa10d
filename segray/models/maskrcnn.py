"""A compact torchvision Mask R-CNN: plain keyword settings in, a plain `MaskRCNN` module out."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign

from segray.errors import SettingsError

_SAFE_CHANNELS = 16
"""With fewer, see `SubsampledConv2d`."""
LEVELS = ("0", "1", "2", "3")  # feature maps at strides 4, 8, 16, 32
ROI_CANONICAL_SCALE = 160  # boxes below half of this (pixels of the resized image) use the stride-4 map


class CompactBackbone(nn.Module):
    """A narrow ResNet with a feature pyramid: (n, 3, h, w) to four maps at strides 4, 8, 16 and 32."""

    def __init__(self, stem_width: int, widths: Sequence[int], depths: Sequence[int], fpn_width: int) -> None:
        super().__init__()
        self.out_channels = fpn_width  # torchvision's detectors read it
        self.stem = Conv2dNormActivation(3, stem_width, kernel_size=5, stride=2)
        self.stages = nn.ModuleList(
            _stage(width_in, width_out, depth)
            for (width_in, width_out), depth in zip(pairwise((stem_width, *widths)), depths, strict=True)
        )
        self.fpn = FeaturePyramidNetwork(list(widths), fpn_width, norm_layer=nn.BatchNorm2d)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the pyramid, finest map first, each (n, `out_channels`, h / stride, w / stride)."""
        features = self.stem(images)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for level, stage in zip(LEVELS, self.stages, strict=True):
            features = stage(features)
            maps[level] = features
        pyramid: OrderedDict[str, Tensor] = self.fpn(maps)
        return pyramid


class SubsampledConv2d(nn.Conv2d):
    """A strided 1 x 1 convolution as one of every second pixel: the same numbers.

    oneDNN's gradient of the strided one corrupts the heap below 16 channels, with several threads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (n, d, h / stride, w / stride) of (n, c, h, w)."""
        rows, cols = self.stride
        return conv2d(input[:, :, ::rows, ::cols], self.weight, self.bias)


class Float32RPNHead(RPNHead):  # type: ignore[misc]
    """Torchvision's head with float32 results: boxes decoded in bfloat16 are pixels off."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness and box deltas of each level in float32."""
        objectness, deltas = super().forward(x)
        return [t.float() for t in objectness], [t.float() for t in deltas]


class Float32BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Torchvision's predictor with float32 results, for the same reason as `Float32RPNHead`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (n, classes) and box deltas (n, 4 * classes) in float32."""
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class Float32MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    """Torchvision's predictor with float32 results, so that the mask loss is summed in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Return mask logits (n, classes, 28, 28) in float32."""
        logits: Tensor = super().forward(input)
        return logits.float()


@dataclass(frozen=True)
class CompactSettings:
    """The architecture in plain numbers; a model file stores every one of them."""

    stem_width: int = 32
    widths: tuple[int, ...] = (48, 96, 160, 224)
    """Channels of the four stages."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of the four stages."""
    fpn_width: int = 64
    anchor_sizes: tuple[int, ...] = (14, 28, 56, 112)
    """Sides of the square anchor of each level, pixels of the resized image."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_width: int = 256
    mask_widths: tuple[int, ...] = (64, 64, 64)
    detections_per_image: int = 400


def build_compact_maskrcnn(classes: int, settings: CompactSettings, pretrained: bool = False) -> MaskRCNN:
    """Build the detector with random weights; it is a plain `MaskRCNN`, in training mode.

    `classes` counts the categories without background. The resize and the normalisation of
    `model.transform` are torchvision's defaults until a model card sets them. Raises SettingsError if
    pretrained, because there are no such weights.
    """
    if pretrained:
        raise SettingsError("compact-maskrcnn has no pretrained weights; train without pretrained")
    fpn_width, detections = settings.fpn_width, settings.detections_per_image
    anchors = AnchorGenerator(
        tuple((size,) for size in settings.anchor_sizes),
        (settings.aspect_ratios,) * len(settings.anchor_sizes),
    )
    model = MaskRCNN(
        CompactBackbone(settings.stem_width, settings.widths, settings.depths, fpn_width),
        rpn_anchor_generator=anchors,
        rpn_head=Float32RPNHead(fpn_width, anchors.num_anchors_per_location()[0]),
        box_roi_pool=_roi_align(7),
        box_head=TwoMLPHead(fpn_width * 7 * 7, settings.box_width),
        box_predictor=Float32BoxPredictor(settings.box_width, classes + 1),
        mask_roi_pool=_roi_align(14),
        mask_head=MaskRCNNHeads(fpn_width, settings.mask_widths, dilation=1, norm_layer=nn.BatchNorm2d),
        mask_predictor=Float32MaskPredictor(settings.mask_widths[-1], settings.mask_widths[-1], classes + 1),
        box_detections_per_img=detections,
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=800,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=2 * detections,
        rpn_fg_iou_thresh=0.6,  # one anchor size an octave: at torchvision's 0.7 most nuclei match none
        rpn_bg_iou_thresh=0.3,
        box_batch_size_per_image=128,
    )
    _initialise(model)
    return model


def _roi_align(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(
        featmap_names=list(LEVELS),
        output_size=size,
        sampling_ratio=1,  # a bin is about one cell of the map, and 2 made its backward pass 30 % of a step
        canonical_scale=ROI_CANONICAL_SCALE,
    )


def _stage(width_in: int, width_out: int, depth: int) -> nn.Sequential:
    conv = nn.Conv2d if width_in >= _SAFE_CHANNELS else SubsampledConv2d
    downsample = nn.Sequential(
        conv(width_in, width_out, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(width_out)
    )
    first = BasicBlock(width_in, width_out, stride=2, downsample=downsample)
    return nn.Sequential(first, *(BasicBlock(width_out, width_out) for _ in range(depth - 1)))


def _initialise(model: MaskRCNN) -> None:
    for module in model.backbone.stages.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)  # a block starts as the identity
    with torch.no_grad():  # nearly all anchors are background: start there (focal loss paper, section 4.1)
        model.rpn.head.cls_logits.bias.fill_(-4.0)
