"""Networks for `--weights python:tests.selection.models:NAME`, quick and deterministic."""

import os
import time

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from segray.models.maskrcnn import CompactSettings, build_compact_maskrcnn


def compact() -> MaskRCNN:
    """A Mask R-CNN with drawn weights that finds something, of scores around 0.5.

    The environment may slow it down, so that it can be killed in the middle; that changes no result.
    """
    torch.manual_seed(3)
    settings = CompactSettings(
        stem_width=8, widths=(8, 12, 16, 24), fpn_width=16, box_width=32, mask_widths=(16,),
        detections_per_image=30,
    )  # fmt: skip
    model = build_compact_maskrcnn(2, settings)
    model.transform.min_size, model.transform.max_size = (64,), 128
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(9)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(30)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(90)
        model.rpn.head.cls_logits.weight.mul_(300)
        model.rpn.head.bbox_pred.weight.mul_(30)
    model.categories = {1: "one", 2: "two"}
    if pause := float(os.environ.get("SLOW_MODEL_S", "0")):
        model.backbone.register_forward_hook(lambda *_: time.sleep(pause))
    return model.eval()


class Columns(nn.Module):
    """Two classes: the redder a pixel, the more it is of class 1; the left half is never sure."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = {0: "background", 1: "red"}
        self.encoder = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in 0..1 to logits (n, 2, h, w)."""
        self.encoder(images)
        red = 20 * images[:, :1] - 10
        red[..., : red.shape[-1] // 2] = 0
        return torch.cat([-red, red], dim=1)


def columns() -> Columns:
    torch.manual_seed(0)
    return Columns()
