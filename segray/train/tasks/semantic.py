"""The semantic task: label images, scenes with footprints, and the checks of their settings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from segray.data.dataset import Data
from segray.data.label_sample import decide_from
from segray.data.labels import LabelRules, colour_rules
from segray.data.pair_reader import LabelReading, Reading
from segray.data.pairs import Pairs, list_pairs
from segray.errors import SettingsError
from segray.log import say
from segray.train.settings import INSTANCE_ONLY, TrainSettings
from segray.train.warm_start import credits_of, first_encoder, first_weights, start_of

if TYPE_CHECKING:
    from torch import Tensor

    from segray.data.scene_windows import Windows
    from segray.models.encoder_start import EncoderStart
    from segray.models.start_weights import Start
    from segray.train.tasks.semantic_training import SemanticRecipe
    from segray.train.transforms.semantic import SemanticTransform


@dataclass(frozen=True)
class SemanticTask:
    """The task of semantic models; see `TrainingTask`."""

    settings: TrainSettings
    listed: Pairs
    rules: LabelRules
    names: tuple[str, ...]
    """Names of the classes."""
    loss: str
    outputs: int
    arch_settings: dict[str, Any]
    start: "Start | None" = None
    """Model to start training from."""
    encoder: "EncoderStart | None" = None
    """Weights that the encoder alone starts with."""
    best: ClassVar[str] = "miou"
    counted: ClassVar[str] = "class_pixels"

    @classmethod
    def list_data(cls, settings: TrainSettings) -> Pairs:
        """List pairs, or windows of scenes. Raises SettingsError."""
        if settings.footprints is None:
            return list_pairs(settings.data, settings.storage, settings.root)
        from segray.data.scene_windows import list_windows
        from segray.train.tasks.scenes import window_settings

        return list_windows(window_settings(settings), names_of(settings))

    @classmethod
    def of(cls, settings: TrainSettings, listed: Pairs, start: "Start | None" = None) -> "SemanticTask":
        """Return the task. Raises SettingsError where labels, classes, loss and architecture do not match."""
        from segray.models.architectures import check_recomputing, complete_settings
        from segray.models.smp_names import SMP_CLASSES
        from segray.train.build import check_constants
        from segray.train.losses import outputs_for

        defaults = TrainSettings.model_fields
        if given := [name for name in INSTANCE_ONLY if getattr(settings, name) != defaults[name].default]:
            raise SettingsError(
                *(f"{name}: is for instance models, {settings.arch} is a semantic one" for name in given)
            )
        rules, reason = _rules(settings, listed)
        names = names_of(settings)
        say(f"{len(listed.pairs):,} pairs, {len(names)} classes: {reason}")
        loss = settings.loss if settings.loss != "auto" else "bce_dice" if len(names) == 2 else "ce_dice"
        outputs = outputs_for(loss, len(names))
        check_constants(settings, loss, len(names))
        complete = complete_settings(settings.arch, settings.arch_settings)
        if settings.activation_checkpointing:
            check_recomputing(settings.arch)
        encoder = first_encoder(settings, lambda pretrained: _built(settings.arch, 1, complete, pretrained))
        if encoder is None and start is None and settings.arch.partition(":")[0] in SMP_CLASSES:
            _built(settings.arch, outputs, complete)  # raises for an encoder that does not fit the family
        task = cls(settings, listed, rules, names, loss, outputs, complete, start, encoder)
        task._first_weights()  # raises, before anything is read
        return task

    def resolved(self) -> dict[str, Any]:
        """Return resolved settings, see `TrainingTask`."""
        return {
            "classes": self.names,
            "values": self.rules.values,
            "loss": self.loss,
            "arch_settings": self.arch_settings,
            **start_of(self.start, self.encoder),
        }

    def reading(self) -> LabelReading:
        """Return how pairs are read, see `TrainingTask`."""
        usual = Reading(self.rules, self.settings.max_pixels, self.settings.storage)
        return usual if self.settings.footprints is None else cast("Windows", self.listed).reading(usual)

    def transform(self, data: Data) -> "SemanticTransform":
        """Return the transform, see `TrainingTask`."""
        from segray.train.transforms.semantic import SemanticTransform

        settings, (mean, _) = self.settings, self._moments(data)
        fill = tuple(round(255 * each) for each in mean)
        return SemanticTransform(settings.size, settings.fit, settings.augment, settings.seed, fill)

    def repeats(self, data: Data) -> NDArray[np.float64] | None:
        """Return how often each pair is drawn, float64 (pairs,), see `TrainingTask`."""
        return data.repeats

    def recipe(self, data: Data, precision: str) -> "SemanticRecipe":
        """Return the recipe, see `TrainingTask`."""
        from segray.models.modelfile import SemanticCard
        from segray.train.build import loss_of, recipe_fields
        from segray.train.tasks.semantic_training import SemanticRecipe

        settings, (mean, deviation) = self.settings, self._moments(data)
        card = SemanticCard(
            settings.arch,
            self.arch_settings,
            self.outputs,
            self.names,
            mean,
            deviation,
            settings.size,
            settings.fit,
            **credits_of(self.start, self.encoder),
        )
        return SemanticRecipe(
            **recipe_fields(settings, data.sizes["train"], precision),
            card=card,
            loss=loss_of(settings, self.loss, data.counts),
            activation_checkpointing=settings.activation_checkpointing,
            compile=settings.compile,
            start=self._first_weights(),
        )

    def files(self, data: Data) -> dict[str, bytes]:
        """Return further files, see `TrainingTask`."""
        return {}

    def _moments(self, data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
        begun = self.start or self.encoder
        return (data.mean, data.deviation) if begun is None else (begun.mean, begun.std)

    def _first_weights(self) -> "dict[str, Tensor] | None":
        def build(outputs: int) -> Any:
            return _built(self.settings.arch, outputs, self.arch_settings)

        labels = self.names if self.outputs > 1 else self.names[1:]
        return first_weights(self.settings, self.start or self.encoder, build, labels, self.outputs)


def _built(arch: str, outputs: int, settings: dict[str, Any], pretrained: bool = False) -> Any:
    from segray.models.semantic import build_semantic

    return build_semantic(arch, 3, outputs, settings, pretrained)


def names_of(settings: TrainSettings) -> tuple[str, ...]:
    """Return the names of the classes, from 0 up."""
    return tuple(settings.classes or ("background", "foreground"))


def _rules(settings: TrainSettings, listed: Pairs) -> tuple[LabelRules, str]:
    if settings.footprints is not None:
        return LabelRules(len(names_of(settings))), cast("Windows", listed).summary
    if settings.colours:
        rules = colour_rules(settings.colours, names_of(settings), settings.values, settings.void)
        return rules, f"{len(settings.colours)} colours, as the settings say"
    if settings.values != "auto":
        values, reason = settings.values, "as the settings say"
    else:
        labels = [pair.label for pair in listed.pairs]
        decision = decide_from(labels, settings.max_pixels, settings.storage, tuple(settings.void))
        values, reason = decision.values, decision.reason
    if values == "indices" and not settings.classes:
        raise SettingsError(f"classes: set the names of the labels' classes, from 0 up ({reason})")
    number = len(settings.classes) if settings.classes else 2
    return LabelRules(number, values, tuple(settings.void)), reason
