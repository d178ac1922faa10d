"""The model file of a semantic network: weights, architecture, classes and normalisation, as plain types."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.models.checks import weights_in
from segray.models.modelfile import card_of, plain_contents
from segray.models.semantic import build_semantic

FORMAT = "segray-semantic/1"


@dataclass(frozen=True)
class SemanticCard:
    """Everything about a network besides its weights; plain types only, so that no code is ever loaded."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    arch: str
    """As `build_semantic` takes it."""
    arch_settings: dict[str, Any]
    """All settings of the architecture."""
    outputs: int
    """1: probability of class 1 by a sigmoid; else one logit a class."""
    classes: tuple[str, ...]
    """Names of the classes, from 0 up."""
    image_mean: tuple[float, ...]
    """Mean of each band, with pixels in 0..1."""
    image_std: tuple[float, ...]
    size: int
    """Side of the pictures it was trained on, pixels."""
    fit: str
    """`crop`: at their own scale; `resize`: brought to `size` x `size`."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class LoadedSemantic:
    """A network ready to predict."""

    module: nn.Module
    """float32, on the CPU, in evaluation mode; takes pixels that are normalised."""
    card: SemanticCard
    digest: str
    """sha256 of the file's bytes, hex."""


def network_of(card: SemanticCard, *, pretrained: bool = False) -> nn.Module:
    """The network with random weights (the encoder's from ImageNet if `pretrained`), in training mode."""
    return build_semantic(card.arch, len(card.bands), card.outputs, card.arch_settings, pretrained)


def classes_of(logits: Tensor) -> Tensor:
    """(n, outputs, h, w) -> uint8 (n, h, w): the class of the highest probability."""
    return (logits[:, 0] > 0).byte() if logits.shape[1] == 1 else logits.argmax(1).byte()


def semantic_bytes(card: SemanticCard, state_dict: Mapping[str, Tensor]) -> bytes:
    """The contents of a model file; weights as they are, on the CPU."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    file = io.BytesIO()
    torch.save({"format": FORMAT, **asdict(card), "state_dict": weights}, file)
    return file.getvalue()


def load_semantic(name: str, data: bytes) -> LoadedSemantic:
    """What `semantic_bytes` wrote; `name` is said in errors.

    Raises SettingsError, one line, for a file that carries code, is damaged, is another format, or whose
    weights do not fit its architecture.
    """
    content = plain_contents(name, data)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SettingsError(f"{name}: not a semantic segray model file (format {FORMAT})")
    card = card_of(SemanticCard, name, content)
    state_dict = weights_in(name, content["state_dict"])
    module = network_of(card)
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        raise SettingsError(f"{name}: the weights do not fit {card.arch} with its settings") from error
    return LoadedSemantic(module.eval(), card, hashlib.sha256(data).hexdigest())
