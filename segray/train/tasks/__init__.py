"""The kinds of models that can be trained: a class each, the job's only interface to them. No torch here.

    tasks/NAME.py            the task (`TrainingTask`): lists, reads, checks settings, makes the rest
    tasks/NAME_training.py   the recipe for workers, and their training: step, score, draw, model file
    transforms/NAME.py       the transform (`Transform`) of the loaders: augment and collate

Job, trainer, loader and loop know these protocols alone; another kind of model is another three files and a
line in `kind_of`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from segray.data.dataset import Data
from segray.data.pair_reader import LabelReading
from segray.data.pairs import Pairs
from segray.train.collate import Transform
from segray.train.settings import TrainSettings

if TYPE_CHECKING:
    from segray.models.start_weights import Start
    from segray.train.train_step import Recipe


class TrainingTask(Protocol):
    """A training task, as far as it is known before the images are read."""

    best: ClassVar[str]
    """Name of the metric that decides which network is kept."""
    counted: ClassVar[str]
    """What `Data.counts` counts."""

    @property
    def arch_settings(self) -> dict[str, Any]:
        """Return all settings of the architecture."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes."""

    @property
    def rules(self) -> object:
        """Return how labels are read; its text identifies the rules."""

    @classmethod
    def list_data(cls, settings: TrainSettings) -> Pairs:
        """List the training data; no image is opened. Raises SettingsError."""

    @classmethod
    def of(cls, settings: TrainSettings, listed: Pairs, start: "Start | None" = None) -> Self:
        """Return the task. Raises SettingsError where settings and data contradict each other."""

    def resolved(self) -> dict[str, Any]:
        """Return the resolved values of settings that are `auto`, for the identity of a run."""

    def reading(self) -> LabelReading:
        """Return how pairs are read; for windows of scenes, Ray must run."""

    def transform(self, data: Data) -> Transform:
        """Return the transform from images to the model's input."""

    def repeats(self, data: Data) -> NDArray[np.float64] | None:
        """Return how often each training pair is drawn in an epoch, float64 (pairs,); None: once."""

    def recipe(self, data: Data, precision: str) -> "Recipe":
        """Return the recipe that each worker gets, and from which it makes its training."""

    def files(self, data: Data) -> Mapping[str, bytes]:
        """Return further files to write to the output before training: name -> bytes."""


def kind_of(settings: TrainSettings) -> type[TrainingTask]:
    """Return the task class that `arch` requires."""
    if settings.is_instance:
        from segray.train.tasks.instance import InstanceTask

        return InstanceTask
    if settings.volumes:
        from segray.train.tasks.volume import VolumeTask

        return VolumeTask
    from segray.train.tasks.semantic import SemanticTask

    return SemanticTask
