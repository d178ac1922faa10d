"""Paired augmentation with torchvision transforms.v2: an image and the integer map of its instances."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from segray.train.dataset import InstanceImage


@dataclass(frozen=True)
class AugmentSettings:
    """How far augmentation goes; lengths in pixels of the resized image."""

    crop: int = 384
    """Side of the square crop."""
    resize_to: int = 512
    """Shorter side of a whole image after the model's own resize: the scale that training is centred on."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest factor on that scale, drawn evenly on a logarithmic axis."""
    stretch: float = 1.2
    """Largest ratio of the horizontal to the vertical factor, and of vertical to horizontal."""
    smallest_area: int = 30
    """Instances with fewer pixels left in the crop are no targets."""


class ScaledCrop(v2.Transform):  # type: ignore[misc]
    """Cut a random window whose size carries the scale, and resize it to the square crop."""

    def __init__(self, settings: AugmentSettings) -> None:
        super().__init__()
        self.settings = settings

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window, always inside the image, so that nothing needs padding."""
        height, width = functional.get_size(flat_inputs[0])
        settings = self.settings
        base = settings.resize_to / min(height, width)
        scale = base * math.exp(_uniform(math.log(settings.scale[0]), math.log(settings.scale[1])))
        stretch = math.exp(_uniform(-1, 1) * math.log(settings.stretch) / 2)
        window_height = min(height, max(8, round(settings.crop / scale * stretch)))
        window_width = min(width, max(8, round(settings.crop / scale / stretch)))
        return {
            "top": int(_uniform(0, 1) * (height - window_height + 1)),
            "left": int(_uniform(0, 1) * (width - window_width + 1)),
            "height": window_height,
            "width": window_width,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize; masks keep their integers (nearest), images are interpolated."""
        nearest = isinstance(inpt, tv_tensors.Mask)
        return functional.resized_crop(
            inpt,
            **params,
            size=[self.settings.crop, self.settings.crop],
            interpolation=v2.InterpolationMode.NEAREST if nearest else v2.InterpolationMode.BILINEAR,
            antialias=not nearest,
        )


class RandomGamma(v2.Transform):  # type: ignore[misc]
    """Lighten or darken: fluorescence images differ by a factor of ten in brightness."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the exponent between 1/2 and 2."""
        return {"gamma": math.exp(_uniform(-1, 1) * math.log(2.0))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it to images only."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        return functional.adjust_gamma(inpt, gamma=params["gamma"])


def training_transform(settings: AugmentSettings) -> v2.Transform:
    """Return the transform of (`tv_tensors.Image`, `tv_tensors.Mask`) used in training."""
    return v2.Compose(
        [
            ScaledCrop(settings),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomApply([v2.RandomRotation((90, 90))], p=0.5),
            v2.RandomApply([RandomGamma()], p=0.5),
            v2.RandomApply([v2.ColorJitter(brightness=0.3, contrast=0.3)], p=0.5),
            v2.RandomApply([v2.ColorJitter(saturation=0.3, hue=0.05)], p=0.2),
            v2.RandomGrayscale(p=0.1),
            v2.RandomInvert(p=0.05),
            v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.2))], p=0.1),
        ]
    )


def augmented(
    image: InstanceImage, transform: v2.Transform, settings: AugmentSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a crop as float32 (3, crop, crop) in 0..1 and its target in torchvision's detection form."""
    pixels, instances = transform(tv_tensors.Image(image.pixels), tv_tensors.Mask(image.instances))
    scaled = functional.to_dtype(pixels, torch.float32, scale=True)
    target = target_of(instances.as_subclass(Tensor), image.categories, settings.smallest_area)
    target["boxes"] = pasted_boxes(target["boxes"], pixel=settings.resize_to / min(image.instances.shape))
    return scaled.as_subclass(Tensor), target


def target_of(instances: Tensor, categories: Tensor, smallest_area: int = 1) -> dict[str, Tensor]:
    """Expand an integer map (height, width) to `boxes`, `labels` and `masks` of torchvision's detectors.

    `boxes` float32 (n, 4) x1, y1, x2, y2 half-open = pycocotools' `toBbox` of the mask; `labels` int64 (n,);
    `masks` uint8 (n, height, width). Instances below `smallest_area` pixels are left out.
    """
    areas = torch.bincount(instances.flatten().long(), minlength=len(categories) + 1)[1:]
    kept = torch.nonzero(areas >= max(1, smallest_area)).flatten()
    masks = instances[None] == (kept + 1)[:, None, None]
    boxes = masks_to_boxes(masks) if len(kept) else torch.zeros(0, 4)
    boxes[:, 2:] += 1  # torchvision's function names the last pixel, a half-open box the first one outside
    return {"boxes": boxes, "labels": categories[kept], "masks": masks.to(torch.uint8)}


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
