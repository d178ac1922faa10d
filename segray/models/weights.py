"""`--weights`: a name, a file, or a factory of one's own, becomes a model ready to predict.

Nothing heavy is imported until a model is loaded, so that settings can be checked fast.
"""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segray.errors import SettingsError
from segray.models import bundled_models
from segray.models.catalog import NAMED_MODELS, NamedModel, named_model
from segray.registry.address import is_registry, parse
from segray.registry.registry import pinned, read_model
from segray.retries import retrying
from segray.sources.roundtrips import describe
from segray.storage import StorageSettings, canonical_uri, open_filesystem, split_protocol

if TYPE_CHECKING:
    from segray.models.modelfile import LoadedModel as ModelFile
    from segray.models.modelfile import ModelCard

WeightsKind = Literal["torchvision", "bundled", "file", "python"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict. Pickles to a worker: with its weights, or, for `python:`, by import."""

    name: str
    """As the user gave it, without credentials."""
    kind: WeightsKind
    module: Any
    """torchvision's MaskRCNN in float32 on the CPU in evaluation mode, or, from a factory, any callable with
    the interface of torchvision's detectors."""
    categories: dict[int, str]
    """Category id to name."""
    category_ids: tuple[int, ...] | None
    """Category id of label 1, 2, … of the network; None: the labels are the ids."""
    digest: str
    """sha256, hex: of the weights file, or of a factory's source and its tensors."""
    licence: str
    origin: str
    band_ranges: tuple[tuple[float, float], ...] | None = None
    """See `ModelCard.band_ranges`."""
    card: "ModelCard | None" = None
    """Of a segray model file."""
    resized_to: None = field(default=None, init=False)
    """Detectors bring pictures to a size of their own, in their own way."""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kind != "python":
            return LoadedModel, tuple(getattr(self, each.name) for each in fields(self) if each.init)
        return _load_again, (self.name, str(Path.cwd()), self.digest)


def weights_kind(spec: str) -> WeightsKind:
    """What `spec` means, without opening anything.

    Raises SettingsError for an unknown name and for a `python:` that is not `python:module:factory`.
    """
    if is_registry(spec):
        parse(spec)
        return "file"
    if spec.startswith("python:"):
        parts = spec.split(":")
        if len(parts) != 3 or not all(part.isidentifier() for part in [*parts[1].split("."), parts[2]]):
            raise SettingsError(f"weights {spec!r}: write python:module:factory")
        return "python"
    named = named_model(spec)
    if named is not None:
        return "bundled" if named.bundled else "torchvision"
    protocol, path = split_protocol(spec)
    if protocol != "file" or "/" in path or Path(path).suffix or Path(path).is_file():
        return "file"
    known = [model.name for model in NAMED_MODELS]
    close = difflib.get_close_matches(spec, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise SettingsError(
        f"weights {spec!r}: unknown name{hint} known names: {', '.join(known)}; also a path or URL of a "
        "file, registry://BUCKET/PATH#MODEL@ALIAS, python:module:factory"
    )


def check_weights(spec: str, storage: StorageSettings) -> WeightsKind:
    """Return what `spec` means, without torch; raises SettingsError for a wrong name and a missing file."""
    kind = weights_kind(spec)
    if kind != "file":
        return kind
    name = name_of(spec)
    if is_registry(spec):
        pinned(parse(spec), storage)
        return kind
    filesystem, path = open_filesystem(spec, storage)
    try:
        is_folder = retrying(lambda: filesystem.info(path), storage).get("type") == "directory"
    except FileNotFoundError as error:
        raise SettingsError(f"weights {name}: no such file") from error
    except Exception as error:
        raise SettingsError(f"weights {name}: cannot be read: {describe(error)}") from error
    if is_folder:
        raise SettingsError(f"weights {name}: a folder, not a file; name the model file in it")
    return kind


def load_weights(spec: str, storage: StorageSettings) -> LoadedModel:
    """Load the model that `spec` names.

    Raises SettingsError, in one or two lines, for anything that keeps it from being loaded: an unknown name,
    a file that is missing, damaged, carries code or fits no architecture, weights that cannot be fetched, a
    factory that cannot be imported or called.
    """
    kind, spec = weights_kind(spec), pinned_spec(spec, storage)
    if kind == "python":
        from segray.models.factory import load_factory

        return LoadedModel(spec, kind, **load_factory(spec))
    named = named_model(spec)
    if named is None:
        return _from_bytes(name_of(spec), read_weights(spec, storage))
    if kind == "bundled":
        return _bundled(named)
    return _torchvision(named)


def _load_again(spec: str, folder: str, digest: str) -> LoadedModel:
    """What unpickling a `python:` model does at the worker: import it there, and compare."""
    from segray.models.factory import load_factory

    model = LoadedModel(spec, "python", **load_factory(spec, folder))
    if model.digest != digest:
        raise SettingsError(
            f"weights {spec}: another model than before; seed its weights, or give it an attribute `digest`"
        )
    return model


def _bundled(named: NamedModel) -> LoadedModel:
    path = bundled_models().get(named.name)
    if path is None:
        raise SettingsError(f"weights {named.name}: not part of this installation")
    return _from_bytes(named.name, path.read_bytes(), kind="bundled")


def _torchvision(named: NamedModel) -> LoadedModel:
    from segray.models.torchvision_files import fetch

    path = fetch(named.name)
    return _from_bytes(named.name, path.read_bytes(), "torchvision", named.licence, named.origin)


def name_of(spec: str) -> str:
    """What `spec` is called where people read it: without credentials."""
    return canonical_uri(spec) if "://" in spec and not is_registry(spec) else spec


def pinned_spec(spec: str, storage: StorageSettings) -> str:
    """An address in a registry with the version that its alias means now; other ones as they are.

    Raises SettingsError where there is none.
    """
    return str(pinned(parse(spec), storage)) if is_registry(spec) else spec


def read_weights(spec: str, storage: StorageSettings) -> bytes:
    """The bytes of a file, local or in a bucket. Raises SettingsError where there is none."""
    if is_registry(spec):
        return read_model(pinned(parse(spec), storage), storage)
    name = name_of(spec)
    filesystem, path = open_filesystem(spec, storage)
    try:
        data: bytes = retrying(lambda: filesystem.cat_file(path), storage)
    except FileNotFoundError as error:
        raise SettingsError(f"weights {name}: no such file") from error
    except Exception as error:
        raise SettingsError(f"weights {name}: cannot be read: {describe(error)}") from error
    return data


def _from_bytes(
    name: str, data: bytes, kind: WeightsKind = "file", licence: str = "", origin: str = ""
) -> LoadedModel:
    """A model from the bytes of a segray model file, or of a state dict of torchvision's Mask R-CNN."""
    import hashlib
    import io

    from segray.models.modelfile import load_model_file
    from segray.models.torchvision_files import categories_of, is_model_file, maskrcnn_from, read_checkpoint

    checkpoint = read_checkpoint(name, data)
    if is_model_file(checkpoint):
        try:
            return _from_model_file(name, kind, load_model_file(io.BytesIO(data)))
        except SettingsError as error:
            raise SettingsError(*(f"weights {name}: {line}" for line in error.lines)) from error
    module = maskrcnn_from(name, checkpoint)
    digest = hashlib.sha256(data).hexdigest()
    return LoadedModel(name, kind, module, categories_of(module), None, digest, licence, origin)


def _from_model_file(name: str, kind: WeightsKind, loaded: "ModelFile") -> LoadedModel:
    card = loaded.card
    ids = tuple(sorted(card.categories))
    return LoadedModel(
        name, kind, loaded.module, card.categories, ids, loaded.digest, card.licence, card.source,
        card.band_ranges, card,
    )  # fmt: skip
