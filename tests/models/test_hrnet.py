"""HRNetV2: its published size, its head written out on timm's backbone, any size."""

from typing import Any

import pytest
import timm
import torch
from torch.nn.functional import interpolate

from segray.errors import SettingsError
from segray.models.semantic import build_semantic
from tests.models.plain import Weights, image, lively, untouched

SMALL = "hrnet:w18_small"


def test_parameters_are_those_of_the_paper() -> None:
    """Its table 3: HRNetV2-W48 with the 19 classes of Cityscapes has 65.9 million."""
    with torch.device("meta"):
        model = build_semantic("hrnet:w48", 3, 19, {})
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(65.9e6, rel=1e-3)


def test_the_head_is_the_papers() -> None:
    model: Any = lively(build_semantic(SMALL, 3, 2, {})).eval()
    encoder = timm.create_model(
        "hrnet_w18_small", pretrained=False, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
    ).eval()
    encoder.load_state_dict(model.network.encoder.state_dict())
    weights = Weights(model.network.head.state_dict())
    with torch.no_grad():
        x1, x2, x3, x4 = encoder(image(64, 96))
        sides: dict[str, Any] = {"mode": "bilinear", "align_corners": False}
        scaled = [interpolate(x, scale_factor=s, **sides) for x, s in ((x2, 2), (x3, 4), (x4, 8))]
        y = weights.norm("1", weights.convolution("0", torch.cat([x1, *scaled], dim=1))).clamp(min=0)
        y = interpolate(weights.convolution("3", y), scale_factor=4, **sides)
        torch.testing.assert_close(model(image(64, 96)), y, rtol=1e-3, atol=1e-4)
    assert weights.unread() == []


def test_any_size_trains_every_parameter() -> None:
    model = build_semantic(SMALL, 4, 2, {})
    logits = model(image(70, 33, bands=4))
    assert logits.shape == (2, 2, 70, 33)
    logits.square().mean().backward()
    assert untouched(model) == []
    assert model(image(1, 1, bands=4)).shape == (2, 2, 1, 1)


def test_wrong_names() -> None:
    with pytest.raises(SettingsError, match="architecture 'hrnet' needs an encoder, such as hrnet:w18"):
        build_semantic("hrnet", 3, 1, {})
    with pytest.raises(SettingsError, match=r"hrnet has no encoder 'w81'; did you mean .*w18"):
        build_semantic("hrnet:w81", 3, 1, {})
    with pytest.raises(SettingsError, match="hrnet:w18 has no setting width"):
        build_semantic("hrnet:w18", 3, 1, {"width": 3})
