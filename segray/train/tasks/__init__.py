"""What is trained: a class for each kind of model, and all that the job knows of it. No torch here.

    tasks/NAME.py            the task (`TrainingTask`): lists, reads, checks settings, makes the rest
    tasks/NAME_training.py   what workers are given, and their training: step, score, draw, model file
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
    from segray.models.start import Start
    from segray.train.training import Recipe


class TrainingTask(Protocol):
    """What is trained, as far as it is known before the images are."""

    best: ClassVar[str]
    """The figure that decides which network is kept."""
    counted: ClassVar[str]
    """What `Data.counts` holds."""

    @property
    def arch_settings(self) -> dict[str, Any]:
        """All settings of the architecture."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels name."""

    @property
    def rules(self) -> object:
        """What decides how labels are read; its text tells it from others."""

    @classmethod
    def list_data(cls, settings: TrainSettings) -> Pairs:
        """List what there is to train with; no image is opened. Raises SettingsError."""

    @classmethod
    def of(cls, settings: TrainSettings, listed: Pairs, start: "Start | None" = None) -> Self:
        """Return the task. Raises SettingsError for settings and data that do not fit each other."""

    def resolved(self) -> dict[str, Any]:
        """Return what settings that say `auto` came to, for the identity of a run."""

    def reading(self) -> LabelReading:
        """Return how pairs are read; of windows of scenes, Ray must run."""

    def transform(self, data: Data) -> Transform:
        """Return what images become on their way to the model."""

    def repeats(self, data: Data) -> NDArray[np.float64] | None:
        """Return how often each training pair is shown in an epoch; None: once."""

    def recipe(self, data: Data, precision: str) -> "Recipe":
        """Return what each worker is given; it makes the training of its process."""

    def files(self, data: Data) -> Mapping[str, bytes]:
        """Return what else is written into the output before training, by name."""


def kind_of(settings: TrainSettings) -> type[TrainingTask]:
    """Return the class of the task that `arch` asks for."""
    if settings.is_instance:
        from segray.train.tasks.instance import InstanceTask

        return InstanceTask
    from segray.train.tasks.semantic import SemanticTask

    return SemanticTask
