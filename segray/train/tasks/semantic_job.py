"""What `segray train` does for a semantic model alone: labels looked at, settings checked, a run made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from segray.data.dataset import Data
from segray.data.label_sample import decide_from
from segray.data.labels import LabelRules, colour_rules
from segray.data.pairs import Pairs
from segray.errors import SettingsError
from segray.log import say
from segray.train.settings import INSTANCE_ONLY, TrainSettings
from segray.train.warm_start import check_frozen

if TYPE_CHECKING:
    from torch import Tensor

    from segray.data.pair_reader import Reading
    from segray.data.scene_windows import Windows
    from segray.models.start import Start
    from segray.train.trainer import Run


@dataclass(frozen=True)
class Design:
    """What is trained, as far as it is known before the pictures are."""

    rules: LabelRules
    names: tuple[str, ...]
    """Of the classes."""
    loss: str
    outputs: int
    arch_settings: dict[str, Any]
    start: "Start | None" = None
    """What training begins with."""
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
            **({"start": self.start.digest} if self.start else {}),
        }

    def reading(self, settings: TrainSettings) -> "Reading":
        """How pairs are read."""
        from segray.data.pair_reader import Reading

        return Reading(self.rules, settings.max_pixels, settings.storage)


def design_semantic(settings: TrainSettings, listed: Pairs, start: "Start | None" = None) -> Design:
    """Raises SettingsError for labels, classes, loss and architecture that do not fit each other."""
    from segray.models.architectures import check_recomputing, complete_settings
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
    design = Design(rules, names, loss, outputs, complete, start)
    if start is not None or settings.freeze:
        _begin(settings, design)  # raises, before anything is read
    return design


def _begin(settings: TrainSettings, design: Design) -> "dict[str, Tensor] | None":
    """The weights that training begins with, fitted to the classes."""
    from segray.models.semantic import build_semantic
    from segray.models.start import fitted

    def build(outputs: int) -> Any:
        return build_semantic(settings.arch, 3, outputs, design.arch_settings, False)

    check_frozen(build(design.outputs), settings.freeze)
    if design.start is None:
        return None
    labels = design.names if design.outputs > 1 else design.names[1:]
    return fitted(design.start, labels, build, design.outputs)


def names_of(settings: TrainSettings) -> tuple[str, ...]:
    """Of the classes, from 0 up."""
    return tuple(settings.classes or ("background", "foreground"))


def _rules(settings: TrainSettings, listed: Pairs) -> tuple[LabelRules, str]:
    if settings.footprints is not None:
        return LabelRules(len(names_of(settings))), cast("Windows", listed).told
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
        raise SettingsError(f"classes: name the classes of the labels, from 0 up ({reason})")
    number = len(settings.classes) if settings.classes else 2
    return LabelRules(number, values, tuple(settings.void)), reason


def run_of_semantic(
    settings: TrainSettings, design: Design, data: Data, device: str, precision: str, reading: "Reading"
) -> "Run":
    """What every worker is given."""
    import ray

    from segray.models.semanticfile import SemanticCard
    from segray.train.build import loss_of, optimizer_of, schedule_of
    from segray.train.collate import Framing
    from segray.train.loader import Feed
    from segray.train.sampler import Order
    from segray.train.tasks.semantic import Task
    from segray.train.trainer import Run

    sizes, start = data.sizes, design.start
    mean, deviation = (data.mean, data.deviation) if start is None else (start.mean, start.std)
    card = SemanticCard(
        settings.arch,
        design.arch_settings,
        design.outputs,
        design.names,
        mean,
        deviation,
        settings.size,
        settings.fit,
    )
    task = Task(
        card,
        loss_of(settings, design.loss, data.counts),
        optimizer_of(settings),
        schedule_of(settings),
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
        None if start is None else _begin(settings, design),
        tuple(settings.freeze),
        settings.freeze_epochs,
    )
    fill = tuple(round(255 * each) for each in mean)
    repeats = None if data.repeats is None else ray.put(data.repeats)
    feed = Feed(
        reading,
        Framing(settings.size, settings.fit, settings.augment, settings.seed, fill),
        Order(settings.batch_size, settings.seed, sizes["train"], sizes["val"], repeats),
        settings.loaders,
        settings.ray.stall_timeout_s,
    )
    return Run(task, feed, device, settings.output, settings.storage, settings.checkpoint_every_s)
