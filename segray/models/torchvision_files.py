"""State dicts of torchvision's Mask R-CNN: fetched, read without running code, loaded into their network."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from segray.errors import SettingsError
from segray.models.catalog import bundled
from segray.models.checks import unwrapped, weights_in

PUBLISHED = {
    "coco-v2": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    "coco-v1": MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
}
COCO_LABELS = 91
"""Outputs of a network for COCO: background and ids 1 to 90, ten of which have no category."""
NETWORK_TIMEOUT_S = 10.0
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits.weight"


def fetch(name: str) -> Path:
    """Return the file of the published weights `name`, from torch's cache (TORCH_HOME) or else downloaded to
    it.

    Raises SettingsError where it cannot be fetched.
    """
    url: str = PUBLISHED[name].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)  # torch.hub would wait for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError, EOFError) as error:
        raise SettingsError(
            f"weights {name}: cannot be fetched from {url} ({error})",
            f"use a bundled model ({', '.join(bundled())}), or put the file at {path}",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return path


def maskrcnn_from(name: str, checkpoint: Any) -> MaskRCNN:
    """Return torchvision's Mask R-CNN with the weights of a checkpoint; the keys decide whether it is `_v2`.

    Raises SettingsError for what is not a dict, and where the weights belong to another network.
    """
    if not isinstance(checkpoint, dict):
        raise SettingsError(f"weights {name}: holds a {type(checkpoint).__name__}, not a state dict")
    state = _state_dict(checkpoint)
    if _CLASSES not in state or _MASKS not in state:
        keys = ", ".join(str(key)[:80] for key in list(state or checkpoint)[:3])
        raise SettingsError(
            f"weights {name}: not torchvision's Mask R-CNN; its keys begin with {keys or 'none'}"
        )
    weights_in(f"weights {name}", state)
    model = _network(state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        arch = "maskrcnn_resnet50_fpn" + _version(state)
        misfit = str(error).splitlines()[1].strip()[:200]  # the first that it lists
        raise SettingsError(f"weights {name}: do not fit torchvision's {arch}: {misfit}") from error
    return model.eval()


def categories_of(model: MaskRCNN) -> dict[int, str]:
    """Return the names of the network's labels: COCO's where it has 91 outputs, else the numbers as text."""
    outputs: int = model.roi_heads.box_predictor.cls_score.out_features
    names = PUBLISHED["coco-v2"].meta["categories"] if outputs == COCO_LABELS else map(str, range(outputs))
    return {label: each for label, each in enumerate(names) if label > 0 and each != "N/A"}


def _state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state = unwrapped(checkpoint)
    return {_bare(str(key)): value for key, value in state.items() if isinstance(value, Tensor)}


def _bare(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _version(state: Mapping[str, Tensor]) -> str:
    return "" if "roi_heads.box_head.fc6.weight" in state else "_v2"


def _network(state: Mapping[str, Tensor]) -> MaskRCNN:
    classes = state[_CLASSES].shape[0]
    if _version(state):
        return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=classes)
    if any(key.endswith("num_batches_tracked") for key in state):
        return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    model = MaskRCNN(backbone, num_classes=classes)
    overwrite_eps(model, 0.0)  # as torchvision does for COCO's weights, which frozen statistics come from
    return model
