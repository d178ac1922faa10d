"""The U-Net against the plain one of tutorials, the paper's figure, and loops."""

import json
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.unet import (
    UNet,
    UNetSettings,
    valid_input_size,
    valid_margin,
    valid_output_size,
)
from tests.models.overlap_tile import overlap_tile

SMALL = UNetSettings(width=8, depth=2)
VALID = replace(SMALL, padding="valid")


class TutorialUNet(nn.Module):
    """64-128-256-512-1024 written out, of which `width` is the 64; `padding` 1, or 0 for the paper's."""

    def __init__(self, bands: int, outputs: int, width: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.inc = self.twice(bands, width)
        self.down1 = self.twice(width, 2 * width)
        self.down2 = self.twice(2 * width, 4 * width)
        self.down3 = self.twice(4 * width, 8 * width)
        self.down4 = self.twice(8 * width, 16 * width)
        self.up1 = nn.ConvTranspose2d(16 * width, 8 * width, 2, stride=2)
        self.conv1 = self.twice(16 * width, 8 * width)
        self.up2 = nn.ConvTranspose2d(8 * width, 4 * width, 2, stride=2)
        self.conv2 = self.twice(8 * width, 4 * width)
        self.up3 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.conv3 = self.twice(4 * width, 2 * width)
        self.up4 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.conv4 = self.twice(2 * width, width)
        self.outc = nn.Conv2d(width, outputs, 1)
        self.pool = nn.MaxPool2d(2)

    def twice(self, width_in: int, width_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, padding=self.padding),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=self.padding),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
        )

    def merge(self, up: Tensor, skip: Tensor, crop: int) -> Tensor:
        """`crop`: the paper's figure says how much of each side of the skip goes."""
        if self.padding:
            missing_rows = skip.size(2) - up.size(2)
            missing_cols = skip.size(3) - up.size(3)
            up = nn.functional.pad(up, [0, missing_cols, 0, missing_rows])
        else:
            skip = skip[:, :, crop:-crop, crop:-crop]
        return torch.cat([skip, up], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x3 = self.down2(self.pool(x2))
        x4 = self.down3(self.pool(x3))
        x5 = self.down4(self.pool(x4))
        x = self.conv1(self.merge(self.up1(x5), x4, 4))  # 64 to 56
        x = self.conv2(self.merge(self.up2(x), x3, 16))  # 136 to 104
        x = self.conv3(self.merge(self.up3(x), x2, 40))  # 280 to 200
        x = self.conv4(self.merge(self.up4(x), x1, 88))  # 568 to 392
        logits: Tensor = self.outc(x)
        return logits


def copied(model: UNet, tutorial: TutorialUNet) -> None:
    """Give the tutorial's network the weights of ours, block by block."""
    pairs: list[tuple[Any, Any]] = [
        *zip((tutorial.inc, tutorial.down1, tutorial.down2, tutorial.down3), model.down, strict=True),
        (tutorial.down4, model.bottom),
        *zip((tutorial.up1, tutorial.up2, tutorial.up3, tutorial.up4), model.enlarge, strict=True),
        *zip((tutorial.conv1, tutorial.conv2, tutorial.conv3, tutorial.conv4), model.up, strict=True),
        (tutorial.outc, model.head),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())


def lively(model: nn.Module) -> nn.Module:
    """Make every number matter: biases and statistics that are no longer 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def unet(settings: UNetSettings, bands: int = 3, outputs: int = 2) -> UNet:
    torch.manual_seed(0)
    model = UNet(bands, outputs, settings)
    lively(model)
    return model


def image(height: int, width: int, bands: int = 3, items: int = 1) -> Tensor:
    return torch.randn(items, bands, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("bias", "count"), [(True, 31_043_521), (False, 31_037_633)])
def test_parameters(bias: bool, count: int) -> None:
    model = UNet(3, 1, UNetSettings(bias=bias))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("size", [(64, 48), (37, 51), (31, 16), (100, 71)])
@pytest.mark.parametrize("training", [True, False])
def test_same_padding_is_the_tutorials(size: tuple[int, int], training: bool) -> None:
    model = unet(UNetSettings(width=8), bands=5).train(training)
    tutorial = TutorialUNet(5, 2, width=8, padding=1).train(training)
    copied(model, tutorial)
    images = image(*size, bands=5, items=2)
    torch.testing.assert_close(model(images), tutorial(images))
    assert model(images).shape == (2, 2, *size)


def test_valid_padding_is_the_papers() -> None:
    model = unet(UNetSettings(width=4, padding="valid"), bands=1).eval()
    tutorial = TutorialUNet(1, 2, width=4, padding=0).eval()
    copied(model, tutorial)
    with torch.no_grad():
        logits = model(image(572, 572, bands=1))
        assert logits.shape == (1, 2, 388, 388)
        torch.testing.assert_close(logits, tutorial(image(572, 572, bands=1)))


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3), (17, 5), (33, 64)])
def test_same_padding_takes_any_size_even_to_train(up: Any, size: tuple[int, int]) -> None:
    model = unet(UNetSettings(width=4, up=up))
    logits = model(image(*size))
    logits.square().mean().backward()
    assert logits.shape == (1, 2, *size)
    assert all(
        torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None
    )
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_bilinear_is_interpolation_then_a_convolution() -> None:
    model = unet(replace(SMALL, up="bilinear", depth=1)).eval()
    maps = model.down[0](image(32, 32))
    low = nn.functional.interpolate(
        model.bottom(nn.functional.max_pool2d(maps, 2)), scale_factor=2, mode="bilinear"
    )
    convolution: Any = model.enlarge[0]
    joined = torch.cat([maps, convolution[0](low)], dim=1)
    torch.testing.assert_close(model(image(32, 32)), model.head(model.up[0](joined)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_value_per_channel_leaves_the_statistics(checkpointing: bool) -> None:
    model = unet(UNetSettings(width=4, checkpointing=checkpointing))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(image(16, 16)).mean().backward()  # the lowest map is 1 x 1
    after = model.state_dict()
    assert torch.equal(before["bottom.1.running_mean"], after["bottom.1.running_mean"])
    assert not torch.equal(before["up.0.1.running_mean"], after["up.0.1.running_mean"])
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_statistics_items_do_not_meet(norm: Any) -> None:
    model = unet(replace(SMALL, norm=norm))
    images = image(24, 20, items=2)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))
    model = unet(SMALL)
    assert not torch.allclose(model(images)[:1], model(images[:1]), atol=1e-3)


def test_group_norm_has_its_groups() -> None:
    norms = [
        each
        for each in unet(replace(SMALL, norm="group", groups=4)).modules()
        if isinstance(each, nn.GroupNorm)
    ]
    assert [norm.num_groups for norm in norms] == [4] * 10
    assert [norm.num_channels for norm in norms] == [8, 8, 16, 16, 32, 32, 16, 16, 8, 8]


def test_sync_is_batch_norm_in_one_process() -> None:
    model, sync = unet(SMALL), unet(replace(SMALL, norm="sync"))
    assert sum(isinstance(each, nn.SyncBatchNorm) for each in sync.modules()) == 10
    sync.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(image(24, 20, items=2)), sync(image(24, 20, items=2)))


def test_convolutions_start_at_he_and_others() -> None:
    for name, tensor in UNet(3, 1, UNetSettings(width=32)).state_dict().items():
        if tensor.dim() == 4 and tensor.shape[-1] == 3 and tensor.numel() > 10_000:
            assert tensor.std().item() == pytest.approx((2 / (9 * tensor.shape[1])) ** 0.5, rel=0.05), name


def walked(size: int, depth: int, bilinear: bool) -> int | None:
    """A side through the valid network, one layer after the other; None if a map is odd or empty."""
    for _ in range(depth):
        size -= 4
        if size < 2 or size % 2:
            return None
        size //= 2
    size -= 4
    for _ in range(depth):
        if size < 1:
            return None
        size = 2 * size - (2 if bilinear else 0) - 4
    return size if size >= 1 else None


@pytest.mark.parametrize(("depth", "bilinear"), list(product([1, 2, 3, 4], [False, True])))
def test_valid_sizes(depth: int, bilinear: bool) -> None:
    settings = UNetSettings(depth=depth, padding="valid", up="bilinear" if bilinear else "transposed")
    pairs = {size: out for size in range(1, 500) if (out := walked(size, depth, bilinear)) is not None}
    for size in range(1, 500):
        if size in pairs:
            assert valid_output_size(size, settings) == pairs[size] == size - 2 * valid_margin(settings)
        else:
            with pytest.raises(
                SettingsError, match=f"does not take a side of {size} pixels.* nearest that fit: "
            ):
                valid_output_size(size, settings)
    for wanted in range(1, max(pairs.values())):
        assert valid_input_size(wanted, settings) == min(size for size, out in pairs.items() if out >= wanted)


def test_valid_margin_of_the_paper() -> None:
    assert (valid_margin(UNetSettings()), valid_output_size(572, UNetSettings())) == (92, 388)
    assert valid_input_size(388, UNetSettings()) == 572


def test_valid_refuses_other_sizes_and_says_which_fit() -> None:
    with pytest.raises(
        SettingsError, match="does not take a side of 570 pixels at depth 4; the nearest that fit: 556, 572"
    ):
        unet(UNetSettings(width=4, padding="valid"))(image(572, 570))


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize(("size", "tile"), [((70, 45), 16), ((70, 45), 23), ((9, 200), 40), ((3, 1), 384)])
def test_overlap_tile_is_the_whole_mirrored_image(up: Any, size: tuple[int, int], tile: int) -> None:
    settings = replace(VALID, up=up)
    model = unet(settings).eval()
    margin = valid_margin(settings)
    behind = [valid_input_size(side, settings) - side - margin for side in size]
    border = [(0, 0), (0, 0), (margin, behind[0]), (margin, behind[1])]
    whole = torch.from_numpy(np.pad(image(*size, items=2).numpy(), border, mode="reflect"))
    with torch.no_grad():
        expected = model(whole)[..., : size[0], : size[1]]
    tiled = overlap_tile(model, image(*size, items=2), tile=tile)
    torch.testing.assert_close(tiled, expected)
    assert not tiled.requires_grad


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_checkpointing_changes_memory_only(padding: Any) -> None:
    plain = unet(replace(SMALL, padding=padding))
    saving = unet(replace(SMALL, padding=padding, checkpointing=True))
    calls = []
    saving.bottom.register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, saving):
        model(image(60, 60, items=2)).square().mean().backward()
    assert len(calls) == 2  # once more in the backward pass
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, buffer), other in zip(saving.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)
    with torch.no_grad():
        saving(image(60, 60))
    assert len(calls) == 3


def test_channels_last_stays() -> None:
    model = unet(SMALL).eval()
    expected = model(image(37, 41))
    last = model.to(memory_format=torch.channels_last)(image(37, 41).to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "width must be a whole number from 1, not 0"),
        ({"depth": "4"}, "depth must be a whole number from 1, not '4'"),
        ({"depth": True}, "depth must be a whole number"),
        ({"padding": "reflect"}, "padding must be one of same, valid, not 'reflect'"),
        ({"up": "nearest"}, "up must be one of transposed, bilinear"),
        ({"norm": ["batch"]}, "norm must be one of batch, group, sync, none"),
        ({"bias": 1}, "bias must be true or false, not 1"),
        ({"norm": "group", "width": 12}, "groups must divide width; 8 does not divide 12"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        UNetSettings(**settings)
    assert len(raised.value.lines) == 1


def test_settings_are_plain() -> None:
    settings = UNetSettings(width=16, norm="group", up="bilinear", checkpointing=True)
    assert UNetSettings(**json.loads(json.dumps(asdict(settings)))) == settings
