"""Images -> logits or probabilities on a device; no tables, no files."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from segray.models.device import DTYPES, Precision, arithmetic
from segray.models.fuse_activation import ActivatedConv2d, fuse_activations
from segray.models.fuse_batchnorm import fold_batch_norms
from segray.models.semantic import classes_of
from segray.models.weights import LoadedModel

TURNS = {
    "none": [(0, False)],
    "flip": [(0, False), (0, True)],
    "d4": [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)],
}
"""Name -> (quarter turns, mirrored) of each view: the elements of the dihedral group that are averaged."""


ONE = 65_535
"""A probability of 1 among 16-bit ones."""


class Network:
    """One semantic model on one device."""

    def __init__(self, model: LoadedModel, device: str, precision: Precision, tta: str = "none") -> None:
        """Load the model; device and precision: resolved. tta: a key of `TURNS`."""
        self.device, self.precision, self.views = torch.device(device), precision, TURNS[tta]
        self.resized_to = model.resized_to
        self.module = model.module
        if isinstance(self.module, torch.nn.Module):
            self.module = self.module.to(self.device).to(memory_format=torch.channels_last)
            if model.card is not None:  # built here, so that its blocks are known
                self.module = fused(self.module, self.device, precision)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(model.mean, device=self.device).reshape(shape)
        self._std = torch.tensor(model.std, device=self.device).reshape(shape)

    def labels(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the classes (n, h, w) uint8 of n images (h, w, 3) uint8 of one shape.

        Without augmentation they are the classes of the highest logit, as in training's own scores. Raises
        ValueError for NaN.
        """
        labels, _ = self._answer(images, probabilities=False)
        return labels

    def labels_and_probabilities(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return `labels`, and uint16 probabilities (n, classes, h, w), `ONE` is 1: 8 bits would be too
        coarse.

        Raises ValueError for NaN.
        """
        labels, probabilities = self._answer(images, probabilities=True)
        assert probabilities is not None
        return labels, probabilities

    def _answer(
        self, images: Sequence[NDArray[np.uint8]], *, probabilities: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        with arithmetic(self.device, self.precision):
            pixels, shape = self._pixels(images), images[0].shape[:2]
            if len(self.views) == 1:
                logits = self._logits(pixels, shape)
                labels, shares = classes_of(logits), _shares(logits) if probabilities else None
            else:
                shares = self._mean_shares(pixels, shape)
                labels = shares.argmax(1).byte()
        fine = None
        if probabilities and shares is not None:
            fine = shares.mul(ONE).round_().int().cpu().numpy().astype(np.uint16)
        return labels.cpu().numpy(), fine

    def _mean_shares(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return (n, classes, h, w) float32: the mean over the views."""
        total = None
        for quarters, mirrored in self.views:
            view = torch.rot90(pixels.flip(-1) if mirrored else pixels, quarters, (-2, -1))
            shape = size if quarters % 2 == 0 else size[::-1]
            found = torch.rot90(_shares(self._logits(view, shape)), -quarters, (-2, -1))
            found = found.flip(-1) if mirrored else found
            total = found if total is None else total + found
        assert total is not None
        return total / len(self.views)

    def _pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return uint8 (n, 3, h, w) on the device, at the network's size."""
        pixels = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
        if self.resized_to is not None:  # as in training, rounded to uint8 again
            side = [self.resized_to, self.resized_to]
            narrow = pixels.shape[-1] == 1  # torch 2.13 writes wrong levels for bytes in a single column
            pixels = functional.resize(pixels.float() if narrow else pixels, side).round().to(torch.uint8)
        return pixels

    def _logits(self, pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return float32 logits (n, outputs, *shape) of uint8 (n, 3, ...)."""
        normal = pixels.float().div_(255).sub_(self._mean).div_(self._std)
        logits: Tensor = self.module(normal.contiguous(memory_format=torch.channels_last)).float()
        if logits.shape[-2:] != shape:
            logits = interpolate(logits, shape, mode="bilinear", align_corners=False)
        if logits.isnan().any():  # the class would be arbitrary, so the image is rejected
            raise ValueError("its logits are NaN")
        return logits


def fused(network: torch.nn.Module, device: torch.device, precision: Precision) -> torch.nn.Module:
    """Return a copy for inference, which has fewer passes over memory and the same answers up to rounding."""
    network = copy.deepcopy(network).eval()
    fold_batch_norms(network)
    if device.type == "cpu":
        fuse_activations(network)
    for module in network.modules():
        if isinstance(module, ActivatedConv2d) and precision != "fp32":  # autocast knows all others
            module.to(DTYPES[precision])
    return network


def _shares(logits: Tensor) -> Tensor:
    """Return probabilities (n, classes, h, w), both classes of a single output."""
    if logits.shape[1] == 1:
        one = logits.sigmoid()
        return torch.cat([1 - one, one], dim=1)
    return logits.softmax(1)
