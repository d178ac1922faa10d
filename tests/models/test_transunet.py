"""TransUNet against a plain one: residual blocks, attention and upsampling written out on our weights."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from segray.errors import SettingsError
from segray.models.semantic import build_semantic, recompute_blocks
from segray.models.transunet import TransUNet, TransUNetSettings
from tests.models.plain import Weights, image, lively, untouched

NARROW = TransUNetSettings(
    encoder="resnet18", width=24, layers=2, heads=3, mlp=40, grid=4, decoder_channels=(16, 8, 8, 4)
)


def transunet(settings: TransUNetSettings = NARROW) -> TransUNet:
    torch.manual_seed(0)
    model = TransUNet(3, 2, settings)
    lively(model)
    return model


class Plain:
    """The network of the paper's figure 1, on the weights of ours."""

    def __init__(self, model: TransUNet, heads: int) -> None:
        self.weights, self.heads = Weights(model.state_dict()), heads

    def residual(self, name: str, x: Tensor, stride: int) -> Tensor:
        """A basic block of He et al. 2016, figure 2, or the bottleneck of its figure 5."""
        weights = self.weights
        deep = f"{name}.conv3.weight" in weights.state
        first = (1, 0) if deep else (stride, 1)
        y = weights.norm(f"{name}.bn1", weights.convolution(f"{name}.conv1", x, *first)).clamp(min=0)
        y = weights.convolution(f"{name}.conv2", y, stride if deep else 1, 1)
        y = weights.norm(f"{name}.bn2", y)
        if deep:
            y = weights.norm(f"{name}.bn3", weights.convolution(f"{name}.conv3", y.clamp(min=0)))
        if f"{name}.downsample.0.weight" in weights.state:
            x = weights.norm(f"{name}.downsample.1", weights.convolution(f"{name}.downsample.0", x, stride))
        return (x + y).clamp(min=0)

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Softmax of scaled products, a head at a time: Vaswani et al. 2017, equation 1."""
        kernel, bias = self.weights(f"{name}.in_proj_weight"), self.weights(f"{name}.in_proj_bias")
        assert kernel is not None
        assert bias is not None
        q, k, v = (x @ kernel.T + bias).chunk(3, dim=-1)
        found = []
        for qh, kh, vh in zip(*(each.chunk(self.heads, dim=-1) for each in (q, k, v)), strict=True):
            found.append((qh @ kh.transpose(1, 2) / math.sqrt(qh.shape[-1])).softmax(-1) @ vh)
        return self.weights.linear(f"{name}.out_proj", torch.cat(found, dim=-1))

    def __call__(self, x: Tensor, blocks: tuple[int, ...], positions: Tensor) -> Tensor:
        """Logits; `positions`: (1, width, h / 16, w / 16)."""
        weights = self.weights
        x = weights.norm("encoder.bn1", weights.convolution("encoder.conv1", x, 2, 3)).clamp(min=0)
        maps = [x]
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage, count in enumerate(blocks):
            for block in range(count):
                x = self.residual(f"encoder.layer{stage + 1}.{block}", x, 2 if stage and not block else 1)
            maps.append(x)
        x = weights.convolution("transformer.embed", maps.pop()) + positions
        n, width, rows, cols = x.shape
        t = x.reshape(n, width, rows * cols).permute(0, 2, 1)
        for layer in range(NARROW.layers):
            at = f"transformer.layers.{layer}"
            t = t + self.attention(f"{at}.self_attn", weights.layer_norm(f"{at}.norm1", t))
            hidden = functional.gelu(weights.linear(f"{at}.linear1", weights.layer_norm(f"{at}.norm2", t)))
            t = t + weights.linear(f"{at}.linear2", hidden)
        t = weights.layer_norm("transformer.norm", t)
        x = t.permute(0, 2, 1).reshape(n, width, rows, cols)
        x = weights.norm("neck.1", weights.convolution("neck.0", x, padding=1)).clamp(min=0)
        for block in range(4):
            x = torch.nn.UpsamplingBilinear2d(scale_factor=2)(x)
            x = torch.cat([x, maps.pop()], dim=1) if maps else x
            for part in (0, 1):
                x = weights.convolution(f"decoder.{block}.{part}.0", x, padding=1)
                x = weights.norm(f"decoder.{block}.{part}.1", x).clamp(min=0)
        return weights.convolution("head", x, padding=1)


@pytest.mark.parametrize(("encoder", "blocks"), [("resnet18", (2, 2, 2)), ("resnet50", (3, 4, 6))])
def test_it_is_the_papers(encoder: Any, blocks: tuple[int, ...]) -> None:
    model = transunet(TransUNetSettings(**{**asdict(NARROW), "encoder": encoder})).eval()
    plain = Plain(model, NARROW.heads)
    positions = plain.weights("transformer.positions")
    assert positions is not None
    with torch.no_grad():
        ours, theirs = model(image(64, 64)), plain(image(64, 64), blocks, positions)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert plain.weights.unread() == []


def test_position_embeddings_are_interpolated() -> None:
    """A grid twice as fine: linear embeddings stay linear away from the border."""
    model = transunet()
    own = model.transformer.positions
    assert model.transformer._positions(4, 4) is own
    with torch.no_grad():
        own.copy_(torch.arange(4.0).expand_as(own))
    fine = model.transformer._positions(8, 16)
    assert fine.shape == (1, NARROW.width, 8, 16)
    torch.testing.assert_close(fine[0, 0, 0, 2:14], torch.arange(12.0) / 4 + 0.125)


@pytest.mark.parametrize("size", [(1, 1), (33, 9), (70, 48)])
def test_any_size_trains_every_parameter(size: tuple[int, int]) -> None:
    model = build_semantic("transunet", 4, 2, asdict(NARROW))
    logits = model(image(*size, bands=4))
    assert logits.shape == (2, 2, *size)
    logits.square().mean().backward()
    if min(size) > 32:
        assert untouched(model) == []
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_recomputing_changes_nothing() -> None:
    settings = asdict(NARROW) | {"dropout": 0.0}
    ours, saving = (build_semantic("transunet", 3, 2, settings) for _ in range(2))
    saving.load_state_dict(ours.state_dict())
    recompute_blocks(saving)
    for model in (ours, saving):
        model(image(32, 48)).square().mean().backward()
    for (name, one), other in zip(saving.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, kept), same in zip(saving.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(kept, same, msg=name)


def test_pretrained_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that torchvision gives, here random ones: there is no network."""
    theirs, build = torchvision.models.resnet18(), torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights=None: theirs if weights else build())
    model: Any = build_semantic("transunet", 4, 1, asdict(NARROW), pretrained=True).network
    assert torch.equal(model.encoder.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)
    torch.testing.assert_close(model.encoder.conv1.weight[:, 3], theirs.conv1.weight.mean(1) * 3 / 4)
    assert torch.equal(build_semantic_root(theirs, 3), theirs.conv1.weight)


def build_semantic_root(theirs: Any, bands: int) -> Tensor:
    model: Any = build_semantic("transunet", bands, 1, asdict(NARROW), pretrained=True).network
    assert torch.equal(model.encoder.bn1.running_var, theirs.bn1.running_var)
    weight: Tensor = model.encoder.conv1.weight
    return weight


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder": "vgg16"}, "encoder must be one of resnet18, resnet34, resnet50, resnet101, not 'vgg16'"),
        ({"layers": 0}, "layers must be a whole number from 1, not 0"),
        ({"heads": 5}, "heads must divide width; 5 does not divide 768"),
        ({"dropout": 1}, "dropout must be a number from 0 to below 1, not 1"),
        ({"decoder_channels": [8, 8]}, "decoder_channels must be four whole numbers from 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=f"transunet: {words}") as raised:
        TransUNetSettings(**settings)
    assert len(raised.value.lines) == 1


def test_bfloat16_in_evaluation() -> None:
    """torch's fused layers are not used under autocast: the same network in a narrower type."""
    model = transunet().eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wide = model(image(64, 64))
        with torch.autocast("cpu", torch.bfloat16):
            narrow = model(image(64, 64)).float()
    assert float((narrow - wide).abs().mean() / wide.abs().mean()) < 0.05
