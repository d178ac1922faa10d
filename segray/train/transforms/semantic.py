"""Semantic training: an image, its mask and extras, transformed together; and batches of them.

The part that the crop needs is cut from the source first, and only that is resized, so that the cost depends
on the crop and not on the image.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from segray.data.pair_reader import Example
from segray.palette import VOID
from segray.train.collate import Arrays
from segray.train.transforms.colour import ColourChange, coloured
from segray.train.transforms.geometry import Fit, Frame, Geometry, drawn_geometry
from segray.train.transforms.nearest import nearest
from segray.train.transforms.strength import PRESETS, AugmentSettings, Strength

XYXY = tv_tensors.BoundingBoxFormat.XYXY


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch."""

    pixels: Tensor
    """uint8 (n, bands, height, width)."""
    classes: Tensor
    """uint8 (n, height, width); 255 is void."""
    names: list[str]


@dataclass(frozen=True, slots=True)
class SemanticTransform:
    """Augments an image and its mask to squares; see `Transform`."""

    size: int
    fit: Fit
    augment: AugmentSettings
    seed: int
    fill: tuple[int, ...]
    """Level of each band outside the image."""

    def training(self, example: Example, epoch: int, item: str) -> Arrays:
        """Return `pixels`, uint8 (3, size, size), and `classes`, uint8 (size, size)."""
        found = augmented(
            *_tensors(example), settings=self.augment, crop=self.size, seed=self.seed, epoch=epoch, item=item,
            fit=self.fit, fill=self.fill,
        )  # fmt: skip
        return _arrays(found)

    def scoring(self, example: Example) -> Arrays:
        """Return `pixels` and `classes` of the whole image, resized if training does."""
        crop = self.size if self.fit == "resize" else None
        return _arrays(fitted(*_tensors(example), crop=crop, fit=self.fit))

    def collate(self, samples: list[tuple[str, Arrays]]) -> Batch:
        """Return images of one size as a batch; for no samples one fully void image."""
        if not samples:
            pixels = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
            return Batch(pixels, torch.full_like(pixels[:, 0], VOID), [])
        pixels, classes = (
            torch.from_numpy(np.stack([arrays[name] for _, arrays in samples]))
            for name in ("pixels", "classes")
        )
        return Batch(pixels, classes, [name for name, _ in samples])


def _tensors(example: Example) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.ascontiguousarray(example.pixels.transpose(2, 0, 1)))
    return pixels, torch.from_numpy(example.classes.copy())


def _arrays(found: Sequence[Tensor]) -> Arrays:
    return {"pixels": found[0].numpy(), "classes": found[1].numpy()}


