"""What is sent: the settings of a verb as they are in force here, without secrets, and files they need."""

import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, SecretStr

from segray.errors import SettingsError
from segray.models.weights import check_weights, weights_kind
from segray.registry.address import is_registry, parse
from segray.settings import JobSettings, printable
from segray.storage import StorageSettings, canonical_uri, shown, split_protocol
from segray.submit.settings import SubmitSettings

MODELS = "weights", "start_from"
"""Settings that take what `--weights` does."""
ADDRESSES = (
    "sources",
    "weights",
    "start_from",
    "registry",
    "if_drift",
    "data",
    "root",
    "footprints",
    "predictions",
    "labels",
    "output",
)
"""The settings of all verbs that name files."""
PATTERNS = ("include", "exclude")
SETTINGS = "segray-job.yaml"
"""What the job's `--config` reads, in the folder that is sent."""
MOST_BYTES = 500_000_000
"""Ray keeps packages in its head's memory and takes 512 MiB."""

Verb = Literal["annotate", "train", "predict", "evaluate", "retrain"]


@dataclass(frozen=True, slots=True)
class Order:
    """A job for elsewhere."""

    verb: str
    settings: str
    """YAML; local files that are sent by their names in the package."""
    files: dict[str, Path] = field(default_factory=dict)
    """Name in the package -> file or folder on this machine."""
    kept_back: tuple[str, ...] = ()
    """Names of settings that hold secrets."""

    @property
    def digest(self) -> str:
        """16 hex digits that tell this job from another one of the same name."""
        digest = hashlib.sha256(f"{self.verb}\n{self.settings}".encode())
        model = {name: path for name, path in self.files.items() if name}  # a package may hold anything
        for name, path in members(model):
            digest.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


def order_of(verb: str, settings: JobSettings, submit: SubmitSettings) -> Order:
    """The job that `segray VERB` with these settings would be.

    Raises SettingsError, a line for each, for what means nothing elsewhere: paths of this machine, signed
    addresses, a Ray of one's own choice.
    """
    plain: dict[str, Any] = yaml.safe_load(printable(settings, without_defaults=True))
    packing = _Packing(submit)
    for name in PATTERNS:
        if name in plain:
            plain[name] = getattr(settings, name)  # not addresses: nothing is cut from them
    for name in ADDRESSES:
        given = getattr(settings, name, None)
        if name not in plain:
            continue
        if isinstance(given, list):
            plain[name] = [packing.sent(name, each) for each in given]
        elif isinstance(given, str):
            plain[name] = packing.sent(name, given)
    for name in ("sources", "output"):  # what a retraining's new champion annotates
        if name in plain.get("label", {}):
            given = plain["label"][name]
            sent = [packing.sent(name, each) for each in given] if isinstance(given, list) else None
            plain["label"][name] = packing.sent(name, given) if sent is None else sent
    if settings.ray.address is not None:
        packing.problems.append("ray.address: leave it out; the job finds the Ray of the place where it runs")
    if settings.dry_run and not submit.dry_run:
        packing.problems.append("dry_run: put --dry-run before the verb, to see what would be sent")
    packing.check_size()
    if packing.problems:
        raise SettingsError(*packing.problems)
    text = yaml.safe_dump(_without_empty(plain), sort_keys=False, allow_unicode=True)
    return Order(verb, text, packing.files, tuple(_secrets(settings)))


def _without_empty(plain: dict[str, Any]) -> dict[str, Any]:
    """Without groups of settings that say nothing."""
    kept = {
        name: _without_empty(value) if isinstance(value, dict) else value for name, value in plain.items()
    }
    return {name: value for name, value in kept.items() if value != {}}


