"""Instance training: an image and integer maps of its instances, transformed together; and batches.

To train: a crop, augmented, with boxes, labels and masks of its instances; crowds are left out. To score: the
whole image and its annotations unchanged.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from segray.data.pair_reader import CocoExample
from segray.masks.types import Rle
from segray.train.collate import Arrays
from segray.train.transforms.nearest import nearest
from segray.train.transforms.strength import TILTED, AugmentSettings


@dataclass(frozen=True)
class CropSettings:
    """Size and scale of crops; lengths in pixels of the resized image."""

    crop: int = 384
    """Side of the square crop."""
    resize_to: int = 512
    """Shorter side of a whole image after the model's own resize: the scale that training is centred on."""
    smallest_area: int = 30
    """Instances with fewer pixels left in the crop are not targets."""
    whole: int | None = None
    """Pixels that become `resize_to`, for windows of scenes, which have one scale; None: the shorter side."""

    def scale(self, height: int, width: int) -> float:
        """Return the factor on an image of this size."""
        return self.resize_to / (self.whole or min(height, width))


@dataclass(frozen=True)
class InstanceImage:
    """One image of a batch."""

    name: str
    pixels: Tensor
    """uint8 (3, height, width)."""
    target: dict[str, Tensor] = field(default_factory=dict)
    """To train: `boxes`, `labels` and `masks` as torchvision's detectors take them."""
    truth: list[dict[str, Any]] = field(default_factory=list)
    """To score: for each instance `counts` (compressed run lengths), `category`, `crowd` and `area`."""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True)
class InstanceBatch:
    """One process's part of a global batch; may be empty."""

    pictures: list[InstanceImage]

    @property
    def names(self) -> list[str]:
        """Return the names of the images."""
        return [picture.name for picture in self.pictures]