def augmented(
    pixels: Tensor,
    mask: Tensor,
    *extras: tv_tensors.TVTensor,
    settings: AugmentSettings,
    crop: int | tuple[int, int] | None,
    seed: int,
    epoch: int,
    item: str,
    fit: Fit = "crop",
    fill: Sequence[int] | None = None,
    void: int = VOID,
) -> tuple[Tensor, ...]:
    """Return uint8 pixels (bands, crop, crop), uint8 mask (crop, crop), and the extras, all transformed
    together.

    `pixels` is uint8 (bands, height, width), `mask` uint8 (height, width). `extras` are of two kinds:
    `tv_tensors.Mask` (height, width) of whole numbers below 2^24, such as instance maps, 0 outside the
    image; and float `tv_tensors.BoundingBoxes` (n, 4) in XYXY, half-open, which keep their number and
    order, are cut at the border and have no area outside. Rotated by other than quarter turns, a box is the
    hull of the rotated one; tight boxes are those of a transformed instance map. `crop` is a side or (height,
    width); None keeps the image's size.

    With fit `crop`, scale 1 is pixel for pixel: a larger image is cropped, a smaller one padded, the pixels
    with `fill` (one level a band, 0 unless given) and the mask with `void`. With `resize`, scale 1 resizes
    the whole image to the size of the crop, for any shape.

    The result is a function of the arguments: the same seed, epoch and item give the same bits in any
    process and order; no global random state is read or changed. It may share memory with the input. Raises
    ValueError where sizes, types or bands do not match.
    """
    random = Random(int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{item}".encode()).digest()))
    frame = _frame(pixels, mask, crop, fit, fill, void)
    return _framed(pixels, mask, extras, frame, settings.strength, random)


def fitted(
    pixels: Tensor,
    mask: Tensor,
    *extras: tv_tensors.TVTensor,
    crop: int | tuple[int, int] | None,
    fit: Fit = "crop",
    fill: Sequence[int] | None = None,
    void: int = VOID,
) -> tuple[Tensor, ...]:
    """Return the result of `augmented` without random changes, for scoring: the middle, or the whole resized.

    Raises ValueError where sizes, types or bands do not match.
    """
    frame = _frame(pixels, mask, crop, fit, fill, void)
    return _framed(pixels, mask, extras, frame, PRESETS["off"], Random(0))


def _frame(
    pixels: Tensor,
    mask: Tensor,
    crop: int | tuple[int, int] | None,
    fit: Fit,
    fill: Sequence[int] | None,
    void: int,
) -> Frame:
    if pixels.dtype != torch.uint8 or mask.dtype != torch.uint8 or pixels.shape[1:] != mask.shape:
        given = " and ".join(f"{part.dtype} {tuple(part.shape)}" for part in (pixels, mask))
        raise ValueError(f"pixels and mask must be uint8 (bands, height, width) and (height, width): {given}")
    fill = [0] * len(pixels) if fill is None else list(fill)
    if len(fill) != len(pixels):
        raise ValueError(f"fill has {len(fill)} levels, the picture {len(pixels)} bands")
    size = (crop, crop) if isinstance(crop, int) else crop or (mask.shape[0], mask.shape[1])
    return Frame(size, fit, fill, void)


def _check(extra: Any, mask: Tensor) -> None:
    if not isinstance(extra, tv_tensors.Mask | tv_tensors.BoundingBoxes):
        raise ValueError(f"an extra must be a tv_tensors Mask or BoundingBoxes, not {type(extra).__name__}")
    if functional.get_size(extra) != list(mask.shape):
        raise ValueError(f"an extra has size {functional.get_size(extra)}, the mask {list(mask.shape)}")
    if getattr(extra, "format", XYXY) != XYXY:
        raise ValueError(f"boxes must be {XYXY}, not {extra.format}")


def _framed(
    pixels: Tensor,
    mask: Tensor,
    extras: Sequence[tv_tensors.TVTensor],
    frame: Frame,
    strength: Strength,
    random: Random,
) -> tuple[Tensor, ...]:
    for extra in extras:
        _check(extra, mask)
    geometry = drawn_geometry(mask, frame, strength, random)
    change = ColourChange.drawn(strength, random)
    grid = _grid(geometry) if geometry.angle else None
    return (
        _moved(tv_tensors.Image(pixels), geometry, grid, frame.fill, change),
        _moved(tv_tensors.Mask(mask), geometry, grid, frame.void),
        *(_moved(extra, geometry, grid, 0) for extra in extras),
    )


def _moved(
    part: Any,
    geometry: Geometry,
    grid: Tensor | None,
    fill: int | list[int],
    change: ColourChange | None = None,
) -> Tensor:
    """Return the part in the frame; colours change before the filling is added, so that its level stays."""
    rows, cols = geometry.rows, geometry.cols
    part = functional.crop(part, rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)
    part = _resized(part, [rows.length, cols.length])
    if change is not None:
        part = tv_tensors.wrap(coloured(part.as_subclass(Tensor), change), like=part)
    padding = [cols.before, rows.before, cols.after, rows.after]
    if any(padding):
        part = functional.pad(part, padding, fill=fill)
    if grid is not None:
        part = _tilted(part, geometry, grid)
    if geometry.quarters:
        part = functional.rotate(part, 90 * geometry.quarters, expand=True)
    if geometry.upended:
        part = functional.vertical_flip(part)
    if geometry.mirrored:
        part = functional.horizontal_flip(part)
    plain: Tensor = part.as_subclass(Tensor)
    return plain.contiguous()


def _resized(part: Any, size: list[int]) -> Any:
    if isinstance(part, tv_tensors.Mask):
        return tv_tensors.wrap(nearest(part.as_subclass(Tensor), (size[0], size[1])), like=part)
    if not isinstance(part, tv_tensors.Image):
        return functional.resize(part, size)
    pixels = part.as_subclass(Tensor)
    if size[1] == 1:  # torch 2.13 writes wrong levels, or fails, for bytes in a single column
        return tv_tensors.wrap(functional.resize(pixels.float(), size).round_().to(torch.uint8), like=part)
    # torch is slow with more than four bands at once: ten take 30 ms instead of 13
    bands = [functional.resize(some, size) for some in torch.split(pixels, 4)]
    return tv_tensors.wrap(torch.cat(bands) if len(bands) > 1 else bands[0], like=part)


def _grid(geometry: Geometry) -> Tensor:
    """Return (1, height, width, 2): the source of each pixel of the frame, x, y in -1..1 with the margin."""
    cos, sin = math.cos(math.radians(geometry.angle)), math.sin(math.radians(geometry.angle))
    sizes = geometry.rows.size, geometry.cols.size
    inner = [size - 2 * margin for size, margin in zip(sizes, geometry.margin, strict=True)]
    y, x = (torch.arange(size) - (size - 1) / 2 for size in inner)
    y = y[:, None]
    source = [(x * cos - y * sin) * (2 / sizes[1]), (x * sin + y * cos) * (2 / sizes[0])]
    return torch.stack(source, dim=-1)[None]


def _tilted(part: Any, geometry: Geometry, grid: Tensor) -> Any:
    """Rotate and cut to the frame; `functional.rotate` takes three times as long for pixels."""
    height, width = grid.shape[1:3]
    if isinstance(part, tv_tensors.BoundingBoxes):
        turned = functional.crop(functional.rotate(part, geometry.angle), *geometry.margin, height, width)
        there = (part[:, 2:] > part[:, :2]).all(dim=1, keepdim=True)  # the hull of a line would have area
        return tv_tensors.wrap(turned.as_subclass(Tensor) * there.as_subclass(Tensor), like=turned)
    values = part.as_subclass(Tensor)
    mode = "bilinear" if isinstance(part, tv_tensors.Image) else "nearest"
    batch = values.reshape(1, -1, *values.shape[-2:]).float()
    turned = grid_sample(batch, grid, mode=mode, padding_mode="border", align_corners=False)
    levels = turned.round_().to(values.dtype)
    return tv_tensors.wrap(levels.reshape(*values.shape[:-2], height, width), like=part)
