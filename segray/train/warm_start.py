"""Training that starts from a model: what is taken over from it, and which of its layers are frozen."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from segray.errors import SettingsError
from segray.models.architectures import task_of
from segray.models.pretrained import check_pretrained
from segray.models.weights import check_given
from segray.train.settings import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from segray.models.encoder_start import EncoderStart
    from segray.models.start_weights import Start

_STARTED = "starting weights: "


def started(settings: TrainSettings, start: "Start") -> TrainSettings:
    """Return the settings with the architecture of the start model.

    Raises SettingsError where they name another one, and where the architecture is unknown.
    """
    given = settings.model_fields_set
    if start.arch is None:
        if "arch" not in given:
            raise SettingsError(f"start_from: {start.name} does not hold its architecture; set --arch")
        return settings
    if "arch" in given and settings.arch != start.arch:
        raise SettingsError(f"arch: {start.name} is {start.arch}, not {settings.arch}; leave arch out")
    taken: dict[str, Any] = {"arch": start.arch}
    if start.arch_settings is not None:
        taken["arch_settings"] = start.arch_settings | settings.arch_settings
    if start.sizes is not None and task_of(start.arch) == "instance":
        sizes = dict(zip(("min_size", "max_size"), start.sizes, strict=True))
        taken |= {name: size for name, size in sizes.items() if name not in given}
        least, most = taken.get("min_size", settings.min_size), taken.get("max_size", settings.max_size)
        if least > most:
            raise SettingsError(f"min_size: {start.name} has {least}, above max_size ({most}); set both")
    return settings.model_copy(update=taken)


def first_weights(
    settings: TrainSettings,
    start: "Start | EncoderStart | None",
    build: Callable[[int], Any],
    labels: Sequence[str],
    outputs: int,
) -> "dict[str, Tensor] | None":
    """Return the start model's weights, fitted to the labels, or those of its encoder; None: random ones.

    build: returns the network with so many outputs. Raises SettingsError for layers to freeze that do not
    exist, and for a start model that does not fit.
    """
    if start is None and not settings.freeze and settings.encoder_lr_factor == 1:
        return None
    from segray.models.encoder_weights import has_encoder
    from segray.models.start_weights import Start, fitted

    network = build(outputs)
    check_frozen(network, settings.freeze)
    if settings.encoder_lr_factor != 1 and not has_encoder(network):
        raise SettingsError(f"encoder_lr_factor: {settings.arch} has no encoder of its own; set it to 1")
    if isinstance(start, Start):
        return fitted(start, labels, build, outputs)
    return None if start is None else start.state


def first_encoder(settings: TrainSettings, build: Callable[[bool], Any]) -> "EncoderStart | None":
    """Return the weights that the encoder alone starts with; None: there are none.

    build: returns the network, with the pretrained weights if True. Raises SettingsError where they cannot be
    had.
    """
    from segray.models import encoder_start

    if settings.encoder_weights is not None:
        given = settings.encoder_weights, settings.storage
        return encoder_start.given_start(settings.arch, *given, lambda: build(False))
    return encoder_start.pretrained_start(settings.arch, lambda: build(True)) if settings.pretrained else None


def check_encoder(settings: TrainSettings) -> None:
    """Raise SettingsError, before torch is imported, where the encoder's weights are known to be missing."""
    if settings.encoder_weights is not None:
        check_given(settings.encoder_weights, settings.storage)
    if settings.pretrained:
        check_pretrained(settings.arch)


def start_of(start: "Start | None", encoder: "EncoderStart | None") -> dict[str, str]:
    """Return what a run's identity holds of the weights that it starts with."""
    begun = start or encoder
    return {"start": begun.digest} if begun else {}


def credits_of(start: "Start | None", encoder: "EncoderStart | None") -> dict[str, Any]:
    """Return `source` and `licence` of a model card: those of the weights that the training starts with."""
    begun = start or encoder
    if begun is None:
        return {}
    of = "encoder started from" if begun is encoder else "started from"
    licence = (begun.licence or "unknown").removeprefix(_STARTED)
    return {"source": f"{of} {begun.source}", "licence": _STARTED + licence}


def has_frozen_norms(start: "Start | None") -> bool:
    """Return whether the model has a ResNet with frozen norm statistics, as torchvision's own for COCO."""
    if start is None or start.arch_settings is not None:
        return False
    return not any(
        name.startswith("backbone.") and name.endswith("num_batches_tracked") for name in start.state
    )


@dataclass(frozen=True)
class Frozen:
    """The frozen part of a network."""

    parameters: "list[nn.Parameter]"
    norms: "list[nn.Module]"
    """Its modules that keep running statistics."""

    def keep_statistics(self) -> None:
        """Freeze the statistics; to be called after `train()`, which unfreezes them."""
        for norm in self.norms:
            norm.eval()

    def drop_gradients(self) -> None:
        """Drop the gradients, so that the optimiser does nothing, not even decay."""
        for parameter in self.parameters:
            parameter.grad = None


def frozen_in(network: "nn.Module", names: Sequence[str]) -> Frozen:
    """Return the frozen part: `names` are prefixes of the dotted names of layers, or globs."""

    def is_meant(name: str) -> bool:
        return any(_means(each, name) for each in names)

    parameters = [parameter for name, parameter in network.named_parameters() if is_meant(name)]
    norms = [
        module
        for name, module in network.named_modules()
        if hasattr(module, "running_mean") and is_meant(f"{name}.running_mean")
    ]
    return Frozen(parameters, norms)


def check_frozen(network: "nn.Module", names: Sequence[str]) -> None:
    """Raise SettingsError for names that match no layer, and where nothing is left to train."""
    known = [name for name, _ in network.named_parameters()]
    layers = sorted({".".join(name.split(".")[:depth]) for name in known for depth in (1, 2)} - set(known))
    problems = []
    for each in names:
        if any(_means(each, name) for name in known):
            continue
        close = difflib.get_close_matches(each, layers, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(layers[:12])}"
        problems.append(f"freeze: the network has no layer {each}; {hint}")
    if names and not problems and all(any(_means(each, name) for each in names) for name in known):
        problems.append("freeze: nothing is left to train")
    if problems:
        raise SettingsError(*problems)


def _means(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
