"""The instance task: COCO files, annotate's format, scenes with footprints, and the checks of settings."""

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from segray.data.coco_listing import CocoListing, list_coco
from segray.data.dataset import Data, splits_json
from segray.data.label_listing import holds_labels, list_labels
from segray.data.pair_reader import CocoReading, LabelReading
from segray.data.pairs import Pairs
from segray.errors import SettingsError
from segray.log import say
from segray.train.settings import TrainSettings
from segray.train.warm_start import (
    credits_of,
    first_encoder,
    first_weights,
    has_frozen_norms,
    start_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from segray.data.scene_windows import Windows
    from segray.models.encoder_start import EncoderStart
    from segray.models.modelfile import ModelCard
    from segray.models.start_weights import Start
    from segray.train.tasks.instance_training import InstanceRecipe
    from segray.train.transforms.instance import InstanceTransform

_SEMANTIC = (
    "classes", "values", "void", "loss", "loss_settings", "class_weights", "fit", "oversample",
    "activation_checkpointing", "compile",
)  # fmt: skip
"""Settings of semantic training alone."""
_COLOURED = 2 / 255
"""Images whose bands differ by more in their means count as coloured."""


@dataclass(frozen=True)
class InstanceTask:
    """The task of instance models; see `TrainingTask`."""

    settings: TrainSettings
    listed: Pairs
    categories: dict[int, str]
    arch_settings: dict[str, Any]
    start: "Start | None" = None
    """Model to start training from."""
    encoder: "EncoderStart | None" = None
    """Weights that the encoder alone starts with."""
    best: ClassVar[str] = "ap"
    counted: ClassVar[str] = "instances"

    @classmethod
    def list_data(cls, settings: TrainSettings) -> Pairs:
        """List a COCO file, labels in annotate's format, or windows of scenes. Raises SettingsError."""
        data, storage = settings.data, settings.storage
        if settings.footprints is not None:
            from segray.data.scene_windows import list_windows
            from segray.train.tasks.scenes import categories_of, window_settings

            return list_windows(window_settings(settings), categories_of(settings))
        if not data.lower().endswith(".json") and holds_labels(data, storage):
            if settings.root is not None:
                raise SettingsError("root: labels in annotate's format have full addresses of images")
            return list_labels(data, storage, settings.min_score)
        if settings.min_score is not None:
            raise SettingsError("min_score: for labels in annotate's format, which have scores")
        return list_coco(data, storage, settings.root)

    @classmethod
    def of(cls, settings: TrainSettings, listed: Pairs, start: "Start | None" = None) -> "InstanceTask":
        """Return the task. Raises SettingsError with all settings that an instance model does not have."""
        from segray.models.imports import import_torchvision

        import_torchvision()
        from segray.models.architectures import architecture, complete_settings
        from segray.train.build import check_constants
        from segray.train.transforms.strength import APPLIED_TO_INSTANCES

        defaults = TrainSettings.model_fields
        problems = [
            f"{name}: is for semantic models, {settings.arch} is an instance model"
            for name in _SEMANTIC
            if getattr(settings, name) != defaults[name].default
            and not (name == "classes" and settings.footprints is not None)
        ]
        given = settings.augment.model_dump(exclude={"preset", *APPLIED_TO_INSTANCES}, exclude_none=True)
        problems += [f"augment.{name}: is for semantic models" for name in given]
        if settings.pretrained and not architecture(settings.arch).library.pretrained:
            problems.append(f"pretrained: there are no weights for {settings.arch}")
        complete, pretrained = dict[str, Any](), settings.pretrained or has_frozen_norms(start)
        try:
            complete = complete_settings(settings.arch, settings.arch_settings, pretrained=pretrained)
        except SettingsError as error:
            problems += [f"arch_settings: {line}" for line in error.lines]
        try:
            check_constants(settings)
        except SettingsError as error:
            problems += error.lines
        if problems:
            raise SettingsError(*problems)
        categories, summary = _about(listed)
        task = cls(settings, listed, categories, complete, start)
        task._check_build()
        task = replace(task, encoder=first_encoder(settings, task._built))
        task._first_weights()  # raises, before anything is read
        say(summary)
        return task

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the categories."""
        return tuple(self.categories.values())

    @property
    def rules(self) -> str:
        """Return how labels are read, see `TrainingTask`."""
        return f"COCO categories {sorted(self.categories)}"

    def resolved(self) -> dict[str, Any]:
        """Return resolved settings, see `TrainingTask`."""
        categories = {str(number): name for number, name in self.categories.items()}
        begun = start_of(self.start, self.encoder)
        return {"classes": categories, "arch_settings": self.arch_settings, **begun}

    def reading(self) -> LabelReading:
        """Return how pairs are read, see `TrainingTask`."""
        usual = CocoReading(self.categories, self.settings.max_pixels, self.settings.storage)
        return usual if self.settings.footprints is None else cast("Windows", self.listed).reading(usual)

    def transform(self, data: Data) -> "InstanceTransform":
        """Return the transform, see `TrainingTask`."""
        from segray.train.transforms.instance import CropSettings, InstanceTransform

        settings = self.settings
        crop = CropSettings(settings.size, settings.min_size, whole=self._window)
        return InstanceTransform(crop, settings.augment, tuple(sorted(self.categories)), settings.seed)

    def repeats(self, data: Data) -> NDArray[np.float64] | None:
        """Return how often each pair is drawn, float64 (pairs,), see `TrainingTask`."""
        return kind_repeats(data) if self.settings.balance_kinds else None

    def recipe(self, data: Data, precision: str) -> "InstanceRecipe":
        """Return the recipe, see `TrainingTask`."""
        from segray.train.build import recipe_fields
        from segray.train.tasks.instance_training import InstanceRecipe

        mean, deviation = data.mean, data.deviation
        begun = self.start or self.encoder
        if begun is not None and begun.mean:
            mean, deviation = begun.mean, begun.std
        return InstanceRecipe(
            **recipe_fields(self.settings, data.sizes["train"], precision),
            card=self._card(mean, deviation),
            window=self._window,
            start=self._first_weights(),
        )

    def files(self, data: Data) -> dict[str, bytes]:
        """Return further files, see `TrainingTask`."""
        if self.settings.footprints is not None:
            return {}
        return {"splits.json": splits_json(data.pairs, data.splits, self.categories)}

    @property
    def _window(self) -> int | None:
        """Return the side of windows of scenes; None for images."""
        return None if self.settings.footprints is None else self.settings.tiling.tile

    def _card(
        self, mean: tuple[float, ...] = (0.5,) * 3, deviation: tuple[float, ...] = (0.5,) * 3
    ) -> "ModelCard":
        from segray.models.modelfile import ModelCard

        settings = self.settings
        sizes = settings.min_size, settings.max_size
        return ModelCard(
            settings.arch, self.arch_settings, self.categories, mean, deviation, *sizes,
            **credits_of(self.start, self.encoder),
        )  # fmt: skip

    def _check_build(self) -> None:
        """Raise SettingsError for settings that the architecture does not have."""
        import torch

        from segray.models.modelfile import build_model

        with torch.device("meta"):
            build_model(self._card())

    def _built(self, pretrained: bool) -> Any:
        from segray.models.modelfile import build_model

        return build_model(self._card(), pretrained=pretrained)

    def _first_weights(self) -> "dict[str, Tensor] | None":
        from segray.models.modelfile import build_model

        def build(outputs: int) -> Any:
            return build_model(replace(self._card(), categories=dict.fromkeys(range(1, outputs), "")))

        names = [name for _, name in sorted(self.categories.items())]
        return first_weights(
            self.settings, self.start or self.encoder, build, ["\0background", *names], len(names) + 1
        )


def _about(listed: Pairs) -> tuple[dict[int, str], str]:
    """Return the categories by id, and a summary."""
    if isinstance(listed, CocoListing):
        return listed.categories, listed.summary()
    windows = cast("Windows", listed)
    return dict(enumerate(windows.names, start=1)), windows.summary


def kind_repeats(data: Data) -> NDArray[np.float64]:
    """Return how often each training image is drawn, float64 (images,): a kind with n of them by sqrt(n).

    The kind is height, width and whether there is colour: a cheap indication of the instrument.
    """
    means = np.stack(data.trained["sums"].to_pylist()) / data.trained["pixels"].to_numpy()[:, None]
    coloured = np.ptp(means, axis=1) > _COLOURED
    annotations = data.table["annotations"].slice(0, data.sizes["train"]).to_pylist()
    sizes = np.array([json.loads(each)["size"] for each in annotations])
    kinds = np.column_stack([sizes, coloured])
    _, number, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(counts[number.ravel()])
    return np.asarray(weights / weights.mean(), np.float64)
