"""The Attention U-Net against its paper's formulas, written out on the weights of ours."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segray.errors import SettingsError
from segray.models.attention_unet import AttentionUNet, AttentionUNetSettings
from segray.models.semantic import build_semantic, recompute_blocks
from tests.models.plain import Weights, image, lively, untouched

NARROW = AttentionUNetSettings(width=4, depth=3)


def attention_unet() -> AttentionUNet:
    torch.manual_seed(0)
    model = AttentionUNet(3, 2, NARROW)
    lively(model)
    return model


def plain(weights: Weights, x: Tensor) -> Tensor:
    """Figures 1 and 2 of the paper, equations 1 and 2, on sides that can be halved three times."""

    def twice(name: str, x: Tensor) -> Tensor:
        for number in (0, 3):
            x = weights.convolution(f"{name}.{number}", x, padding=1)
            x = weights.norm(f"{name}.{number + 1}", x).clamp(min=0)
        return x

    def gated(name: str, x: Tensor, g: Tensor) -> Tensor:
        q = weights.convolution(f"{name}.of_skip", x, stride=2) + weights.convolution(f"{name}.of_signal", g)
        q = weights.convolution(f"{name}.psi", q.clamp(min=0))
        alpha = 1 / (1 + torch.exp(-q))
        return x * functional.interpolate(alpha, scale_factor=2, mode="bilinear", align_corners=False)

    def doubled(name: str, x: Tensor) -> Tensor:
        kernel, bias = weights(f"{name}.weight"), weights(f"{name}.bias")
        assert kernel is not None
        return functional.conv_transpose2d(x, kernel, bias, stride=2)

    x1 = twice("down.0", x)
    x2 = twice("down.1", functional.max_pool2d(x1, 2))
    x3 = twice("down.2", functional.max_pool2d(x2, 2))
    x4 = twice("bottom", functional.max_pool2d(x3, 2))
    y3 = twice("up.0", torch.cat([gated("gates.0", x3, x4), doubled("enlarge.0", x4)], dim=1))
    y2 = twice("up.1", torch.cat([gated("gates.1", x2, y3), doubled("enlarge.1", y3)], dim=1))
    y1 = twice("up.2", torch.cat([x1, doubled("enlarge.2", y2)], dim=1))
    return weights.convolution("head", y1)


@pytest.mark.parametrize("size", [(16, 24), (40, 8)])
def test_it_is_the_papers(size: tuple[int, int]) -> None:
    model = attention_unet().eval()
    weights = Weights(model.state_dict())
    with torch.no_grad():
        ours, theirs = model(image(*size)), plain(weights, image(*size))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert weights.unread() == []


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3), (33, 9), (37, 51)])
def test_any_size_trains(size: tuple[int, int]) -> None:
    model = build_semantic("attention_unet", 4, 2, {"width": 4, "depth": 3})
    logits = model(image(*size, bands=4))
    assert logits.shape == (2, 2, *size)
    logits.square().mean().backward()
    if min(size) > 16:
        assert untouched(model) == []
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_recomputing_changes_nothing() -> None:
    ours, saving = (build_semantic("attention_unet", 3, 2, {"width": 4, "depth": 2}) for _ in range(2))
    saving.load_state_dict(ours.state_dict())
    recompute_blocks(saving)
    for model in (ours, saving):
        model(image(16, 20)).square().mean().backward()
    for (name, one), other in zip(saving.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_what_it_does_not_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="attention_unet: padding must be same"):
        build_semantic("attention_unet", 3, 1, {"padding": "valid"})
    with pytest.raises(SettingsError, match="attention_unet: width must be a whole number from 1"):
        AttentionUNetSettings(width=0)
    with pytest.raises(SettingsError, match="attention_unet has no pretrained weights"):
        build_semantic("attention_unet", 3, 1, {}, pretrained=True)
