"""Augmentation moves pixels, masks and boxes together."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from segray.train.transforms.instance import (
    CropSettings,
    augmented,
    layered,
    pasted_boxes,
    target_of,
    training_transform,
)
from segray.train.transforms.strength import AugmentSettings
from tests.train.cells import write_cells
from tests.train.coco import read_coco

SETTINGS = CropSettings(crop=128, resize_to=160, smallest_area=20)
TRANSFORM = training_transform(
    SETTINGS, AugmentSettings(preset="strong", smallest_scale=0.75, largest_scale=1.5, quarter_turns=0.5)
)


class InstanceImage(NamedTuple):
    pixels: Tensor
    """uint8 (3, height, width)."""
    instances: Tensor
    """int32 (height, width): the i-th instance is where it is i + 1."""
    categories: Tensor
    """int64 (instances,)."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[InstanceImage]:
    found = []
    for _, example in read_coco(write_cells(tmp_path_factory.mktemp("data") / "cells", images=3)):
        masks = [each.mask for each in example.instances if each.mask is not None]
        (instances,), _ = layered(masks, example.pixels.shape[:2])  # one layer: cells do not overlap
        categories = torch.tensor([each.category for each in example.instances])
        pixels = torch.from_numpy(example.pixels.copy()).permute(2, 0, 1)
        found.append(InstanceImage(pixels, torch.from_numpy(instances), categories))
    return found


