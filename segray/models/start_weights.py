"""The start of `train --start-from`: the weights of a model, and its metadata."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.catalog import named_model
from segray.models.weights import LoadedModel, is_sam, load_weights
from segray.storage import StorageSettings


@dataclass(frozen=True)
class Start:
    """A model to start training from."""

    name: str
    """The value of `--start-from`, without credentials."""
    digest: str
    """sha256 of the weights, hex."""
    arch: str | None
    """Architecture; None where it is unknown, as for a factory's model."""
    arch_settings: dict[str, Any] | None
    """All settings of the architecture; None: its defaults."""
    labels: tuple[str | None, ...]
    """Class of each output, background included: the first is background of an instance model."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    state: dict[str, Tensor]
    sizes: tuple[int, int] | None = None
    """Shorter and longer side of an instance model's images."""
    licence: str = ""
    """Of the weights, as far as it is known."""

    @property
    def source(self) -> str:
        """Return the model's name: its own source is in its card."""
        return self.name


def load_start(spec: str, storage: StorageSettings) -> Start:
    """Return the model that `spec` names, of any task.

    Raises SettingsError as `load_weights` does, and for a factory's model that has no state dict.
    """
    if is_sam(spec, storage):
        raise SettingsError(f"start_from: {spec}: SAM has no classes to train, and is not trained here")
    model = load_weights(spec, storage)
    if not isinstance(model.module, nn.Module):
        raise SettingsError(f"start_from: {model.name} is no torch module: it has no weights to start from")
    card, named, labels = model.card, named_model(model.name), _labels(model)
    arch = card.arch if card else named.arch if named else _torchvision_arch(model.module)
    settings = card.arch_settings if card else None
    licence = card.licence if card else named.licence if named else ""
    state = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu()
        for name, tensor in model.module.state_dict().items()
    }
    if card is not None and card.task == "volume":
        raise SettingsError(f"start_from: {model.name} is a model of volumes, which cannot be started from")
    if card is not None and card.task == "semantic":
        moments = model.mean, model.std
        return Start(model.name, model.digest, arch, settings, labels, *moments, state, licence=licence)
    transform = getattr(model.module, "transform", None)
    mean, std = (tuple(getattr(transform, name, ())) for name in ("image_mean", "image_std"))
    sizes = (card.min_size, card.max_size) if card else None
    return Start(model.name, model.digest, arch, settings, labels, mean, std, state, sizes, licence)


def _labels(model: LoadedModel) -> tuple[str | None, ...]:
    """Return the class of each output; a single output of a semantic model stands for class 1."""
    if model.card is not None and model.card.task == "semantic":
        return model.classes if model.card.outputs > 1 else model.classes[1:]
    ids = model.category_ids
    numbered = dict(enumerate(ids, start=1)) if ids is not None else {each: each for each in model.categories}
    labels: list[str | None] = [None] * (max(numbered, default=0) + 1)
    for label, category in numbered.items():
        labels[label] = model.categories[category]
    return tuple(labels)


def _torchvision_arch(module: Any) -> str | None:
    """Return the architecture of a state dict of torchvision's Mask R-CNN."""
    if not hasattr(module, "roi_heads"):
        return None
    version = "" if hasattr(module.roi_heads.box_head, "fc6") else "_v2"
    layers = getattr(getattr(module.backbone, "body", None), "layer3", ())
    resnet = "resnet101" if len(layers) == 23 else "resnet50"
    return f"maskrcnn_{resnet}_fpn{version}"


def fitted(
    start: Start, labels: Sequence[str], build: Callable[[int], nn.Module], outputs: int
) -> dict[str, Tensor]:
    """Return the start's weights for a network with other classes: those that both have in common.

    labels: class of each output, likewise. build: returns the network with so many outputs, of which it has
    `outputs`. In the layers with a number for each class (those whose shapes depend on `outputs`) a class
    that the start knows keeps its own weights, by name; a new one has none, and such a layer is left
    out where no class is known. Raises SettingsError where other layers differ.
    """
    here, wider = (dict(build(number).state_dict()) for number in (outputs, outputs + 1))
    heads = {name for name, tensor in here.items() if tensor.shape != wider[name].shape}
    misfits = [
        f"{name} {tuple(start.state[name].shape)}, not {tuple(tensor.shape)}"
        if name in start.state
        else f"no {name}"
        for name, tensor in here.items()
        if name not in heads and (name not in start.state or start.state[name].shape != tensor.shape)
    ]
    misfits = [each for each in misfits if not each.endswith("num_batches_tracked")]
    if misfits:
        message = f"its weights do not fit the architecture: {misfits[0]}"
        more = f" and {len(misfits) - 1} more" * (len(misfits) > 1)
        raise SettingsError(f"start_from: {start.name}: {message}{more}")
    rows = _rows_in_common(start.labels, labels)
    kept = {name: start.state[name] for name in here if name in start.state and name not in heads}
    for name in sorted(heads):
        part = _head(start.state.get(name), here[name], rows, len(start.labels), outputs)
        if part is not None:
            kept[name] = part
    return kept


def _rows_in_common(theirs: Sequence[str | None], ours: Sequence[str]) -> dict[int, int]:
    """Return output of the new network -> output of the start."""
    places = {name: place for place, name in enumerate(theirs) if name is not None}
    found = {place: places[name] for place, name in enumerate(ours) if name in places}
    is_background = len(theirs) > 0 and theirs[0] is None
    return {0: 0, **found} if is_background else found


def _head(
    theirs: Tensor | None, ours: Tensor, rows: Mapping[int, int], number: int, outputs: int
) -> Tensor | None:
    """Return a head's tensor, NaN where the network's initial weights stay; None where all of them do."""
    if theirs is None or not rows or theirs.shape[1:] != ours.shape[1:] or theirs.shape[0] % number:
        return None
    each = ours.shape[0] // outputs
    if theirs.shape[0] // number != each:
        return None
    made = torch.full(ours.shape, float("nan"), device="cpu")
    for here, there in rows.items():
        made[here * each : (here + 1) * each] = theirs[there * each : (there + 1) * each]
    return made


def begin_with(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `fitted` weights (name -> tensor of its shape), in place; NaN keeps the initial weights."""
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensor = tensor.to(own[name].device)
                own[name].copy_(torch.where(torch.isnan(tensor), own[name], tensor))
            else:
                own[name].copy_(tensor)
