"""`--weights`: a name, a file, or a factory of the user's own, becomes a model ready to predict.

Nothing heavy is imported until a model is loaded, so that settings can be checked fast.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segray.errors import SettingsError, WrongTaskError
from segray.models import bundled_models
from segray.models.architectures import USES, Task
from segray.models.catalog import NAMED_MODELS, named_model
from segray.models.sam_names import SAM_WEIGHTS
from segray.registry.address import is_registry, parse
from segray.registry.registry import pinned, read_model
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, canonical_uri, open_filesystem, split_protocol

if TYPE_CHECKING:
    from segray.models.modelfile import Card

WeightsKind = Literal["torchvision", "bundled", "sam", "file", "python"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict. Pickles to a worker: with its weights, or, for `python:`, by import."""

    name: str
    """The value of `--weights`, without credentials."""
    kind: WeightsKind
    module: Any
    """float32 on the CPU in evaluation mode. Instances: torchvision's MaskRCNN, a SegmentAnything, or, from a
    factory, any callable with the interface of torchvision's detectors. Semantic: float (n, bands, h, w),
    normalised, to logits (n, outputs, h, w)."""
    categories: dict[int, str]
    """Category id -> name; of a semantic model its classes, from 0 up."""
    category_ids: tuple[int, ...] | None
    """Category id of label 1, 2, … of the network; None: the labels are the ids."""
    digest: str
    """sha256, hex: of the weights file, or of a factory's source and its tensors."""
    band_ranges: tuple[tuple[float, float], ...] | None = None
    """See `ModelCard.band_ranges`."""
    card: "Card | None" = None
    """The card of a segray model file."""
    task: Task = "instance"
    refiner: "LoadedModel | None" = None
    """SAM that turns the boxes of an instance model into masks."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of a semantic model's classes, from 0 up."""
        return tuple(self.categories[number] for number in range(len(self.categories)))

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean of each band, pixels in 0..1, of a semantic model; 0 for a factory's."""
        return self.card.image_mean if self.card else (0.0, 0.0, 0.0)

    @property
    def std(self) -> tuple[float, ...]:
        """Return each band's standard deviation, pixels in 0..1, of a semantic model; 1 for a factory's."""
        return self.card.image_std if self.card else (1.0, 1.0, 1.0)

    @property
    def resized_to(self) -> int | None:
        """Return the side of the square that images are resized to; None: they are used at their own size."""
        if self.card is None or self.card.task != "semantic" or self.card.fit != "resize":
            return None
        return self.card.size

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kind != "python":
            return LoadedModel, tuple(getattr(self, each.name) for each in fields(self))
        return _load_again, (self.name, str(Path.cwd()), self.digest, self.task, self.refiner)


def weights_kind(spec: str) -> WeightsKind:
    """Return the kind of `spec`, without opening any file.

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
        return "bundled" if named.bundled else "sam" if spec in SAM_WEIGHTS else "torchvision"
    if not _is_bare(spec):
        return "file"
    raise SettingsError(
        f"weights {_unknown(spec, [model.name for model in NAMED_MODELS])}; also a path or URL of a "
        "file, registry://BUCKET/PATH#MODEL@ALIAS, python:module:factory"
    )


def _is_bare(spec: str) -> bool:
    """Return whether `spec` is a word that is neither a known name nor a path."""
    protocol, path = split_protocol(spec)
    is_path = protocol != "file" or "/" in path or bool(Path(path).suffix) or Path(path).is_file()
    return named_model(spec) is None and not is_path and not spec.startswith("python:")


def _unknown(spec: str, names: Sequence[str]) -> str:
    begins = [name for name in names if spec and name.startswith(spec)]
    close = begins or difflib.get_close_matches(spec, names, n=1)
    hint = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{spec!r}: unknown name{hint} known names: {', '.join(names)}"


def check_weights(spec: str, storage: StorageSettings, task: Task | None = None) -> WeightsKind:
    """Return the kind of `spec`, without torch.

    Raises SettingsError for a wrong name, the name of a model for another task, and a missing file.
    """
    kind, named = weights_kind(spec), named_model(spec)
    if named is not None:
        _check_task(spec, named.task, task)
    if kind == "file" and is_registry(spec):
        pinned(parse(spec), storage)
    elif kind == "sam" or (kind == "file" and _is_folder(spec, storage)):
        _check_task(spec, "instance", task)
        from segray.models.sam_files import check_sam

        check_sam(spec, storage)
    return kind


def is_sam(spec: str, storage: StorageSettings) -> bool:
    """Return whether `spec` is a name of SAM's, or a folder, which only SAM has."""
    kind = weights_kind(spec)
    return kind == "sam" or (kind == "file" and not is_registry(spec) and _is_folder(spec, storage))


def _is_folder(spec: str, storage: StorageSettings) -> bool:
    return bool(_asked(spec, storage, "info").get("type") == "directory")


def check_given(spec: str, storage: StorageSettings) -> None:
    """Raise SettingsError, without torch, for `encoder_weights` that are no file, or a missing one."""
    if _is_bare(spec):
        raise SettingsError(f"encoder_weights {spec!r}: no such file; names are for start_from")
    with said_of("encoder_weights"):
        kind = weights_kind(spec)
        is_folder = False
        if kind == "file" and is_registry(spec):
            pinned(parse(spec), storage)
        elif kind == "file":
            is_folder = _is_folder(spec, storage)
    if is_folder:
        raise SettingsError(f"encoder_weights {name_of(spec)}: a folder; name the file in it")
    if kind != "file":
        raise SettingsError(
            f"encoder_weights: {spec} is no file of weights; use start_from, or a file's path"
        )