def test_targets_of_a_map_are_its_masks_and_their_boxes() -> None:
    instances = torch.zeros(9, 12, dtype=torch.int32)
    instances[2:5, 3:9], instances[8, 11], instances[0, :2] = 1, 3, 4
    target = target_of(instances, torch.tensor([7, 7, 5, 7]), smallest_area=2)
    assert target["labels"].tolist() == [7, 7]  # the second is absent, the third has one pixel
    assert target["boxes"].tolist() == [[3, 2, 9, 5], [0, 0, 2, 1]]
    assert target["masks"].sum((1, 2)).tolist() == [18, 2]
    empty = target_of(torch.zeros(4, 4, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 4, 4)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_those_of_the_moved_masks(images: list[InstanceImage], seed: int) -> None:
    """The oracle is pycocotools' `toBbox`; the boxes to learn lie half an original pixel inside."""
    torch.manual_seed(seed)
    for image in images:
        pixels, layers = augmented(image.pixels, image.instances[None], TRANSFORM)
        assert pixels.shape == (3, 128, 128)
        assert pixels.dtype == torch.uint8
        target = target_of(layers, image.categories, SETTINGS.smallest_area)
        rles = coco_mask.encode(np.asfortranarray(target["masks"].permute(1, 2, 0).numpy()))
        x, y, width, height = (torch.from_numpy(column) for column in coco_mask.toBbox(rles).T)
        expected = torch.stack([x, y, x + width, y + height], dim=1).float()
        pixel = SETTINGS.resize_to / 96
        boxes = pasted_boxes(target["boxes"], pixel=pixel)
        wide = (width > 2 + pixel) & (height > 2 + pixel)  # thinner slivers at the border keep two pixels
        moved = expected + torch.tensor([0.5, 0.5, -0.5, -0.5]) * pixel
        assert wide.any()
        assert torch.allclose(boxes[wide], moved[wide], atol=1e-4)
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1.99
        assert target["masks"].sum(0).max() <= 1
        assert target["masks"].sum((1, 2)).min() >= SETTINGS.smallest_area


@pytest.mark.parametrize("seed", range(4))
def test_pixels_and_masks_move_together(images: list[InstanceImage], seed: int) -> None:
    """Cells drawn in their own number: after the same geometry the picture still shows the map."""
    torch.manual_seed(seed)
    numbers = images[0].instances
    picture = (numbers > 0).to(torch.uint8).expand(3, -1, -1) * 255
    geometry = TRANSFORM.transforms[:5]  # crop, rotation, two flips, quarter turn
    moved, mask = tv_tensors.Image(picture), tv_tensors.Mask(numbers)
    for step in geometry:
        moved, mask = step(moved, mask)
    agreement = ((moved[0] > 127) == (mask > 0)).float().mean()
    assert agreement > 0.97  # the rest are edges, interpolated in the one and nearest in the other


def discs(number: int, side: int = 96) -> tuple[Tensor, Tensor]:
    """Pictures of a disc, whose border is as light as it is covered, and the pixels whose middle it has.

    Both (number, side, side), uint8 and int32.
    """
    draw = np.random.default_rng(0)
    top, left, radius = torch.from_numpy(draw.uniform((40, 40, 12), (56, 56, 20), (number, 3)).T)[..., None]
    fine, middles = (torch.arange(8 * side) + 0.5) / 8, torch.arange(side) + 0.5

    def inside(places: Tensor) -> Tensor:
        rows, cols = (places - top) ** 2, (places - left) ** 2
        return torch.lt(rows[:, :, None] + cols[:, None, :], radius[..., None] ** 2)

    covered = inside(fine).float().reshape(number, side, 8, side, 8).mean((2, 4))
    return (255 * covered).round().to(torch.uint8), inside(middles).int()


def centroids(levels: Tensor) -> Tensor:
    """Row and column of each layer, float64 (layers, 2)."""
    levels = levels.double()
    rows, cols = (torch.arange(size).double() for size in levels.shape[1:])
    return torch.stack([levels.sum(2) @ rows, levels.sum(1) @ cols], 1) / levels.sum((1, 2))[:, None]


@pytest.mark.parametrize("crop", [48, 96, 117, 131, 192, 263])
def test_a_mask_is_not_a_part_of_a_pixel_off(crop: int) -> None:
    """Of 0.37 pixels that a mask was off, a nucleus lost 4 % of its overlap with its picture."""
    whole = CropSettings(crop=crop, resize_to=crop)  # the window is the whole picture
    moves = training_transform(
        whole, AugmentSettings(smallest_scale=1, largest_scale=1, flip=1, vertical_flip=1, quarter_turns=1)
    ).transforms
    moves = [moves[0], *moves[2:5]]  # the rotation has a test of its own
    pictures, masks = discs(300)
    picture, mask = tv_tensors.Image(pictures), tv_tensors.Mask(masks)
    for move in moves:
        picture, mask = move(picture, mask)
        assert picture.shape == mask.shape == (300, crop, crop)
        off = (centroids(picture) - centroids(mask)).mean(0)
        assert off.abs().max() < 0.02, (type(move).__name__, off)


def test_a_rotated_mask_stays_on_its_picture() -> None:
    turn = training_transform(SETTINGS, AugmentSettings(rotation=45)).transforms[1].transforms[0]
    torch.manual_seed(0)
    pictures, masks = discs(40)
    turned = [
        turn(tv_tensors.Image(one[None]), tv_tensors.Mask(two[None]))
        for one, two in zip(pictures, masks, strict=True)
    ]
    picture, mask = (torch.cat(each) for each in zip(*turned, strict=True))
    assert (centroids(picture) - centroids(pictures)).abs().max() > 1
    assert (centroids(picture) - centroids(mask)).mean(0).abs().max() < 0.03


def test_half_a_pixel_inside_is_what_the_paste_wants(images: list[InstanceImage]) -> None:
    """True masks and boxes through torchvision's paste: with the boxes to learn they come back closer."""
    overlap = {}
    for inside in (False, True):
        found = []
        for image in images:
            target = target_of(image.instances, image.categories)
            boxes = pasted_boxes(target["boxes"], pixel=1.0) if inside else target["boxes"]
            doubled = target["masks"].repeat_interleave(2, 1).repeat_interleave(2, 2).float()
            small = project_masks_on_boxes(doubled, boxes * 2, torch.arange(len(boxes)), 28)
            pasted = paste_masks_in_image((small > 0.5).float()[:, None], boxes, image.instances.shape)
            back, truth = pasted[:, 0] > 0.5, target["masks"].bool()
            found.append((back & truth).sum((1, 2)) / (back | truth).sum((1, 2)))
        overlap[inside] = torch.cat(found).mean().item()
    assert overlap[True] > overlap[False] + 0.03
    assert overlap[True] > 0.9
