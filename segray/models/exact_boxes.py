"""torchvision's Mask R-CNN made exact where it rounds boxes, by hooks that its copies keep."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign

try:
    from torchvision.ops.poolers import _setup_scales
except ImportError:  # another torchvision: only very narrow images lose detections
    _setup_scales = None


def keep_boxes_in_float32(model: MaskRCNN) -> None:
    """Convert to float32 the heads' outputs, and the anchors, which autocast leaves in low precision.

    With its 8 bits bfloat16 puts an anchor near column 1000 four pixels off, and scores into steps of 0.004.
    """
    for head in (model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        head.register_forward_hook(lambda _module, _inputs, output: _float32(output))
    model.rpn.anchor_generator.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0], [_shape_only(each) for each in inputs[1]])
    )


def keep_scales(model: MaskRCNN) -> None:
    """Compute the scales of RoIAlign from each batch with its padding.

    torchvision infers them once, from its first images without it: if these are narrow, every later region is
    read beside its place.
    """
    model.roi_heads.register_forward_pre_hook(partial(_set_scales, model.transform.size_divisible))


def _float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_float32(each) for each in output)


def _shape_only(feature: Tensor) -> Tensor:
    """Return all that the anchor generator reads of a feature map, at no cost: shape and device, float32."""
    return torch.empty((), device=feature.device).expand(feature.shape)


def _set_scales(step: int, heads: Any, inputs: tuple[Any, ...]) -> None:
    features, _, sizes = inputs[:3]
    rows, cols = (-(-max(sides) // step) * step for sides in zip(*sizes, strict=True))
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        if isinstance(pool, MultiScaleRoIAlign) and _setup_scales is not None:
            maps = [each for name, each in features.items() if name in pool.featmap_names]
            pool.scales, pool.map_levels = _setup_scales(
                maps, [(rows, cols)], pool.canonical_scale, pool.canonical_level
            )
