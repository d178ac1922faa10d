"""Images -> logits or probabilities on a device; no tables, no files."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from segray.models.device import Precision, arithmetic
from segray.models.semanticfile import classes_of
from segray.models.semanticweights import SemanticModel

TURNS = {
    "none": [(0, False)],
    "flip": [(0, False), (0, True)],
    "d4": [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)],
}
"""Name -> (quarter turns, mirrored) of each view: the elements of the dihedral group that are averaged."""


class Network:
    """One semantic model on one device."""

    def __init__(self, model: SemanticModel, device: str, precision: Precision, tta: str = "none") -> None:
        """device and precision: resolved. tta: a key of `TURNS`."""
        self.device, self.precision, self.views = torch.device(device), precision, TURNS[tta]
        self.resized_to = model.resized_to
        self.module = model.module
        if isinstance(self.module, torch.nn.Module):
            self.module = self.module.to(self.device).to(memory_format=torch.channels_last)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(model.mean, device=self.device).reshape(shape)
        self._std = torch.tensor(model.std, device=self.device).reshape(shape)

    def labels(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """n images (h, w, 3) uint8 of one shape -> classes (n, h, w).

        Without augmentation they are the classes of the highest logit, as in training's own scores.
        """
        with arithmetic(self.device, self.precision):
            if len(self.views) == 1:
                found = classes_of(self._logits(self._pixels(images), images[0].shape[:2]))
            else:
                found = self._probabilities(images).argmax(1).byte()
        labels: NDArray[np.uint8] = found.cpu().numpy()
        return labels

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """n images (h, w, 3) uint8 of one shape -> (n, classes, h, w), 255 is 1."""
        with arithmetic(self.device, self.precision):
            found = self._probabilities(images).mul(255).round_().byte()
        values: NDArray[np.uint8] = found.cpu().numpy()
        return values

    def _probabilities(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(n, classes, h, w) float32: the mean over the views."""
        pixels, total = self._pixels(images), None
        for quarters, mirrored in self.views:
            view = torch.rot90(pixels.flip(-1) if mirrored else pixels, quarters, (-2, -1))
            shape = images[0].shape[:2] if quarters % 2 == 0 else images[0].shape[1::-1]
            found = torch.rot90(_shares(self._logits(view, shape)), -quarters, (-2, -1))
            found = found.flip(-1) if mirrored else found
            total = found if total is None else total + found
        assert total is not None
        return total / len(self.views)

    def _pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """uint8 (n, 3, h, w) on the device, at the network's size."""
        pixels = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
        if self.resized_to is not None:  # as training does, bytes again after it
            side = [self.resized_to, self.resized_to]
            narrow = pixels.shape[-1] == 1  # torch 2.13 writes wrong levels for bytes in a single column
            pixels = functional.resize(pixels.float() if narrow else pixels, side).round().to(torch.uint8)
        return pixels

    def _logits(self, pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
        """uint8 (n, 3, ...) -> float32 (n, outputs, *shape)."""
        normal = pixels.float().div_(255).sub_(self._mean).div_(self._std)
        logits: Tensor = self.module(normal.contiguous(memory_format=torch.channels_last)).float()
        if logits.shape[-2:] != shape:
            logits = interpolate(logits, shape, mode="bilinear", align_corners=False)
        return logits


def _shares(logits: Tensor) -> Tensor:
    """Probabilities (n, classes, h, w), both classes of a single output."""
    if logits.shape[1] == 1:
        one = logits.sigmoid()
        return torch.cat([1 - one, one], dim=1)
    return logits.softmax(1)
