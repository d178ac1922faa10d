"""torchvision's resize and normalisation for images of any size: a side never has less than one pixel."""

import math

from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


def resized(transform: GeneralizedRCNNTransform, height: int, width: int) -> tuple[int, int]:
    """Return torchvision's size, but at least one pixel: it fails on images as narrow as 1 x 2000."""
    if transform.fixed_size is not None:
        return transform.fixed_size[1], transform.fixed_size[0]
    scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
    return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)


class AnySizeTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform, which gives an image that it would leave no pixels the size of `resized`."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return an image (3, height, width) and its target at the size in the network."""
        height, width = image.shape[-2:]
        size = resized(self, height, width)
        if 1 not in size or (self.training and self._skip_resize):
            result: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
            return result
        image = interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            masks = interpolate(target["masks"][:, None].float(), size=size)[:, 0].byte()
            boxes = resize_boxes(target["boxes"], (height, width), size)
            target = {**target, "masks": masks, "boxes": boxes}
        return image, target


def has_known_sizes(transform: object) -> bool:
    """Return whether a transform's sizes are those of `resized`: a subclass of a user's may have others."""
    return type(transform) in (GeneralizedRCNNTransform, AnySizeTransform)
