"""The segray model file: weights and the model's card, as plain types and tensors, for every task.

A dict of `torch.save`: `format`, `task`, the fields of the card, `state_dict`. Files of the two previous
formats, which had no `task`, are read as well.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.architectures import architecture, parsed, part_of
from segray.models.checks import check_archive, check_normalisation, weights_in
from segray.models.semantic import build_semantic
from segray.models.volume_networks import build_volume

FORMAT = "segray-model/2"
_OLD_FORMATS = {"segray-model/1": "instance", "segray-semantic/1": "semantic"}
"""Old format -> task of its models."""


@dataclass(frozen=True, kw_only=True)
class _Card:
    """Metadata that every model has besides its weights; plain types only, so that no code is ever loaded."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    bands: tuple[str, ...] = ("red", "green", "blue")
    band_ranges: tuple[tuple[float, float], ...] | None = None
    """For each band of scenes that are not 8-bit, the values scaled to 0 and 255, after scale and offset.
    None: unknown, so the percentiles of each scene."""
    licence: str = ""
    source: str = ""
    """Source of the weights and of the training data."""


@dataclass(frozen=True)
class ModelCard(_Card):
    """Metadata of an instance model."""

    arch: str
    """A value of `--arch` whose row has the task `instance`."""
    arch_settings: dict[str, Any]
    """All fields of the architecture's settings class."""
    categories: dict[int, str]
    """Category id to name; label i of the network (1 is the first) is the i-th id in ascending order."""
    image_mean: tuple[float, ...]
    """Mean of each band, pixels scaled to 0..1."""
    image_std: tuple[float, ...]
    min_size: int
    """Shorter side of an image after the model's own resize, in pixels."""
    max_size: int
    """Longest side after the resize, in pixels."""
    task: Literal["instance"] = "instance"


@dataclass(frozen=True)
class SemanticCard(_Card):
    """Metadata of a semantic model."""

    arch: str
    """Architecture, as `build_semantic` takes it."""
    arch_settings: dict[str, Any]
    """All settings of the architecture."""
    outputs: int
    """1: sigmoid probability of class 1; else one logit per class."""
    classes: tuple[str, ...]
    """Names of the classes, from 0 up."""
    image_mean: tuple[float, ...]
    """Mean of each band, pixels scaled to 0..1."""
    image_std: tuple[float, ...]
    size: int
    """Side of the images it was trained on, in pixels."""
    fit: str
    """`crop`: crops at the image's own scale; `resize`: images resized to `size` x `size`."""
    task: Literal["semantic"] = "semantic"

    @property
    def categories(self) -> dict[int, str]:
        """Return class index -> name."""
        return dict(enumerate(self.classes))


@dataclass(frozen=True)
class VolumeCard(_Card):
    """Metadata of a model of volumes."""

    arch: str
    """A value of `--arch` whose row has the task `volume`."""
    arch_settings: dict[str, Any]
    """All fields of the architecture's settings class."""
    outputs: int
    """1: sigmoid probability of class 1; else one logit per class."""
    classes: tuple[str, ...]
    """Names of the classes, from 0 up."""
    image_mean: tuple[float, ...]
    """Mean of all voxels that it was trained on, in the volumes' own unit."""
    image_std: tuple[float, ...]
    patch: tuple[int, int, int]
    """(depth, height, width) of the network's input, in voxels."""
    bands: tuple[str, ...] = field(default=("intensity",), kw_only=True)
    """The one channel."""
    task: Literal["volume"] = "volume"

    @property
    def categories(self) -> dict[int, str]:
        """Return class index -> name."""
        return dict(enumerate(self.classes))


Card = ModelCard | SemanticCard | VolumeCard
_CARDS: dict[str, type[Card]] = {"instance": ModelCard, "semantic": SemanticCard, "volume": VolumeCard}


@dataclass(frozen=True)
class ModelFile:
    """The contents of a model file."""

    module: Any
    """Instances: torchvision's MaskRCNN, or a network with its interface (`mask_frame`: see
    `CustomDetector`), with the file's resize and normalisation in `.transform`. Semantic: a network that
    takes normalised pixels; one of volumes likewise voxels. float32, on the CPU, in evaluation mode."""
    card: Card
    digest: str
    """sha256 of the file's bytes, hex."""


