"""torchvision's Mask R-CNN on a ResNet with a feature pyramid, for custom categories."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, resnet50, resnet101
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from segray.models.maskrcnn import Float32BoxPredictor, Float32MaskPredictor, Float32RPNHead


@dataclass(frozen=True)
class ResNetSettings:
    """Settings of the architecture; a model file stores all of them."""

    norm: Literal["batch", "frozen"] = "batch"
    """Norm of the ResNet: frozen statistics suit small batches, but only with pretrained weights."""
    trainable_layers: int = 5
    """Trainable layers of the ResNet, from its end; the others are frozen. Torchvision: 3 if pretrained."""
    detections_per_image: int = 100


def build_resnet50(classes: int, settings: ResNetSettings, pretrained: bool = False) -> MaskRCNN:
    """Build `maskrcnn_resnet50_fpn` (He et al. 2017) in training mode, with random weights.

    `classes` counts the categories without background. pretrained: the ResNet has ImageNet's weights. Raises
    ValueError for settings out of range, OSError where the weights cannot be fetched.
    """
    return _begun(_built("resnet50", classes, settings), pretrained)


def build_resnet101(classes: int, settings: ResNetSettings, pretrained: bool = False) -> MaskRCNN:
    """Build the same network on a ResNet-101; torchvision has the parts, but no function of its own."""
    return _begun(_built("resnet101", classes, settings), pretrained, resnet101, ResNet101_Weights)


def _built(resnet: str, classes: int, settings: ResNetSettings) -> MaskRCNN:
    if settings.norm not in ("batch", "frozen"):
        raise ValueError(f"norm is {settings.norm!r}, but must be batch or frozen")
    backbone = resnet_fpn_backbone(
        backbone_name=resnet,
        weights=None,
        norm_layer=FrozenBatchNorm2d if settings.norm == "frozen" else nn.BatchNorm2d,
        trainable_layers=settings.trainable_layers,
    )
    model = MaskRCNN(backbone, classes + 1, box_detections_per_img=settings.detections_per_image)
    return _in_float32(model, classes, rpn_depth=1)


def build_resnet50_v2(classes: int, settings: ResNetSettings, pretrained: bool = False) -> MaskRCNN:
    """Build `maskrcnn_resnet50_fpn_v2` (Li et al. 2021), which has batch norm in its heads too.

    Raises ValueError for settings out of range, OSError where the weights cannot be fetched.
    """
    if settings != ResNetSettings(detections_per_image=settings.detections_per_image):
        raise ValueError("norm and trainable_layers are those of maskrcnn_resnet50_fpn alone")
    model = maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=classes + 1,
        box_detections_per_img=settings.detections_per_image,
    )
    return _begun(_in_float32(model, classes, rpn_depth=2), pretrained)


def _begun(
    model: MaskRCNN, pretrained: bool, resnet: Any = resnet50, weights: Any = ResNet50_Weights
) -> MaskRCNN:
    """Return the model, with torchvision's ImageNet weights in its ResNet if asked; torch.hub caches them."""
    if pretrained:
        state = resnet(weights=weights.IMAGENET1K_V1).state_dict()
        body = model.backbone.body
        body.load_state_dict({name: state[name] for name in body.state_dict()})
    return model


def _in_float32(model: MaskRCNN, classes: int, *, rpn_depth: int) -> MaskRCNN:
    """Return the network with heads whose results are float32 in any precision (see `Float32RPNHead`)."""
    width = model.backbone.out_channels
    anchors = model.rpn.anchor_generator.num_anchors_per_location()[0]
    heads = model.roi_heads
    model.rpn.head = Float32RPNHead(width, anchors, conv_depth=rpn_depth)
    heads.box_predictor = Float32BoxPredictor(heads.box_predictor.cls_score.in_features, classes + 1)
    mask = heads.mask_predictor.conv5_mask
    heads.mask_predictor = Float32MaskPredictor(mask.in_channels, mask.out_channels, classes + 1)
    return model
