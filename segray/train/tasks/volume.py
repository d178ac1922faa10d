"""The task of volumes: NIfTI files and TIFF stacks with label volumes, and the checks of their settings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segray.data.dataset import Data
from segray.data.labels import LabelRules
from segray.data.pairs import Pairs, list_pairs
from segray.data.scan import column_sums
from segray.data.volume_reader import VolumeReading
from segray.errors import SettingsError
from segray.log import say
from segray.sources.volume import check_installed
from segray.train.settings import TrainSettings
from segray.train.tasks.semantic import names_of

if TYPE_CHECKING:
    from segray.models.start_weights import Start
    from segray.train.tasks.volume_training import VolumeRecipe
    from segray.train.transforms.volume import VolumeTransform


@dataclass(frozen=True)
class VolumeTask:
    """The task of models of volumes; see `TrainingTask`."""

    settings: TrainSettings
    listed: Pairs
    rules: LabelRules
    names: tuple[str, ...]
    """Names of the classes."""
    loss: str
    outputs: int
    arch_settings: dict[str, Any]
    best: ClassVar[str] = "miou"
    counted: ClassVar[str] = "class_voxels"

    @classmethod
    def list_data(cls, settings: TrainSettings) -> Pairs:
        """List pairs; raise SettingsError, also where the extra is missing."""
        check_installed()
        return list_pairs(settings.data, settings.storage, settings.root)

    @classmethod
    def of(cls, settings: TrainSettings, listed: Pairs, start: "Start | None" = None) -> "VolumeTask":
        """Return the task. Raises SettingsError where classes, loss, architecture and patch do not match."""
        from segray.models.architectures import complete_settings
        from segray.models.volume_networks import build_volume
        from segray.train.build import check_constants
        from segray.train.losses import outputs_for

        names = names_of(settings)
        values = "indices" if settings.values == "auto" else settings.values
        say(f"{len(listed.pairs):,} pairs of volumes, {len(names)} classes: labels hold {values}")
        loss = settings.loss if settings.loss != "auto" else "bce_dice" if len(names) == 2 else "ce_dice"
        outputs = outputs_for(loss, len(names))
        check_constants(settings, loss, len(names))
        complete = complete_settings(settings.arch, settings.arch_settings)
        build_volume(settings.arch, outputs, complete, settings.patch)  # raises, before anything is read
        rules = LabelRules(len(names), values, tuple(settings.void))
        return cls(settings, listed, rules, names, loss, outputs, complete)

    def resolved(self) -> dict[str, Any]:
        """Return resolved settings, see `TrainingTask`."""
        return {
            "classes": self.names,
            "values": self.rules.values,
            "loss": self.loss,
            "arch_settings": self.arch_settings,
            "patch": list(self.settings.patch),
            "patches": self.settings.patches,
        }

    def reading(self) -> VolumeReading:
        """Return how pairs are read, see `TrainingTask`."""
        return VolumeReading(self.rules, self.settings.max_pixels, self.settings.storage)

    def transform(self, data: Data) -> "VolumeTransform":
        """Return the transform, see `TrainingTask`."""
        from segray.train.transforms.volume import VolumeTransform

        settings, (mean, std) = self.settings, moments(data)
        return VolumeTransform(self._patch, settings.patches, settings.augment, settings.seed, mean, std)

    def repeats(self, data: Data) -> NDArray[np.float64] | None:
        """Return how often each pair is drawn, float64 (pairs,), see `TrainingTask`."""
        return data.repeats

    def recipe(self, data: Data, precision: str) -> "VolumeRecipe":
        """Return the recipe, see `TrainingTask`."""
        from segray.models.modelfile import VolumeCard
        from segray.train.build import loss_of, recipe_fields
        from segray.train.tasks.volume_training import VolumeRecipe

        settings, (mean, std) = self.settings, moments(data)
        card = VolumeCard(
            settings.arch, self.arch_settings, self.outputs, self.names, (mean,), (std,), self._patch
        )
        fields = recipe_fields(settings, data.sizes["train"], precision)
        return VolumeRecipe(**fields, card=card, loss=loss_of(settings, self.loss, data.counts))

    def files(self, data: Data) -> dict[str, bytes]:
        """Return further files, see `TrainingTask`."""
        return {}

    @property
    def _patch(self) -> tuple[int, int, int]:
        depth, height, width = self.settings.patch
        return depth, height, width


def moments(data: Data) -> tuple[float, float]:
    """Return mean and standard deviation of all training voxels.

    Raises SettingsError where all have one value.
    """
    voxels = data.trained["pixels"].to_numpy().sum()
    mean = float(column_sums(data.trained["sums"])[0] / voxels)
    variance = float(column_sums(data.trained["squares"])[0] / voxels) - mean**2
    if variance <= 1e-12 * max(mean**2, 1e-30):
        raise SettingsError(f"data: all voxels of the training volumes are {mean:g}")
    return mean, variance**0.5
