"""Mask R-CNN on a ResNet-50: torchvision's network and figures, in a file that `annotate` loads."""

from dataclasses import asdict

import pytest
import torch
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from segray.errors import SettingsError
from segray.models.modelfile import ModelCard, build_model, load_model_file, model_bytes
from segray.models.resnetmaskrcnn import ResNetSettings


def card(arch: str, **settings: object) -> ModelCard:
    complete = asdict(ResNetSettings()) | settings
    return ModelCard(arch, complete, {1: "a", 2: "b"}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 96, 96)


@pytest.mark.parametrize(
    ("arch", "oracle"),
    [
        ("maskrcnn_resnet50_fpn", maskrcnn_resnet50_fpn),
        ("maskrcnn_resnet50_fpn_v2", maskrcnn_resnet50_fpn_v2),
    ],
)
def test_it_is_the_network_of_torchvision(arch: str, oracle: type[MaskRCNN]) -> None:
    torch.manual_seed(0)
    ours = build_model(card(arch))
    theirs = oracle(weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=96)
    theirs.load_state_dict(ours.state_dict())
    loaded = load_model_file(model_bytes(card(arch), ours.state_dict(), half=False))
    for each in (theirs, loaded.module):
        each.rpn._post_nms_top_n = {"training": 9, "testing": 9}  # not 1,000: that takes a minute
    picture = torch.rand(3, 96, 80, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (expected,), (found,) = theirs.eval()([picture]), loaded.module([picture])
    assert expected.keys() == found.keys()
    assert len(expected["scores"]) > 0
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_frozen_norms_and_layers_are_not_trained() -> None:
    with torch.device("meta"):
        model = build_model(card("maskrcnn_resnet50_fpn", norm="frozen", trainable_layers=3))
    trained = {name.split(".")[2] for name, each in model.named_parameters()
               if each.requires_grad and name.startswith("backbone.body")}  # fmt: skip
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any("bn" in name for name, _ in model.backbone.body.named_parameters())


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("maskrcnn_resnet50_fpn", {"norm": "none"}),
        ("maskrcnn_resnet50_fpn", {"trainable_layers": 9}),
        ("maskrcnn_resnet50_fpn_v2", {"norm": "frozen"}),
    ],
)
def test_settings_out_of_range_are_told(arch: str, settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=f"settings that {arch} does not take"):
        build_model(card(arch, **settings))