@dataclass(frozen=True)
class InstanceTransform:
    """Augments an image and its instances; see `Transform`."""

    crop: CropSettings
    augment: AugmentSettings
    categories: tuple[int, ...]
    """Ascending; label i of the network (1 is the first) is the i-th."""
    seed: int

    def training(self, example: CocoExample, epoch: int, item: str) -> Arrays:
        """Return `pixels`, uint8 (3, crop, crop), and its target; `masks` as bits."""
        pixels, target = self.target(example, epoch, item)
        arrays = {name: tensor.numpy() for name, tensor in target.items()}
        return {"pixels": pixels.numpy(), **arrays, "masks": np.packbits(arrays["masks"])}

    def target(self, example: CocoExample, epoch: int, item: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return uint8 pixels (3, crop, crop) and their `boxes`, `labels` and `masks`, see `target_of`."""
        kept = [each for each in example.instances if not each.crowd]
        maps, layer_of = layered(
            [each.mask for each in kept if each.mask is not None], example.pixels.shape[:2]
        )
        labels = torch.tensor([self.categories.index(each.category) + 1 for each in kept], dtype=torch.int64)
        transform = training_transform(self.crop, self.augment)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_drawn(self.seed, epoch, item))
            pixels, layers = augmented(
                torch.from_numpy(_chw(example.pixels)), torch.from_numpy(maps), transform
            )
        target = target_of(layers, labels, self.crop.smallest_area, torch.from_numpy(layer_of))
        pixel = self.crop.scale(*example.pixels.shape[:2])
        return pixels, target | {"boxes": pasted_boxes(target["boxes"], pixel=pixel)}

    def scoring(self, example: CocoExample) -> Arrays:
        """Return `pixels`, uint8 (3, height, width), and `truth`, the bytes of `InstanceImage.truth`."""
        truth = [
            {"counts": _text(each.mask), "category": each.category, "crowd": each.crowd, "area": each.area}
            for each in example.instances
        ]
        content = json.dumps(truth).encode()
        return {"pixels": _chw(example.pixels), "truth": np.frombuffer(content, np.uint8)}

    def collate(self, samples: list[tuple[str, Arrays]]) -> InstanceBatch:
        """Return images of any size as a batch, which may be empty."""
        return InstanceBatch([_picture(name, arrays) for name, arrays in samples])


def _picture(name: str, arrays: Arrays) -> InstanceImage:
    pixels = torch.from_numpy(arrays["pixels"].copy())
    if "truth" in arrays:
        return InstanceImage(name, pixels, truth=json.loads(arrays["truth"].tobytes()))
    shape = len(arrays["labels"]), *pixels.shape[1:]
    masks = np.unpackbits(arrays["masks"], count=math.prod(shape)).reshape(shape)
    target = {key: torch.from_numpy(arrays[key].copy()) for key in ("boxes", "labels")}
    return InstanceImage(name, pixels, target | {"masks": torch.from_numpy(masks)})


def layered(masks: Sequence[Rle], size: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the masks as few maps of their numbers, (layers, height, width), and the layer of each, (n,).

    The i-th mask is where its layer is i + 1. Masks of one layer do not overlap: an image of hundreds of
    instances takes a map or two, not hundreds.
    """
    layers = [np.zeros(size, np.int32)]
    layer_of = np.zeros(len(masks), np.int64)
    for number, mask in enumerate(masks):
        x, y, width, height = map(int, coco_mask.toBbox(mask))
        window = (slice(y, y + height), slice(x, x + width))
        inside = coco_mask.decode(mask)[window] > 0
        layer_index = next(
            (n for n, layer in enumerate(layers) if not layer[window][inside].any()), len(layers)
        )
        if layer_index == len(layers):
            layers.append(np.zeros(size, np.int32))
        layers[layer_index][window][inside] = number + 1
        layer_of[number] = layer_index
    return np.stack(layers), layer_of


def _chw(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _text(mask: Rle | None) -> str:
    assert mask is not None
    counts = mask["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def _drawn(seed: int, epoch: int, item: str) -> int:
    digest = hashlib.sha256(f"{seed}:{epoch}:{item}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ScaledCrop(v2.Transform):  # type: ignore[misc]
    """Cut a random window whose size carries the scale, and resize it to the square crop."""

    def __init__(self, settings: CropSettings, scale: tuple[float, float], stretch: float) -> None:
        """Store the settings; scale: range of the factor on `resize_to`, uniform on a logarithmic axis.

        stretch: maximum ratio of the horizontal to the vertical factor, and of vertical to horizontal.
        """
        super().__init__()
        self.settings, self.scale, self.stretch = settings, scale, stretch

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window, always inside the image, so that nothing needs padding."""
        height, width = functional.get_size(flat_inputs[0])
        settings = self.settings
        scale = settings.scale(height, width) * math.exp(_uniform(*map(math.log, self.scale)))
        stretch = math.exp(_uniform(-1, 1) * math.log(self.stretch) / 2)
        window_height = min(height, max(8, round(settings.crop / scale * stretch)))
        window_width = min(width, max(8, round(settings.crop / scale / stretch)))
        return {
            "top": int(_uniform(0, 1) * (height - window_height + 1)),
            "left": int(_uniform(0, 1) * (width - window_width + 1)),
            "height": window_height,
            "width": window_width,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize; masks keep their integers, images are interpolated."""
        inpt, side = functional.crop(inpt, **params), self.settings.crop
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(nearest(inpt.as_subclass(Tensor), (side, side)), like=inpt)
        return functional.resize(inpt, [side, side])


class RandomGamma(v2.Transform):  # type: ignore[misc]
    """Lighten or darken: fluorescence images differ by a factor of ten in brightness."""

    def __init__(self, gamma: float) -> None:
        """Store the range; gamma: 1 draws exponents from 1/2 to 2."""
        super().__init__()
        self.most = math.log(1 + gamma)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the exponent."""
        return {"gamma": math.exp(_uniform(-1, 1) * self.most)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the exponent to images only."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        return functional.adjust_gamma(inpt, gamma=params["gamma"])


def training_transform(crop: CropSettings, augment: AugmentSettings) -> v2.Transform:
    """Return the transform of (`tv_tensors.Image`, `tv_tensors.Mask`) used in training.

    What a rotation brings in is black. The preset `strong` also stretches, greys and inverts some images,
    for which there is no knob.
    """
    knobs, strong = augment.strength, augment.preset == "strong"
    return v2.Compose(
        [
            ScaledCrop(crop, (knobs.smallest_scale, knobs.largest_scale), 1.2 if strong else 1.0),
            v2.RandomApply(
                [v2.RandomRotation(knobs.rotation, InterpolationMode.BILINEAR)],
                p=TILTED * (knobs.rotation > 0),
            ),
            v2.RandomHorizontalFlip(knobs.flip),
            v2.RandomVerticalFlip(knobs.vertical_flip),
            v2.RandomApply([v2.RandomRotation((90, 90))], p=knobs.quarter_turns),
            v2.RandomApply([RandomGamma(knobs.gamma)], p=0.5),
            v2.RandomApply([v2.ColorJitter(brightness=knobs.brightness, contrast=knobs.contrast)], p=0.5),
            v2.RandomApply([v2.ColorJitter(saturation=knobs.saturation, hue=knobs.hue)], p=0.2),
            v2.RandomGrayscale(p=0.1 * strong),
            v2.RandomInvert(p=0.05 * strong),
            v2.RandomApply([v2.GaussianBlur(5, (0.3, max(0.3, knobs.blur)))], p=0.1 * (knobs.blur > 0)),
        ]
    )


def augmented(pixels: Tensor, layers: Tensor, transform: v2.Transform) -> tuple[Tensor, Tensor]:
    """Return a crop of pixels, uint8 (3, h, w), and of maps of instances, int32 (layers, h, w)."""
    image, moved = transform(tv_tensors.Image(pixels), tv_tensors.Mask(layers))
    return image.as_subclass(Tensor).contiguous(), moved.as_subclass(Tensor)


def target_of(
    layers: Tensor, labels: Tensor, smallest_area: int = 1, layer_of: Tensor | None = None
) -> dict[str, Tensor]:
    """Expand maps of instances to `boxes`, `labels` and `masks` of torchvision's detectors.

    layers: (layers, height, width), or one map (height, width): the i-th instance is where it is i + 1.
    layer_of: the layer of each; default the first. `boxes` float32 (n, 4) x1, y1, x2, y2 half-open =
    pycocotools' `toBbox` of the mask; `labels` int64 (n,); `masks` uint8 (n, height, width). Instances below
    `smallest_area` pixels are left out.
    """
    layers = layers.reshape(-1, *layers.shape[-2:])
    areas = torch.bincount(layers.flatten().long(), minlength=len(labels) + 1)[1:]
    kept = torch.nonzero(areas >= max(1, smallest_area)).flatten()
    masks = (
        layers[torch.zeros_like(kept) if layer_of is None else layer_of[kept]] == (kept + 1)[:, None, None]
    )
    boxes = masks_to_boxes(masks) if len(kept) else torch.zeros(0, 4)
    boxes[:, 2:] += 1  # torchvision's function returns the last pixel, a half-open box ends after it
    return {"boxes": boxes, "labels": labels[kept], "masks": masks.to(torch.uint8)}


def pasted_boxes(boxes: Tensor, *, pixel: float) -> Tensor:
    """Return the boxes to learn: half a pixel of the original image inside the half-open ones on each side.

    Torchvision pastes a mask over `int(x2) - int(x1) + 1` pixels, one more than a half-open box is wide on
    average. For nuclei 10 pixels across that costs more than the network's own errors: true boxes and true
    masks through paste score AP 0.84, with boxes moved in by half a pixel 0.94 (30 images at twice their
    size). `pixel` is the side of an original pixel in the frame of `boxes`, float32 (n, 4) x1, y1, x2, y2.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = ((boxes[:, 2:] - boxes[:, :2] - pixel) / 2).clamp(min=1.0)
    return torch.cat([centre - half, centre + half], dim=1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()
