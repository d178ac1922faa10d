"""`--weights` of a semantic model: a model file, local or in a bucket, or a factory of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segray.errors import SettingsError
from segray.models.weights import WeightsKind, check_weights, name_of, pinned_spec, read_weights, weights_kind
from segray.storage import StorageSettings


@dataclass(frozen=True)
class SemanticModel:
    """A network ready to predict. Pickles to a worker: with its weights, or, for `python:`, by import."""

    name: str
    """As the user gave it, without credentials."""
    module: Any
    """float32, on the CPU, in evaluation mode: normalised (n, 3, h, w) to logits (n, outputs, h, w)."""
    classes: tuple[str, ...]
    """Names of the classes, from 0 up."""
    mean: tuple[float, ...]
    """Of each band, with pixels in 0..1."""
    std: tuple[float, ...]
    resized_to: int | None
    """Side of the square that pictures are brought to; None: they go in at their own scale."""
    digest: str
    """sha256, hex: of the file, or of a factory's source and its tensors."""
    band_ranges: tuple[tuple[float, float], ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.name.startswith("python:"):
            return SemanticModel, tuple(self.__dict__.values())
        return _load_again, (self.name, str(Path.cwd()), self.digest)


def check_semantic_weights(spec: str, storage: StorageSettings) -> None:
    """Raise SettingsError as `check_weights` does, and for the name of an instance model."""
    _refuse_instance_models(spec, check_weights(spec, storage))


def _refuse_instance_models(spec: str, kind: WeightsKind) -> None:
    if kind not in ("file", "python"):
        raise SettingsError(f"weights {spec}: finds instances, use it with `segray annotate`")


def load_semantic_weights(spec: str, storage: StorageSettings) -> SemanticModel:
    """Load the model that `spec` names.

    Raises SettingsError, in one line, for anything that keeps it from being loaded, an instance model
    included.
    """
    kind, spec = weights_kind(spec), pinned_spec(spec, storage)
    _refuse_instance_models(spec, kind)
    if kind == "python":
        return _from_factory(spec, None)
    from segray.models.semanticfile import load_semantic

    loaded = load_semantic(f"weights {name_of(spec)}", read_weights(spec, storage))
    card = loaded.card
    if len(card.bands) != 3:
        raise SettingsError(f"weights {name_of(spec)}: takes {len(card.bands)} bands, pictures have 3 here")
    resized = card.size if card.fit == "resize" else None
    return SemanticModel(
        name_of(spec), loaded.module, card.classes, card.image_mean, card.image_std, resized, loaded.digest
    )


def _from_factory(spec: str, folder: str | None) -> SemanticModel:
    """The factory's module carries `categories`: {0: "background", 1: "road"}; pixels come in 0..1."""
    from segray.models.factory import load_factory

    found = load_factory(spec, folder)
    names = found["categories"]
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        raise SettingsError(f"weights {spec}: the model needs `categories`, the names of its classes from 0")
    classes = tuple(names[number] for number in range(len(names)))
    nothing, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    ranges = found["band_ranges"]
    return SemanticModel(spec, found["module"], classes, nothing, one, None, found["digest"], ranges)


def _load_again(spec: str, folder: str, digest: str) -> SemanticModel:
    """What unpickling a `python:` model does at the worker: import it there, and compare."""
    model = _from_factory(spec, folder)
    if model.digest != digest:
        raise SettingsError(
            f"weights {spec}: another model than before; seed its weights, or give it an attribute `digest`"
        )
    return model
