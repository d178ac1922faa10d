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
from segray.settings import JobSettings, printable
from segray.storage import canonical_uri, shown, split_protocol
from segray.submit.settings import SubmitSettings

ADDRESSES = ("sources", "weights", "data", "root", "footprints", "predictions", "labels", "output")
"""The settings of all verbs that name files."""
SETTINGS = "segray-job.yaml"
"""What the job's `--config` reads, in the folder that is sent."""
LEFT_OUT = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
"""Of a package."""

Verb = Literal["annotate", "train", "predict", "evaluate"]


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
        for name, path in members(self.files):
            digest.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


def order_of(verb: str, settings: JobSettings, submit: SubmitSettings) -> Order:
    """The job that `segray VERB` with these settings would be.

    Raises SettingsError, a line for each, for what means nothing elsewhere: paths of this machine, signed
    addresses, a Ray of one's own choice.
    """
    plain: dict[str, Any] = yaml.safe_load(printable(settings, without_defaults=True))
    packing = _Packing(submit)
    for name in ADDRESSES:
        given = getattr(settings, name, None)
        if name not in plain:
            continue
        if isinstance(given, list):
            plain[name] = [packing.sent(name, each) for each in given]
        elif isinstance(given, str):
            plain[name] = packing.sent(name, given)
    if settings.ray.address is not None:
        packing.problems.append(
            "ray.address: leave it out; what stands before the verb says where the job runs"
        )
    if settings.dry_run:
        packing.problems.append("dry_run: put --dry-run before the verb, to see what would be sent")
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
    """(Name in the package, file) of each file in it, folders walked, sorted."""
    for name, path in sorted(files.items()):
        if not path.is_dir():
            yield name, path
            continue
        for folder, inner, found in os.walk(path, followlinks=True):
            inner[:] = sorted(set(inner) - LEFT_OUT)
            for each in sorted(found):
                yield str(Path(name, Path(folder, each).relative_to(path))), Path(folder, each)


class _Packing:
    """Decides, for one address after the other, how the nodes see it."""

    def __init__(self, submit: SubmitSettings) -> None:
        self._submit = submit
        self.problems: list[str] = []
        self.files = dict[str, Path]() if submit.package is None else {"": submit.package}
        if submit.package is not None and not submit.package.is_dir():
            self.problems.append(f"package: {submit.package} is no folder")

    def sent(self, name: str, address: str) -> str:
        """The address as the job reads it."""
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

    def _of_package(self, name: str, path: Path) -> str:
        folder = self._submit.package
        if name != "output" and folder is not None and path.is_relative_to(folder):
            return str(path.relative_to(folder))
        if name == "weights" and self._submit.where == "address":
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
        path = Path(places[0])
        if _is_installed(path):
            return
        if self._submit.where == "address":
            self.files.setdefault(path.name, path)
        elif not self._submit.shared_filesystem:
            self.problems.append(
                f"{name}: the module {top} is on this machine alone; install it where the nodes run "
                "segray, or say --shared-filesystem"
            )


def _is_installed(path: Path) -> bool:
    paths = sysconfig.get_paths()
    return any(path.is_relative_to(paths[name]) for name in ("purelib", "platlib", "stdlib"))


def _secrets(settings: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that hold a secret."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            yield f"{prefix}{name}"
        elif isinstance(value, BaseModel):
            yield from _secrets(value, f"{prefix}{name}.")