def check_refiner(spec: str, storage: StorageSettings) -> None:
    """Find or fetch SAM's files, without torch. Raises SettingsError for a `refine` that is not SAM."""
    files = "a folder with its config.json and model.safetensors"
    if _is_bare(spec):
        raise SettingsError(f"refine {_unknown(spec, list(SAM_WEIGHTS))}; also {files}")
    with said_of("refine"):
        try:
            is_its = is_sam(spec, storage)
        except SettingsError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise SettingsError(
                    f"weights {name_of(spec)}: not there; use a name of SAM, or {files}"
                ) from error
            raise
        if not is_its:
            raise SettingsError(f"weights {name_of(spec)}: not SAM; use a name such as sam2-tiny, or {files}")
        check_weights(spec, storage, "instance")


@contextmanager
def said_of(option: str) -> Iterator[None]:
    """Put the name of another option in front of errors that begin with `weights`."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(*(re.sub(r"^weights\b", option, line) for line in error.lines)) from error


def load_weights(spec: str, storage: StorageSettings, task: Task | None = None) -> LoadedModel:
    """Load the model that `spec` names; of any task unless one is given.

    Raises SettingsError, in one or two lines, for anything that keeps it from being loaded: an unknown name,
    a file that is missing, damaged, carries code or fits no architecture, weights that cannot be fetched, a
    factory that cannot be imported or called, a model for another task.
    """
    kind, named, spec = weights_kind(spec), named_model(spec), pinned_spec(spec, storage)
    if kind == "python":
        return _from_factory(spec, task or "instance")
    if is_sam(spec, storage):
        _check_task(spec, "instance", task)
        from segray.models.sam_files import load_sam

        return LoadedModel(name_of(spec), "sam", **load_sam(spec, storage))
    if named is None:
        return _from_bytes(name_of(spec), read_weights(spec, storage), task=task)
    _check_task(spec, named.task, task)
    if kind == "bundled":
        path = bundled_models().get(spec)
        if path is None:
            raise SettingsError(f"weights {spec}: not part of this installation")
        return _from_bytes(spec, path.read_bytes(), kind)
    from segray.models.torchvision_files import fetch

    return _from_bytes(spec, fetch(spec).read_bytes(), kind)


def _check_task(name: str, task: Task, asked: Task | None) -> None:
    if asked is not None and task != asked:
        raise WrongTaskError(f"weights {name}: {USES[task]}")


def _from_factory(spec: str, task: Task, folder: str | None = None) -> LoadedModel:
    """Load a factory's model; the module of a semantic one has `categories`: {0: "background", 1: "road"}."""
    from segray.models.factory import load_factory

    model = LoadedModel(spec, "python", **load_factory(spec, folder), task=task)
    found = sorted(model.categories)
    if task == "semantic" and (found != list(range(len(found))) or len(found) < 2):
        raise SettingsError(f"weights {spec}: the model needs `categories`, the names of its classes from 0")
    return model


def _load_again(spec: str, folder: str, digest: str, task: Task, refiner: LoadedModel | None) -> LoadedModel:
    """Unpickle a `python:` model at the worker: import it there, and compare its digest."""
    model = _from_factory(spec, task, folder)
    if model.digest != digest:
        raise SettingsError(
            f"weights {spec}: another model than before; seed its weights, or give it an attribute `digest`"
        )
    return replace(model, refiner=refiner)


def name_of(spec: str) -> str:
    """Return `spec` as it is printed: without credentials."""
    return canonical_uri(spec) if "://" in spec and not is_registry(spec) else spec


def pinned_spec(spec: str, storage: StorageSettings) -> str:
    """Return an address in a registry with its alias resolved to the present version; other ones unchanged.

    Raises SettingsError where there is no such version.
    """
    return str(pinned(parse(spec), storage)) if is_registry(spec) else spec


def read_weights(spec: str, storage: StorageSettings) -> bytes:
    """Return the bytes of a file, local or in a bucket. Raises SettingsError where it does not exist."""
    if is_registry(spec):
        return read_model(pinned(parse(spec), storage), storage)
    data: bytes = _asked(spec, storage, "cat_file")
    return data


def _asked(spec: str, storage: StorageSettings, method: str) -> Any:
    """Return the result of a file system's method on a file; raise SettingsError where it fails."""
    filesystem, path = open_filesystem(spec, storage)
    try:
        return retrying(lambda: getattr(filesystem, method)(path), storage)
    except FileNotFoundError as error:
        raise SettingsError(f"weights {name_of(spec)}: no such file") from error
    except Exception as error:
        raise SettingsError(f"weights {name_of(spec)}: cannot be read: {describe(error)}") from error


def _from_bytes(name: str, data: bytes, kind: WeightsKind = "file", task: Task | None = None) -> LoadedModel:
    """Return a model from the bytes of a segray model file, or of torchvision's Mask R-CNN state dict."""
    from segray.models.modelfile import is_model_file, model_of, plain_contents

    where, digest = f"weights {name}", hashlib.sha256(data).hexdigest()
    content = plain_contents(where, data)
    if not is_model_file(content):
        if task == "semantic":
            raise SettingsError(f"{where}: not a semantic segray model file")
        from segray.models.torchvision_files import categories_of, maskrcnn_from

        module = maskrcnn_from(name, content)
        return LoadedModel(name, kind, module, categories_of(module), None, digest)
    loaded = model_of(where, content, digest)
    card = loaded.card
    _check_task(name, card.task, task)
    if card.task == "semantic" and len(card.bands) != 3:
        raise SettingsError(f"{where}: takes {len(card.bands)} bands, images have 3 here")
    ids = tuple(sorted(card.categories)) if card.task == "instance" else None
    return LoadedModel(
        name, kind, loaded.module, card.categories, ids, digest, card.band_ranges, card, card.task
    )
