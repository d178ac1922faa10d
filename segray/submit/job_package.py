"""The job to submit: the settings of a verb in force on this machine, without secrets, and local files."""

import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
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

MODELS = "weights", "start_from", "encoder_weights", "refine"
"""Settings with the same values as `--weights`."""
ADDRESSES = (
    "sources",
    "weights",
    "start_from",
    "encoder_weights",
    "refine",
    "boxes",
    "registry",
    "if_drift",
    "data",
    "root",
    "footprints",
    "split_areas",
    "predictions",
    "labels",
    "instances",
    "maps",
    "run",
    "against",
    "work",
    "output",
)
"""Settings of all verbs that name files."""
PATTERNS = ("include", "exclude")
SETTINGS = "segray-job.yaml"
"""File of the job's `--config`, in the package."""
MOST_BYTES = 500_000_000
"""Maximum package size: Ray keeps packages in its head's memory and accepts 512 MiB."""

Verb = Literal["annotate", "train", "predict", "evaluate", "compare", "panoptic", "retrain", "select"]


@dataclass(frozen=True, slots=True)
class Order:
    """A job to run on another machine."""

    verb: str
    settings: str
    """YAML; local files that are sent have their names in the package."""
    files: dict[str, Path] = field(default_factory=dict)
    """Name in the package -> file or folder on this machine."""
    kept_back: tuple[str, ...] = ()
    """Names of settings that contain secrets and are not sent."""

    @property
    def digest(self) -> str:
        """Return 16 hex digits that distinguish this job from another one of the same name."""
        digest = hashlib.sha256(f"{self.verb}\n{self.settings}".encode())
        model = {name: path for name, path in self.files.items() if name}  # a package may contain anything
        for name, path in members(model):
            digest.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


def order_of(verb: str, settings: JobSettings, submit: SubmitSettings) -> Order:
    """Return the job of `segray VERB` with these settings.

    Raises SettingsError, one line each, for settings that are invalid on another machine: local paths,
    signed URLs, `ray.address`.
    """
    plain: dict[str, Any] = yaml.safe_load(printable(settings, without_defaults=True))
    packing = _Packing(submit)
    for name in PATTERNS:
        if name in plain:
            plain[name] = getattr(settings, name)  # not URLs: nothing is removed from them
    for name in ADDRESSES:
        given = getattr(settings, name, None)
        if name not in plain:
            continue
        if isinstance(given, list):
            plain[name] = [packing.sent(name, each) for each in given]
        elif isinstance(given, str):
            plain[name] = packing.sent(name, given)
    for name in ("sources", "output"):  # images that a retraining's new champion annotates
        if name in plain.get("label", {}):
            given = plain["label"][name]
            sent = [packing.sent(name, each) for each in given] if isinstance(given, list) else None
            plain["label"][name] = packing.sent(name, given) if sent is None else sent
    if settings.ray.address is not None:
        packing.problems.append("ray.address: leave it out; the job uses the Ray cluster on which it runs")
    if settings.dry_run and not submit.dry_run:
        packing.problems.append("dry_run: put --dry-run before the verb, to see what would be sent")
    packing.check_size()
    if packing.problems:
        raise SettingsError(*packing.problems)
    text = yaml.safe_dump(_without_empty(plain), sort_keys=False, allow_unicode=True)
    return Order(verb, text, packing.files, tuple(_secrets(settings)))


def _without_empty(plain: dict[str, Any]) -> dict[str, Any]:
    """Remove empty groups of settings."""
    kept = {
        name: _without_empty(value) if isinstance(value, dict) else value for name, value in plain.items()
    }
    return {name: value for name, value in kept.items() if value != {}}


def members(files: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield (name in the package, file) of each file, folders walked, sorted.

    Hidden files and folders (repositories, environments, credentials) and compiled files are skipped.
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
    """Return whether a folder was not walked before, by another link to it."""
    is_new = (target := folder.resolve()) not in seen
    seen.add(target)
    return is_new


class _Packing:
    """Translate local paths and URLs to those of the nodes; collect files to send and problems."""

    def __init__(self, submit: SubmitSettings) -> None:
        self._submit = submit
        self.problems: list[str] = []
        self.files = dict[str, Path]()
        if submit.package is not None and submit.package.is_dir():
            self.files[""] = submit.package
        elif submit.package is not None:
            self.problems.append(f"package: {submit.package} is not a folder")

    def sent(self, name: str, address: str) -> str:
        """Return the path or URL for the job; note a problem where the nodes cannot read it."""
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
                    "sent; give the nodes their own credentials"
                )
            return address
        if self._submit.shared_filesystem or not Path(path).is_absolute():  # a name of `segray models`
            return address
        return self._of_package(name, Path(path))

    def check_size(self) -> None:
        """Note a problem where the package cannot be read or is too large."""
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
            advice = "put it into a bucket, or set --shared-filesystem if all nodes have it under that path"
            self.problems.append(f"{name}: the registry {url} is on this machine only; {advice}")
        return address

    def _of_package(self, name: str, path: Path) -> str:
        folder = self._submit.package
        if name != "output" and folder is not None and path.is_relative_to(folder):
            return str(path.relative_to(folder))
        if name in MODELS and self._submit.where == "address":
            return self._send_weights(path)
        advice = "put it into a bucket, or set --shared-filesystem if all nodes have it under that path"
        if name != "output" and self._submit.where == "address":
            advice += ", or --package FOLDER to send a folder with it"
        self.problems.append(f"{name}: {path} is on this machine only; {advice}")
        return str(path)

    def _send_weights(self, path: Path) -> str:
        """Send a model file, under a name that no other one has: trainings call all of theirs model.pt."""
        numbered = (f"weights/{number}/{path.name}" for number in count(2))
        name = next(
            each for each in chain([f"weights/{path.name}"], numbered) if self.files.get(each, path) == path
        )
        self.files[name] = path
        return name

    def _send_module(self, name: str, module: str) -> None:
        """Send a module of the working directory; an installed one must be installed on the nodes, too."""
        top = module.partition(".")[0]
        here = str(Path.cwd())
        sys.path.insert(0, here)  # as a job on this machine does
        try:
            found = importlib.util.find_spec(top)
        finally:
            sys.path.remove(here)
        if found is None:
            self.problems.append(f"{name}: there is no module {top} on this machine")
            return
        locations = [*(found.submodule_search_locations or ()), *filter(None, [found.origin])]
        path = Path(locations[0]) if locations else Path()
        if not path.exists() or _is_installed(path):  # built into Python
            return
        if self._submit.where == "address":
            self.files.setdefault(path.name, path)
        elif not self._submit.shared_filesystem:
            self.problems.append(
                f"{name}: the module {top} is on this machine only; install it where the nodes run "
                "segray, or set --shared-filesystem"
            )


def _wrong_weights(spec: str) -> str | None:
    """Return what is wrong with a name, a `python:` or a local file; URLs are checked by the job."""
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
    """Yield the dotted names of the settings that contain a secret."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        held = value if isinstance(value, list) else [value]
        if any(isinstance(each, SecretStr) for each in held):
            yield f"{prefix}{name}"
        elif isinstance(value, BaseModel):
            yield from _secrets(value, f"{prefix}{name}.")
