"""Each colour operation against torchvision, or against its formula written out in float64."""

import colorsys
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from segray.train.transforms.colour import ColourChange, coloured
from segray.train.transforms.strength import RARE, Strength


def picture(bands: int, height: int = 40, width: int = 50) -> Tensor:
    """All levels, smooth and rough places; no two bands alike."""
    generator = torch.Generator().manual_seed(bands)
    small = torch.randint(0, 256, (1, bands, 5, 5), generator=generator).float()
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0]
    rough = torch.randint(-30, 31, (bands, height, width), generator=generator)
    return (smooth + rough).clamp(0, 255).to(torch.uint8)


def apart(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("bands", [1, 3, 4, 10])
def test_no_change_leaves_every_pixel(bands: int) -> None:
    assert torch.equal(coloured(picture(bands), ColourChange()), picture(bands))


@pytest.mark.parametrize("factor", [0.6, 1.4])
@pytest.mark.parametrize("bands", [1, 3, 4, 10])
def test_brightness_and_contrast_are_torchvisions_for_each_band(bands: int, factor: float) -> None:
    """Torchvision takes one or three bands and cuts fractions off, which may cost a level."""
    pixels = picture(bands)
    expected = functional.adjust_brightness(pixels[:, None], factor)[:, 0]
    assert apart(coloured(pixels, ColourChange(brightness=factor)), expected) <= 1
    expected = functional.adjust_contrast(pixels[:, None], factor)[:, 0]
    assert apart(coloured(pixels, ColourChange(contrast=factor)), expected) <= 1


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5])
def test_saturation_is_torchvisions(factor: float) -> None:
    """Two levels: torchvision cuts the fraction of the grey off, too."""
    pixels = picture(3)
    change = ColourChange(saturation=factor)
    assert apart(coloured(pixels, change), functional.adjust_saturation(pixels, factor)) <= 2


def test_hue_turns_in_the_yiq_plane() -> None:
    """The oracle is the standard library's conversion, whose coefficients have two digits."""
    pixels = picture(3, 12, 12) // 2 + 64  # in the middle, so that nothing is cut off
    found = coloured(pixels, ColourChange(hue=0.07)).permute(1, 2, 0).reshape(-1, 3)
    angle = -2 * np.pi * 0.07
    for before, after in zip(pixels.permute(1, 2, 0).reshape(-1, 3).tolist(), found.tolist(), strict=True):
        y, i, q = colorsys.rgb_to_yiq(*(level / 255 for level in before))
        turned = i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)
        expected = [255 * level for level in colorsys.yiq_to_rgb(y, *turned)]
        assert np.allclose(after, expected, atol=3)


def test_hue_goes_torchvisions_way_and_leaves_grey() -> None:
    red = torch.tensor([180, 90, 90], dtype=torch.uint8).view(3, 1, 1)
    for hue in (1 / 3, -1 / 3):
        found, by_hsv = coloured(red, ColourChange(hue=hue)), functional.adjust_hue(red, hue)
        assert found.argmax() == by_hsv.argmax() != 0
    grey = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert apart(coloured(grey, ColourChange(hue=0.2, saturation=1.7)), grey) <= 1


def test_the_linear_four_together_are_rounded_once() -> None:
    """Written out in float64, one after the other, cut off only at the end."""
    pixels = picture(3)
    values = pixels.double().numpy() * 1.1
    mean = values.mean((1, 2), keepdims=True)
    values = (values - mean) * 0.8 + mean
    yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    y, i, q = np.tensordot(yiq, values, axes=1)
    cos, sin = np.cos(2 * np.pi * 0.04), np.sin(2 * np.pi * 0.04)
    values = np.tensordot(np.linalg.inv(yiq), np.stack([y, cos * i + sin * q, cos * q - sin * i]), axes=1)
    grey = np.tensordot(yiq[0], values, axes=1)
    values = grey + 1.3 * (values - grey)
    change = ColourChange(brightness=1.1, contrast=0.8, hue=0.04, saturation=1.3)
    expected = torch.from_numpy(values.round().clip(0, 255))
    found = coloured(pixels, change)
    assert apart(found, expected) <= 1  # float32 and float64 may round a half apart
    assert (found == expected).double().mean() > 0.999


@pytest.mark.parametrize("bands", [1, 4, 6, 10])
def test_hue_and_saturation_are_for_three_bands(bands: int) -> None:
    pixels = picture(bands)
    assert torch.equal(coloured(pixels, ColourChange(hue=0.2, saturation=0.1)), pixels)


@pytest.mark.parametrize("gamma", [0.5, 1.7])
@pytest.mark.parametrize("bands", [1, 3, 10])
def test_gamma_is_torchvisions(bands: int, gamma: float) -> None:
    pixels = picture(bands)
    assert torch.equal(coloured(pixels, ColourChange(gamma=gamma)), functional.adjust_gamma(pixels, gamma))


@pytest.mark.parametrize("sigma", [0.4, 1.5])
def test_blur_is_a_gaussian_over_the_mirrored_border(sigma: float) -> None:
    pixels = picture(4)
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    values = np.pad(pixels.double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect")
    values = sum(kernel[k] * values[:, k : k + 40] for k in range(11))
    values = sum(kernel[k] * values[:, :, k : k + 50] for k in range(11))
    assert apart(coloured(pixels, ColourChange(blur=sigma)), torch.from_numpy(values.round())) <= 1


def test_a_picture_too_small_for_the_blur_stays() -> None:
    pixels = picture(3, 2, 50)
    assert torch.equal(coloured(pixels, ColourChange(blur=1.5)), pixels)


def test_noise_has_its_deviation_and_its_seed() -> None:
    grey = torch.full((4, 100, 100), 128, dtype=torch.uint8)
    found = coloured(grey, ColourChange(noise=9.0, noise_seed=5))
    assert abs(found.double().mean() - 128) < 0.3
    assert abs(found.double().std() - 9) < 0.3
    assert abs(torch.corrcoef(found.flatten(1).double())[0, 1]) < 0.05  # each band has its own
    assert torch.equal(found, coloured(grey, ColourChange(noise=9.0, noise_seed=5)))
    assert not torch.equal(found, coloured(grey, ColourChange(noise=9.0, noise_seed=6)))
    assert coloured(grey // 128 * 250, ColourChange(noise=9.0)).min() > 128  # cut off, not wrapped around


def test_draws_fill_their_ranges() -> None:
    strength = Strength(brightness=0.2, contrast=0.3, saturation=0.4, hue=0.05, gamma=0.5, blur=1.5, noise=8)
    random = Random(1)
    changes = [ColourChange.drawn(strength, random) for _ in range(1000)]
    ranges = {"brightness": (0.8, 1.2), "contrast": (0.7, 1.3), "saturation": (0.6, 1.4)}
    ranges |= {"hue": (-0.05, 0.05), "gamma": (1 / 1.5, 1.5), "blur": (0, 1.5), "noise": (0, 8)}
    for name, (low, high) in ranges.items():
        drawn = np.array([getattr(change, name) for change in changes])
        edge = 0.03 * (high - low)
        assert low <= drawn.min() <= low + edge
        assert high - edge <= drawn.max() <= high
        if name in ("blur", "noise"):
            assert abs((drawn > 0).mean() - RARE) < 0.05