def members(files: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """(Name in the package, file) of each file in it, folders walked, sorted.

    Without what is hidden (repositories, environments, credentials), compiled, or no file.
    """
    for name, path in sorted(files.items()):
        if not path.is_dir():
            yield name, path
            continue
        seen = {path.resolve()}
        for folder, inner, found in os.walk(path, followlinks=True):
            inner[:] = [
                each for each in sorted(inner) if _is_sent(each) and _is_new(Path(folder, each), seen)
            ]
            for each in sorted(found):
                file = Path(folder, each)
                if _is_sent(each) and file.is_file():
                    yield str(Path(name, file.relative_to(path))), file


def _is_sent(name: str) -> bool:
    return not name.startswith(".") and name not in ("__pycache__", SETTINGS)


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder was not walked before, by another link to it."""
    is_new = (place := folder.resolve()) not in seen
    seen.add(place)
    return is_new


class _Packing:
    """Decides, for one address after the other, how the nodes see it."""

    def __init__(self, submit: SubmitSettings) -> None:
        self._submit = submit
        self.problems: list[str] = []
        self.files = dict[str, Path]()
        if submit.package is not None and submit.package.is_dir():
            self.files[""] = submit.package
        elif submit.package is not None:
            self.problems.append(f"package: {submit.package} is no folder")

    def sent(self, name: str, address: str) -> str:
        """The address as the job reads it."""
        if name in MODELS and (wrong := _wrong_weights(address)) is not None:
            self.problems.append(wrong)
            return address
        if is_registry(address):
            return self._of_registry(name, address)
        if address.startswith("python:"):
            self._send_module(name, address.split(":")[1])
            return address
        protocol, path = split_protocol(address)
        if protocol != "file":
            if canonical_uri(address) != path:
                self.problems.append(
                    f"{name}: {shown(address)} was given with a password, signature or query, which is not "
                    "sent; give the nodes rights of their own"
                )
            return address
        if self._submit.shared_filesystem or not Path(path).is_absolute():  # a name of `segray models`
            return address
        return self._of_package(name, Path(path))

    def check_size(self) -> None:
        """What is sent can be read, and is not too large."""
        try:
            sizes = {name: path.stat().st_size for name, path in members(self.files)}
            for _, path in members(self.files):
                path.open("rb").close()
        except OSError as error:
            self.problems.append(f"package: cannot read {error.filename}: {error.strerror}")
            return
        if (total := sum(sizes.values())) > MOST_BYTES:
            largest = max(sizes, key=lambda name: sizes[name])
            self.problems.append(
                f"package: {total / 1e6:,.0f} MB are too much for Ray ({MOST_BYTES / 1e6:.0f} MB); the "
                f"largest file is {largest} ({sizes[largest] / 1e6:,.0f} MB); put it into a bucket"
            )

    def _of_registry(self, name: str, address: str) -> str:
        url = parse(address).url
        if split_protocol(url)[0] == "file" and not self._submit.shared_filesystem:
            advice = "put it into a bucket, or say --shared-filesystem where all nodes see it under that path"
            self.problems.append(f"{name}: the registry {url} is on this machine alone; {advice}")
        return address

    def _of_package(self, name: str, path: Path) -> str:
        folder = self._submit.package
        if name != "output" and folder is not None and path.is_relative_to(folder):
            return str(path.relative_to(folder))
        if name in MODELS and self._submit.where == "address":
            self.files[f"weights/{path.name}"] = path
            return f"weights/{path.name}"
        advice = "put it into a bucket, or say --shared-filesystem where all nodes see it under that path"
        if name != "output" and self._submit.where == "address":
            advice += ", or --package FOLDER to send a folder with it"
        self.problems.append(f"{name}: {path} is on this machine alone; {advice}")
        return str(path)

    def _send_module(self, name: str, module: str) -> None:
        """A module that lies here is sent; one that is installed must be installed there, too."""
        top = module.partition(".")[0]
        here = str(Path.cwd())
        sys.path.insert(0, here)  # as the job does that is run here
        try:
            found = importlib.util.find_spec(top)
        finally:
            sys.path.remove(here)
        if found is None:
            self.problems.append(f"{name}: there is no module {top} here")
            return
        places = [*(found.submodule_search_locations or ()), *filter(None, [found.origin])]
        path = Path(places[0]) if places else Path()
        if not path.exists() or _is_installed(path):  # built into Python
            return
        if self._submit.where == "address":
            self.files.setdefault(path.name, path)
        elif not self._submit.shared_filesystem:
            self.problems.append(
                f"{name}: the module {top} is on this machine alone; install it where the nodes run "
                "segray, or say --shared-filesystem"
            )


def _wrong_weights(spec: str) -> str | None:
    """What is wrong with a name, a `python:` or a local file; buckets are looked into there."""
    try:
        if weights_kind(spec) == "file" and split_protocol(spec)[0] == "file" and not is_registry(spec):
            check_weights(spec, StorageSettings())
    except SettingsError as error:
        return str(error)
    return None


def _is_installed(path: Path) -> bool:
    paths = sysconfig.get_paths()
    return any(path.is_relative_to(paths[name]) for name in ("purelib", "platlib", "stdlib"))


def _secrets(settings: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that hold a secret."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        held = value if isinstance(value, list) else [value]
        if any(isinstance(each, SecretStr) for each in held):
            yield f"{prefix}{name}"
        elif isinstance(value, BaseModel):
            yield from _secrets(value, f"{prefix}{name}.")
