"""The segray model file: weights, architecture, categories and normalisation, as plain types and tensors."""

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from segray.errors import SettingsError
from segray.models.checks import check_archive, check_normalisation, weights_in
from segray.models.maskrcnn import CompactSettings, build_compact_maskrcnn
from segray.models.resnetmaskrcnn import ResNetSettings, build_resnet50, build_resnet50_v2

T = TypeVar("T")
FORMAT = "segray-model/1"
ARCHITECTURES: dict[str, tuple[Callable[[int, Any], MaskRCNN], type[Any]]] = {
    "compact-maskrcnn": (build_compact_maskrcnn, CompactSettings),
    "maskrcnn_resnet50_fpn": (build_resnet50, ResNetSettings),
    "maskrcnn_resnet50_fpn_v2": (build_resnet50_v2, ResNetSettings),
}
"""`INSTANCE_ARCHITECTURES`, what builds each and what it takes."""


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model besides its weights; plain types only, so that no code is ever loaded."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    arch: str
    """A key of `ARCHITECTURES`."""
    arch_settings: dict[str, Any]
    """All fields of the architecture's settings class."""
    categories: dict[int, str]
    """Category id to name; label i of the network (1 is the first) is the i-th id in ascending order."""
    image_mean: tuple[float, ...]
    """Mean of each band, with pixels in 0..1."""
    image_std: tuple[float, ...]
    min_size: int
    """Shorter side of an image after the model's own resize, pixels."""
    max_size: int
    """Longest side after it."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    band_ranges: tuple[tuple[float, float], ...] | None = None
    """For each band the values that became 0 and 255 before anything else, of scenes that are no bytes; after
    scale and offset. None: not known, the percentiles of each scene."""
    licence: str = ""
    source: str = ""
    """Where weights and data come from."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict."""

    module: MaskRCNN
    """float32, on the CPU, in evaluation mode, with the file's resize and normalisation in `.transform`."""
    card: ModelCard
    digest: str
    """sha256 of the file's bytes, hex."""

    @property
    def categories(self) -> dict[int, str]:
        """Category id to name."""
        return self.card.categories


def build_model(card: ModelCard) -> MaskRCNN:
    """Return the network of `card` with random weights, in training mode, with the card's resize.

    Raises SettingsError for an architecture or settings that this version does not know.
    """
    if card.arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise SettingsError(f"unknown architecture {card.arch!r}; this version builds {known}")
    build, settings_class = ARCHITECTURES[card.arch]
    try:
        model = build(len(card.categories), settings_class(**card.arch_settings))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"settings that {card.arch} does not take: {error}") from error
    model.transform.min_size = (card.min_size,)
    model.transform.max_size = card.max_size
    model.transform.image_mean = list(card.image_mean)
    model.transform.image_std = list(card.image_std)
    return model


def save_model_file(
    path: Path, card: ModelCard, state_dict: Mapping[str, Tensor], *, half: bool = True
) -> None:
    """Write the file, atomically. `half` stores floating-point weights as float16: half the size.

    Raises OSError if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(model_bytes(card, state_dict, half=half))
    temporary.replace(path)


def model_bytes(card: ModelCard, state_dict: Mapping[str, Tensor], *, half: bool = True) -> bytes:
    """The contents of a model file."""
    file = io.BytesIO()
    torch.save({"format": FORMAT, **asdict(card), "state_dict": _stored(state_dict, half)}, file)
    return file.getvalue()


def load_model_file(file: Path | BinaryIO) -> LoadedModel:
    """Read a model file without running code from it.

    Raises SettingsError, one line, for a file that carries code, is damaged, is another format, or whose
    weights do not fit its architecture; OSError for one that cannot be read.
    """
    name, data = (file.name, file.read_bytes()) if isinstance(file, Path) else ("model file", file.read())
    card, state_dict = _parse(name, data)
    module = build_model(card)
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        raise SettingsError(f"{name}: the weights do not fit {card.arch} with its settings") from error
    return LoadedModel(module.eval(), card, hashlib.sha256(data).hexdigest())


def _stored(state_dict: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
    kind = torch.float16 if half else torch.float32
    return {
        key: tensor.detach().to("cpu", kind if tensor.is_floating_point() else tensor.dtype).contiguous()
        for key, tensor in state_dict.items()
    }


def plain_contents(name: str, data: bytes) -> Any:
    """What `torch.save` wrote, on the CPU, without running code from it; `name` is said in errors.

    Raises SettingsError, one line, for anything else.
    """
    check_archive(name, data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingsError(f"{name}: refused, it carries code or is no file of torch.save") from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise SettingsError(f"{name}: damaged, or no file of torch.save") from error


def _parse(name: str, data: bytes) -> tuple[ModelCard, dict[str, Tensor]]:
    content = plain_contents(name, data)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SettingsError(f"{name}: not a segray model file (format {FORMAT})")
    card = card_of(ModelCard, name, content)
    return card, weights_in(name, content["state_dict"])


def card_of(kind: type[T], name: str, content: Mapping[str, Any]) -> T:
    """Everything in a model file besides format and weights, as `kind`, whose field types it is held to.

    Raises SettingsError, one line, for a file that lacks a field, has another one or other types in it.
    """
    fields = {key: value for key, value in content.items() if key not in ("format", "state_dict")}
    try:
        card: Any = TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise SettingsError(f"{name}: incomplete segray model file: {field}: {problem['msg']}") from error
    if "state_dict" not in content:
        raise SettingsError(f"{name}: incomplete segray model file: state_dict: Field required")
    check_normalisation(name, card.image_mean, card.image_std)
    return cast(T, card)
