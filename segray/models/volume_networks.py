"""Networks for volumes, built by MONAI (extra `monai`): 3D U-Net and Swin-UNETR.

They normalise each channel over the voxels of a map (instance norm), which fails in training where a map has
one voxel. `check_patch` tells before anything is read.
"""

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from segray.errors import SettingsError
from segray.models.architectures import architecture, complete_settings, part_of

SWIN_STRIDE = 32
"""Swin-UNETR halves its input five times."""
Patch = tuple[int, int, int]
"""(depth, height, width) in voxels."""


@dataclass(frozen=True)
class UNet3DSettings:
    """Settings of `unet3d`; the names are MONAI's."""

    channels: Sequence[int] = (32, 64, 128, 256, 512)
    """Of each level; all but the last end with a stride of 2."""
    num_res_units: int = 2
    """Convolutions in a residual unit; 0: plain convolutions."""
    dropout: float = 0.0


@dataclass(frozen=True)
class SwinUNETRSettings:
    """Settings of `swinunetr`; the names are MONAI's."""

    feature_size: int = 48
    """A multiple of 12."""
    depths: Sequence[int] = (2, 2, 2, 2)
    """Blocks of each stage."""
    num_heads: Sequence[int] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    drop_rate: float = 0.0
    use_checkpoint: bool = False
    """Compute blocks again in the backward pass, to use less memory."""


def build_volume(arch: str, outputs: int, settings: Mapping[str, Any], patch: Sequence[int]) -> nn.Module:
    """Return the network, float32, in training mode: float (n, 1, *patch) to logits (n, outputs, *patch).

    Raises SettingsError where MONAI is missing, and for settings and patches that are incompatible.
    """
    row, values = architecture(arch), complete_settings(arch, settings)
    if row.task != "volume":
        raise SettingsError(f"{arch} is a {row.task} architecture, not one for volumes")
    if importlib.util.find_spec("monai") is None:
        raise SettingsError(f"{arch} needs monai: install the extra `monai`")
    check_patch(arch, values, patch)
    try:
        network: nn.Module = part_of(row.build)(outputs, part_of(row.settings)(**values))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"settings that {arch} does not take: {error}") from error
    return network


def check_patch(arch: str, settings: Mapping[str, Any], patch: Sequence[int]) -> None:
    """Raise SettingsError, with the smallest patch, for one that the network cannot be trained on."""
    stride = _stride(arch, settings)
    least = f"{2 * stride},{stride},{stride} (in any order)"
    if len(patch) != 3 or any(side < 1 or side % stride for side in patch):
        raise SettingsError(
            f"patch: {arch} takes three sides (depth, height, width), multiples of {stride} voxels; "
            f"the smallest patch is {least}"
        )
    if math.prod(side // stride for side in patch) < 2:
        raise SettingsError(
            f"patch: {','.join(map(str, patch))} is too small for {arch}, whose innermost map would be one "
            f"voxel; the smallest patch is {least}"
        )


def least_patch(arch: str, settings: Mapping[str, Any]) -> Patch:
    """Return the smallest patch that `check_patch` accepts."""
    stride = _stride(arch, settings)
    return 2 * stride, stride, stride


def _stride(arch: str, settings: Mapping[str, Any]) -> int:
    return int(2 ** (len(settings["channels"]) - 1)) if arch == "unet3d" else SWIN_STRIDE


def build_unet3d(outputs: int, settings: UNet3DSettings) -> nn.Module:
    """Return MONAI's `UNet` in three dimensions; see `build_volume`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from monai.networks.nets.unet import UNet

    if len(settings.channels) < 2:
        raise SettingsError("arch_settings: unet3d needs two or more channels")
    strides = (2,) * (len(settings.channels) - 1)
    network: nn.Module = UNet(
        3, 1, outputs, settings.channels, strides,
        num_res_units=settings.num_res_units, dropout=settings.dropout,
    )  # fmt: skip
    return network


def build_swinunetr(outputs: int, settings: SwinUNETRSettings) -> nn.Module:
    """Return MONAI's `SwinUNETR` in three dimensions; see `build_volume`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets.swin_unetr import SwinUNETR

    network: nn.Module = SwinUNETR(
        1, outputs, depths=settings.depths, num_heads=settings.num_heads, feature_size=settings.feature_size,
        drop_rate=settings.drop_rate, use_checkpoint=settings.use_checkpoint,
    )  # fmt: skip
    return network
