"""What `segray train` does for a semantic model alone: labels looked at, settings checked, a run made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from segray.errors import SettingsError
from segray.sources.fetch import read_all
from segray.sources.labels import LabelRules, decide_values
from segray.sources.pairs import Pairs
from segray.train.data import Data
from segray.train.settings import INSTANCE_ONLY, TrainSettings
from segray.train.watch import say

if TYPE_CHECKING:
    from segray.train.stream import Reading
    from segray.train.trainer import Run
    from segray.train.windows import Windows

SAMPLED = 64
"""Label pictures that are looked at to see what their numbers mean."""


@dataclass(frozen=True)
class Design:
    """What is trained, as far as it is known before the pictures are."""

    rules: LabelRules
    names: tuple[str, ...]
    """Of the classes."""
    loss: str
    outputs: int
    arch_settings: dict[str, Any]
    best = "miou"
    counted = "class_pixels"
    """What `Data.counts` holds."""

    def resolved(self) -> dict[str, Any]:
        """For the identity of a run."""
        return {
            "classes": self.names,
            "values": self.rules.values,
            "loss": self.loss,
            "arch_settings": self.arch_settings,
        }

    def reading(self, settings: TrainSettings) -> "Reading":
        """How pairs are read."""
        from segray.train.stream import Reading

        return Reading(self.rules, settings.max_pixels, settings.storage)


def design_semantic(settings: TrainSettings, listed: Pairs) -> Design:
    """Raises SettingsError for labels, classes, loss and architecture that do not fit each other."""
    from segray.models.semantic import check_recomputing, complete_settings
    from segray.train.losses import outputs_for
    from segray.train.schedules import Schedule, ScheduleSettings

    defaults = TrainSettings.model_fields
    if given := [name for name in INSTANCE_ONLY if getattr(settings, name) != defaults[name].default]:
        raise SettingsError(
            *(f"{name}: is for instance models, {settings.arch} is a semantic one" for name in given)
        )
    rules, reason = _rules(settings, listed)
    names = names_of(settings)
    say(f"{len(listed.pairs):,} pairs, {len(names)} classes: {reason}")
    loss = settings.loss if settings.loss != "auto" else "bce_dice" if len(names) == 2 else "ce_dice"
    Schedule(ScheduleSettings(settings.schedule, settings.warmup_steps))
    complete = complete_settings(settings.arch, settings.arch_settings)
    if settings.activation_checkpointing:
        check_recomputing(settings.arch)
    return Design(rules, names, loss, outputs_for(loss, len(names)), complete)


def names_of(settings: TrainSettings) -> tuple[str, ...]:
    """Of the classes, from 0 up."""
    return tuple(settings.classes or ("background", "foreground"))


def _rules(settings: TrainSettings, listed: Pairs) -> tuple[LabelRules, str]:
    if settings.footprints is not None:
        return LabelRules(len(names_of(settings))), cast("Windows", listed).told
    if settings.values != "auto":
        values, reason = settings.values, "as the settings say"
    else:
        step = max(1, len(listed.pairs) // SAMPLED)
        sample = read_all([pair.label for pair in listed.pairs[::step][:SAMPLED]], settings.storage)
        data = [each for each in sample if isinstance(each, bytes)]
        decision = decide_values(data, settings.max_pixels, tuple(settings.void))
        values, reason = decision.values, decision.reason
    if values == "indices" and not settings.classes:
        raise SettingsError(f"classes: name the classes of the labels, from 0 up ({reason})")
    number = len(settings.classes) if settings.classes else 2
    return LabelRules(number, values, tuple(settings.void)), reason


def run_of_semantic(
    settings: TrainSettings, design: Design, data: Data, device: str, precision: str, reading: "Reading"
) -> "Run":
    """What every worker is given."""
    import ray

    from segray.models.semanticfile import SemanticCard
    from segray.train.examples import Framing
    from segray.train.losses import LossSettings, inverse_frequency
    from segray.train.optimizers import OptimizerSettings
    from segray.train.schedules import ScheduleSettings
    from segray.train.semantic import Task
    from segray.train.stream import Feed
    from segray.train.trainer import Run

    sizes = data.sizes
    card = SemanticCard(
        settings.arch,
        design.arch_settings,
        design.outputs,
        design.names,
        data.mean,
        data.deviation,
        settings.size,
        settings.fit,
    )
    weights = inverse_frequency(data.counts) if design.loss == "weighted_ce" else None
    task = Task(
        card,
        LossSettings(design.loss, class_weights=weights),
        OptimizerSettings(settings.optimizer, settings.lr, settings.weight_decay),
        ScheduleSettings(settings.schedule, settings.warmup_steps),
        settings.epochs,
        -(-sizes["train"] // settings.batch_size),
        settings.seed,
        precision,
        settings.clip,
        settings.ema,
        settings.pretrained,
        settings.accumulate,
        settings.activation_checkpointing,
        settings.compile,
    )
    fill = tuple(round(255 * each) for each in data.mean)
    feed = Feed(
        reading,
        Framing(settings.size, settings.fit, settings.augment, settings.seed, fill),
        settings.batch_size,
        settings.seed,
        sizes["train"],
        sizes["val"],
        settings.loaders,
        settings.ray.stall_timeout_s,
        None if data.repeats is None else ray.put(data.repeats),
    )
    return Run(task, feed, device, settings.output, settings.storage, settings.checkpoint_every_s)
