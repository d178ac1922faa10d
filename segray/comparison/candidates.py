"""The models to compare: each is loaded once before work begins, so that what is wrong with any is told."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

from segray.comparison.settings import CompareSettings
from segray.errors import SettingsError, WrongTaskError
from segray.evaluate.categories import plain_name, some
from segray.log import say
from segray.models import bundled_models
from segray.models.architectures import Task
from segray.models.weights import (
    LoadedModel,
    check_weights,
    load_weights,
    name_of,
    pinned_spec,
    read_weights,
)
from segray.registry.address import is_registry
from segray.run import Problems
from segray.storage import StorageSettings, shown

T = TypeVar("T")
_LABELS: dict[Task, str] = {"instance": "instances", "semantic": "label maps"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model, without its weights."""

    name: str
    """In the table."""
    spec: str
    """The value of `--weights`, an alias of a registry resolved."""
    digest: str
    arch: str
    """Empty where it is unknown: a state dict, or a factory's."""
    classes: tuple[str, ...]
    """Of a semantic model from 0 up; of an instance model its categories."""
    resized_to: int | None
    """Side of the square that a semantic model resizes images to."""
    parameters: int | None
    """None for a factory's model that is no torch module."""
    file_bytes: int | None
    """Size of its file; None for a factory's."""

    @property
    def shown(self) -> str:
        """Return its address without credentials."""
        return name_of(self.spec)

    @property
    def slug(self) -> str:
        """Return a name for its files: letters, digits, `.`, `_` and `-`."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.name).strip("._")[:60] or "model"

    def key(self, *more: object) -> str:
        """Return 12 hex digits of the model and whatever else a result depends on."""
        return hashlib.sha256(repr((self.digest, *more)).encode()).hexdigest()[:12]


def check_candidates(settings: CompareSettings, task: Task, problems: Problems) -> None:
    """Add what is wrong with any model, as far as is known before torch is loaded, to the problems."""
    for spec in settings.weights:
        problems.attempt(_of_task(settings, partial(check_weights, spec, settings.storage, task), task))


def load_candidates(settings: CompareSettings, task: Task, problems: Problems) -> list[Candidate]:
    """Return the models; what is wrong with any of them is added to the problems."""
    names = settings.names or names_apart(settings.weights)
    found = [
        problems.attempt(_of_task(settings, partial(_candidate, name, spec, task, settings.storage), task))
        for name, spec in zip(names, settings.weights, strict=True)
    ]
    candidates = [each for each in found if each is not None]
    _say_twice(candidates)
    return candidates


def _of_task(settings: CompareSettings, find: Callable[[], T], task: Task) -> Callable[[], T]:
    """Have a model of another task say that it does not go with the labels, not which verb uses it."""

    def found() -> T:
        try:
            return find()
        except WrongTaskError as error:  # its own line ends with the verb
            does = str(error).partition(",")[0]
            labels = f"the labels of {shown(settings.data)} are {_LABELS[task]}"
            raise SettingsError(f"{does}, but {labels}; compare takes models of one task") from error

    return found


def _say_twice(candidates: Sequence[Candidate]) -> None:
    first = dict[str, str]()
    for each in candidates:
        if (other := first.setdefault(each.digest, each.name)) != each.name:
            say(f"{each.name} is the same model as {other}", "warning")


def _candidate(name: str, spec: str, task: Task, storage: StorageSettings) -> Candidate:
    spec = pinned_spec(spec, storage)
    model = load_weights(spec, storage, task)
    return Candidate(
        name,
        spec,
        model.digest,
        "" if model.card is None else model.card.arch,
        tuple(model.categories[number] for number in sorted(model.categories)),
        model.resized_to,
        parameters_of(model),
        _file_bytes(model, spec, storage),
    )


def parameters_of(model: LoadedModel) -> int | None:
    """Return the number of its parameters, trainable or not; None for what is no torch module."""
    tensors: Any = getattr(model.module, "parameters", None)
    return None if tensors is None else sum(each.numel() for each in tensors())


def _file_bytes(model: LoadedModel, spec: str, storage: StorageSettings) -> int | None:
    if model.kind == "python":
        return None
    if model.kind == "bundled":
        return bundled_models()[spec].stat().st_size
    if model.kind == "torchvision":
        from segray.models.torchvision_files import fetch

        return fetch(spec).stat().st_size
    if model.kind == "sam":
        from segray.models.sam_files import tensor_bytes

        return tensor_bytes(spec, storage)
    return len(read_weights(spec, storage))


def names_apart(specs: Sequence[str]) -> list[str]:
    """Return for each address the shortest end that no other has; `model.pt` counts as its folder.

    `out/a/model.pt` and `out/b/model.pt` become `a` and `b`, `registry://bucket/models#cells@champion`
    becomes `cells@champion`, `python:mine:make` `make`. The same address twice gets a number.
    """
    parts = [_parts(spec) for spec in specs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            return names
    return [f"{'/'.join(each[-1:])} ({number})" for number, each in enumerate(parts, 1)]


def _parts(spec: str) -> list[str]:
    if spec.startswith("python:"):
        return re.split(r"[:.]", spec)[1:]
    if is_registry(spec):
        spec = spec.replace("#", "/")
    path = PurePosixPath(name_of(spec).partition("://")[2] or name_of(spec))
    if path.name == "model.pt" and len(path.parts) > 1:
        path = path.parent
    elif path.suffix in (".pt", ".pth"):
        path = path.with_suffix("")
    return [each for each in path.parts if each != "/"] or [spec]


def lacking(candidates: Sequence[Candidate], classes: Sequence[str]) -> tuple[str, ...]:
    """Return a line, printed as a warning, for each model that does not have all classes of the labels.

    Names are compared without case and surplus spaces. Raises SettingsError with a line for each model that
    has none of them.
    """
    lines, problems = list[str](), list[str]()
    for each in candidates:
        there = {*map(plain_name, each.classes)}
        lost = [name for name in classes if plain_name(name) not in there]
        if len(lost) == len(classes):
            both = f"its classes are {some(each.classes)}, those of the labels {some(classes)}"
            problems.append(f"weights {each.name}: {both}: none in common")
        elif lost:
            lines.append(f"{each.name} lacks {some(lost)}: scored 0 where they occur.")
    if problems:
        raise SettingsError(*problems)
    for line in lines:
        say(line, "warning")
    return tuple(lines)
