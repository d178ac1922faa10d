"""Mask R-CNN on encoders of timm: torchvision's network where there is one, and annotate's fast path."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from segray.annotate.detector import MaskRCNNDetector, is_plain_maskrcnn
from segray.errors import SettingsError
from segray.models.architectures import complete_settings, parsed
from segray.models.fuse_batchnorm import fold_batch_norms
from segray.models.modelfile import ModelCard, build_model, load_model_file, model_bytes
from segray.models.pretrained import packaged_state
from segray.models.timm_encoder import timm_encoder
from segray.models.torchvision_files import maskrcnn_from

NARROW = {
    "head_norm": "batch", "fpn_width": 16, "anchor_sizes": (16, 32, 64, 128), "proposals": 20,
    "box_width": 32, "mask_widths": (16,), "sampling_ratio": 1,
}  # fmt: skip


def card(arch: str, **settings: Any) -> ModelCard:
    return ModelCard(
        arch, complete_settings(arch, settings), {1: "a", 2: "b"}, (0.5,) * 3, (0.5,) * 3, 96, 96
    )


def trained_a_little(network: nn.Module) -> nn.Module:
    """Return it with statistics and weights of its norms that are not those it begins with."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
        elif name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    return network


def test_on_resnet101_it_is_the_network_of_torchvision() -> None:
    """Their ResNets have the same parameters under the same names, and give the same detections."""
    torch.manual_seed(0)
    theirs = build_model(card("maskrcnn_resnet101_fpn"))
    for name, parameter in theirs.backbone.named_parameters():
        if name.endswith("bn3.weight"):
            parameter.data.mul_(0.2)  # random weights grow through 101 layers, beyond any score
    ours = build_model(card("maskrcnn:resnet101", detections_per_image=5))
    ours.load_state_dict(theirs.state_dict())
    picture = torch.rand(3, 96, 80, generator=torch.Generator().manual_seed(1))
    for each in (theirs, ours):
        each.rpn._post_nms_top_n, each.rpn._pre_nms_top_n = ({"training": 9, "testing": 9},) * 2
        each.roi_heads.detections_per_img = 5
    with torch.inference_mode():
        (expected,), (found,) = theirs.eval()([picture]), ours.eval()([picture])
    assert len(expected["scores"]) > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_state_dict_of_torchvision_on_resnet101_is_read() -> None:
    norm = nn.BatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name="resnet101", weights=None, norm_layer=norm)
    model = maskrcnn_from("x.pth", MaskRCNN(backbone, num_classes=3).state_dict())
    assert len(model.backbone.body.layer3) == 23
    with torch.device("meta"):
        again = build_model(card("maskrcnn_resnet101_fpn"))
    assert {name: each.shape for name, each in again.state_dict().items()} == {
        name: each.shape for name, each in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("encoder", "norm"),
    [("efficientnet-lite0", "batch"), ("mobilenetv3_small_050", "frozen"), ("resnet18", "frozen")],
)
def test_every_norm_of_the_encoder_is_folded(encoder: str, norm: Any) -> None:
    network = trained_a_little(timm_encoder(encoder, norm)).eval().double()
    folded = copy.deepcopy(network)
    fold_batch_norms(folded)
    assert not [name for name, each in folded.named_modules() if hasattr(each, "running_mean")]
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        for ours, theirs in zip(folded(image), network(image), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_annotate_takes_the_fast_path(precision: Any) -> None:
    torch.manual_seed(2)
    kept = card("maskrcnn:efficientnet-lite0", **NARROW)
    network = trained_a_little(build_model(kept)).eval()
    loaded = load_model_file(model_bytes(kept, network.state_dict(), half=False)).module
    assert is_plain_maskrcnn(loaded)
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    (found,) = MaskRCNNDetector(loaded, torch.device("cpu"), precision, 0.05).detect([picture])
    with torch.inference_mode():
        (expected,) = network([torch.from_numpy(picture).permute(2, 0, 1).float() / 255])
    if precision == "fp32":
        np.testing.assert_allclose(found.boxes, expected["boxes"], rtol=1e-3, atol=1e-3)
    assert len(found.scores) > 0


def test_pretrained_weights_are_those_of_the_package() -> None:
    state = packaged_state("efficientnet-lite0").state
    encoder = timm_encoder("efficientnet-lite0", "frozen", pretrained=True).state_dict()
    assert len(encoder) > 200
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.items())


@pytest.mark.parametrize(
    ("arch", "settings", "message"),
    [
        ("maskrcnn:vit_tiny_patch16_224", {}, "vit_tiny_patch16_224: gives no maps .* at strides 4, 8, 16"),
        ("maskrcnn:resnet18", {"anchor_sizes": [8, 16]}, "anchor_sizes are of 2 levels"),
        ("maskrcnn:resnet18", {"norm": "none"}, "norm is 'none'"),
        ("maskrcnn:resnet18", {"head_norm": "frozen"}, "head_norm is 'frozen'"),
    ],
)
def test_what_does_not_fit_is_told(arch: str, settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(SettingsError, match=message):
        build_model(card(arch, **settings))


def test_encoders_have_their_names_in_timm() -> None:
    for encoder in ("efficientnet-lite2", "mobilenetv3_large_100", "resnet50.a1_in1k"):
        assert parsed(f"maskrcnn:{encoder}") == ("maskrcnn", encoder)
    with pytest.raises(SettingsError, match="maskrcnn has no encoder 'resnet5'; did you mean"):
        parsed("maskrcnn:resnet5")
