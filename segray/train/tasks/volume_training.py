"""The training of a network of volumes: a semantic training on patches, scored on whole volumes. No Ray.

Losses and scores know no axes but rows and columns: a volume (depth, height, width) is passed to them as
(depth x height, width), which changes no sum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import fsspec
import numpy as np
import torch
from torch import Tensor, nn

from segray.models.device import DTYPES
from segray.models.modelfile import VolumeCard
from segray.models.volume_networks import least_patch
from segray.models.volume_windows import by_windows
from segray.train.tasks.semantic_training import SemanticRecipe, SemanticTraining
from segray.train.transforms.semantic import Batch


@dataclass(frozen=True, kw_only=True)
class VolumeRecipe(SemanticRecipe):
    """The recipe of a network of volumes."""

    card: VolumeCard  # type: ignore[assignment]  # the fields that the training reads are the same

    def training(self, device: torch.device) -> "VolumeTraining":
        """Return the training of this process, see `Recipe`."""
        return VolumeTraining(self, device)


class VolumeTraining(SemanticTraining):
    """The training of a network that classifies each voxel."""

    recipe: VolumeRecipe
    memory_format = torch.contiguous_format

    def draw(self, picture: Batch, filesystem: fsspec.AbstractFileSystem, folder: str) -> None:
        """Write slice | truth | prediction | error of the slice with the most objects, see `Training`."""
        from segray.train.reporting.samples import Sample, panels, write_panels

        voxels = picture.pixels[0, 0]
        truth = picture.classes[0].reshape(voxels.shape).numpy()
        found = self.classes(picture.pixels)[0].reshape(voxels.shape).numpy()
        slice_ = int((truth != 0).sum(axis=(1, 2)).argmax())
        grey = grey_of(voxels[slice_].numpy(), self.recipe.card.image_mean[0], self.recipe.card.image_std[0])
        sample = Sample(picture.names[0], np.repeat(grey[..., None], 3, axis=2), truth[slice_], found[slice_])
        write_panels(filesystem, folder, sample.name, panels(sample, self.names))

    def _blank(self) -> Tensor:
        card = self.recipe.card
        return torch.zeros(1, 1, *least_patch(card.arch, card.arch_settings))

    def _logits(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Return the logits, float (n, outputs, d x h, w), of patches float32 (n, 1, d, h, w)."""
        return self._of_network(network, pixels).flatten(2, 3)

    def _scored_logits(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """Return the logits, float (n, outputs, d x h, w), of whole volumes."""
        patch = self.recipe.card.patch
        return self._of_network(lambda voxels: by_windows(network, voxels, patch), pixels).flatten(2, 3)

    def _of_network(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        normal = (pixels.to(self.device) - self._mean) / self._std
        kind, narrow = DTYPES[self.recipe.precision], self.recipe.precision != "fp32"
        with torch.autocast(self.device.type, kind if narrow else None, enabled=narrow):
            return network(normal)


def grey_of(voxels: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Return float voxels as grey uint8: black and white are 2 deviations from the mean."""
    return np.clip((voxels - mean) / (4 * std) * 255 + 128, 0, 255).astype(np.uint8)