def build_model(card: Card, *, pretrained: bool = False) -> Any:
    """Return the network of `card` with random weights, in training mode.

    An instance network has the card's resize and normalisation. pretrained: start with the architecture's
    pretrained weights, see `Library.pretrained`. Raises SettingsError for an architecture or settings that
    this version does not know.
    """
    if isinstance(card, SemanticCard):
        return build_semantic(card.arch, len(card.bands), card.outputs, card.arch_settings, pretrained)
    row = architecture(card.arch)
    if row.task != card.task:
        raise SettingsError(f"{card.arch} is a {row.task} architecture, not one of the task {card.task}")
    if isinstance(card, VolumeCard):
        return build_volume(card.arch, card.outputs, card.arch_settings, card.patch)
    try:
        settings = part_of(row.settings)(**card.arch_settings)
        _, encoder = parsed(card.arch)
        model = part_of(row.build)(
            *([encoder] if encoder else []), len(card.categories), settings, pretrained
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"settings that {card.arch} does not take: {error}") from error
    from segray.models.resize import AnySizeTransform  # torchvision, for instance models alone

    model.transform.__class__ = AnySizeTransform
    model.transform.min_size = (card.min_size,)
    model.transform.max_size = card.max_size
    model.transform.image_mean = list(card.image_mean)
    model.transform.image_std = list(card.image_std)
    return model


def model_bytes(card: Card, state_dict: Mapping[str, Tensor], *, half: bool | None = None) -> bytes:
    """Return the contents of a model file.

    half: store floating-point weights as float16, half the size, instead of float32; by default those of
    instance models.
    """
    kind = torch.float16 if (card.task == "instance" if half is None else half) else torch.float32
    weights = {
        key: tensor.detach().to("cpu", kind if tensor.is_floating_point() else tensor.dtype).contiguous()
        for key, tensor in state_dict.items()
    }
    file = io.BytesIO()
    torch.save({"format": FORMAT, **asdict(card), "state_dict": weights}, file)
    return file.getvalue()


def load_model_file(file: Path | bytes, name: str = "model file") -> ModelFile:
    """Read a model file, or its bytes, without running code from it; `name` is used in errors about bytes.

    Raises SettingsError, one line, for a file that carries code, is damaged, has another format, or whose
    weights do not fit its architecture; OSError for one that cannot be read.
    """
    name, data = (file.name, file.read_bytes()) if isinstance(file, Path) else (name, file)
    return model_of(name, plain_contents(name, data), hashlib.sha256(data).hexdigest())


def plain_contents(name: str, data: bytes) -> Any:
    """Return what `torch.save` wrote, on the CPU, without running code from it; `name` is used in errors.

    Raises SettingsError, one line, for anything else.
    """
    check_archive(name, data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingsError(f"{name}: refused, it carries code or is not a file of torch.save") from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise SettingsError(f"{name}: damaged, or not a file of torch.save") from error


def is_model_file(content: Any) -> bool:
    """Return whether `plain_contents` come from a segray model file of any version."""
    return isinstance(content, dict) and str(content.get("format")).startswith("segray-")


def model_of(name: str, content: Any, digest: str) -> ModelFile:
    """Return the model of a file's `plain_contents`. Raises SettingsError as `load_model_file` does."""
    card = _card_of(name, content)
    state_dict = weights_in(name, content["state_dict"])
    module: nn.Module = build_model(card)
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        raise SettingsError(f"{name}: the weights do not fit {card.arch} with its settings") from error
    return ModelFile(module.eval(), card, digest)


def _card_of(name: str, content: Any) -> Card:
    """Return everything in a model file besides format and weights, validated by the types of the card."""
    if not is_model_file(content) or content["format"] not in (FORMAT, *_OLD_FORMATS):
        raise SettingsError(f"{name}: not a segray model file (format {FORMAT})")
    task = content.get("task", _OLD_FORMATS.get(content["format"]))
    if task is None:
        raise SettingsError(f"{name}: incomplete segray model file: task: Field required")
    if str(task) not in _CARDS:
        known = ", ".join(_CARDS)
        raise SettingsError(f"{name}: a segray model for {str(task)[:80]!r}, this version reads {known}")
    fields = {key: value for key, value in content.items() if key not in ("format", "state_dict")}
    try:
        card = TypeAdapter[Card](_CARDS[str(task)]).validate_python(fields)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise SettingsError(f"{name}: incomplete segray model file: {field}: {problem['msg']}") from error
    if "state_dict" not in content:
        raise SettingsError(f"{name}: incomplete segray model file: state_dict: Field required")
    check_normalisation(name, card.image_mean, card.image_std)
    return card
