"""SegNet against the paper's, written out layer by layer, and VGG16's weights in its encoder."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VGG16_BN_Weights

from segray.errors import SettingsError
from segray.models.segnet import SegNet, SegNetSettings
from segray.models.semantic import build_semantic, recompute_blocks
from tests.models.plain import Weights, image, lively, untouched

NARROW = SegNetSettings(width=4)


def segnet(bands: int = 3) -> SegNet:
    torch.manual_seed(0)
    model = SegNet(bands, 2, NARROW)
    lively(model)
    return model


def plain_segnet(weights: Weights, x: Tensor) -> Tensor:
    """The paper's figure 2: 13 convolutions down, 13 up, and the places of the maxima in between."""

    def convolved(stage: str, count: int, x: Tensor) -> Tensor:
        for number in range(count):
            x = weights.convolution(f"{stage}.{3 * number}", x, padding=1)
            x = weights.norm(f"{stage}.{3 * number + 1}", x).clamp(min=0)
        return x

    def unpooled(x: Tensor, places: Tensor, height: int, width: int) -> Tensor:
        flat = torch.zeros(*x.shape[:2], height * width)
        return flat.scatter(2, places.flatten(2), x.flatten(2)).reshape(*x.shape[:2], height, width)

    places = []
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        x = convolved(f"encoder.{stage}", count, x)
        size = x.shape[-2:]
        x, at = functional.max_pool2d(x, 2, return_indices=True)
        places.append((at, *size))
    for stage, count in enumerate((3, 3, 3, 2, 1)):
        x = convolved(f"decoder.{stage}", count, unpooled(x, *places.pop()))
    return weights.convolution("head", x, padding=1)


@pytest.mark.parametrize("size", [(32, 64), (96, 32)])
def test_it_is_the_papers(size: tuple[int, int]) -> None:
    model, weights = segnet(bands=5).eval(), Weights({})
    weights = Weights(model.state_dict())
    with torch.no_grad():
        expected = plain_segnet(weights, image(*size, bands=5))
        torch.testing.assert_close(model(image(*size, bands=5)), expected, rtol=1e-3, atol=1e-4)
    assert weights.unread() == []


def test_parameters_are_those_of_the_paper() -> None:
    """29.4 million, as it says in its table 4, at CamVid's 11 classes."""
    with torch.device("meta"):
        model = SegNet(3, 11, SegNetSettings())
    assert sum(each.numel() for each in model.parameters()) == 29_449_355


def test_a_map_is_carried_by_its_maxima_alone() -> None:
    """After unpooling only the places of the maxima are not 0."""
    model = segnet().train()
    seen = []
    model.decoder[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(image(32, 32))
    blocks = functional.unfold(seen[0][0].unsqueeze(1), 2, stride=2)
    assert int((blocks != 0).sum(1).max()) == 1


@pytest.mark.parametrize("size", [(1, 1), (33, 9), (64, 71)])
def test_any_size_trains_every_parameter(size: tuple[int, int]) -> None:
    model = build_semantic("segnet", 4, 2, {"width": 4})
    logits = model(image(*size, bands=4))
    assert logits.shape == (2, 2, *size)
    logits.square().mean().backward()
    if min(size) > 8:
        assert untouched(model) == []
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_recomputing_changes_nothing() -> None:
    plain, saving = (build_semantic("segnet", 3, 2, {"width": 4}) for _ in range(2))
    saving.load_state_dict(plain.state_dict())
    recompute_blocks(saving)
    for model in (plain, saving):
        model(image(32, 64)).square().mean().backward()
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, kept), same in zip(saving.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(kept, same, msg=name)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_pretrained_encoder_is_vgg16(bands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as torchvision publishes it, of random numbers: there is no network here."""
    names = [
        (f"features.{number}.{part}", shape)
        for number, width_in, width in vgg_convolutions()
        for number, part, shape in (
            (number, "weight", (width, width_in, 3, 3)),
            (number, "bias", (width,)),
            *((number + 1, part, (width,)) for part in ("weight", "bias", "running_mean", "running_var")),
        )
    ]
    made = {name: torch.rand(shape) for name, shape in names} | {"classifier.0.weight": torch.rand(3, 3)}
    monkeypatch.setattr(type(VGG16_BN_Weights.IMAGENET1K_V1), "get_state_dict", lambda *_, **__: made)
    model: Any = build_semantic("segnet", bands, 1, {}, pretrained=True)
    first = model.network.encoder[0][0].weight
    red, expected = made["features.0.weight"][:, 0], made["features.0.weight"]
    assert torch.equal(first, expected) if bands == 3 else first.shape[1] == bands
    if bands == 4:
        torch.testing.assert_close(first[:, 0], red * 3 / 4)
        torch.testing.assert_close(first[:, 3], expected.mean(1) * 3 / 4)
    if bands == 1:
        torch.testing.assert_close(first[:, 0], expected.sum(1))
    assert torch.equal(model.network.encoder[4][6].weight, made["features.40.weight"])
    assert torch.equal(model.network.encoder[4][7].running_var, made["features.41.running_var"])


def vgg_convolutions() -> list[tuple[int, int, int]]:
    """Index, channels in and out of each convolution in torchvision's `features`; 2 layers more to a norm
    and a ReLU, 1 to a pooling."""
    found, index, before = [], 0, 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width == 0:
            index += 1
            continue
        found.append((index, before, width))
        index, before = index + 3, width
    return found


def test_pretrained_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(SettingsError, match="those of VGG16, whose width is 64"):
        build_semantic("segnet", 3, 1, {"width": 8}, pretrained=True)
    with pytest.raises(SettingsError, match="segnet: width must be a whole number from 1, not 0"):
        SegNetSettings(width=0)


def test_channels_last_and_bfloat16() -> None:
    model = segnet().eval().to(memory_format=torch.channels_last)
    pixels = image(32, 64).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        narrow = model(pixels)
    assert narrow.dtype == torch.bfloat16
    assert narrow.is_contiguous(memory_format=torch.channels_last)
    assert narrow.isfinite().all()
    assert isinstance(model, nn.Module)
