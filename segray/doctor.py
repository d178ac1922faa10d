"""`segray doctor`: check what works on this machine, and name what to install for the rest."""

import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source, find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from segray.cpus import available_cpus
from segray.errors import ExitCode
from segray.storage import EXTRAS, shown

if TYPE_CHECKING:
    from segray.settings import DoctorSettings
    from segray.storage import StorageSettings


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    what: str
    works: bool
    told: str
    needed: bool = True
    """Whether jobs cannot run without it."""


def findings() -> list[Finding]:
    """Run every check, in the order in which a job would need its result."""
    checks = [_python, _bytecode, _accelerator, _decoders, _ray, _storage, _models]
    return [finding for check in checks for finding in check()]


def show(settings: "DoctorSettings", as_json: bool) -> ExitCode:
    """Print the report; return DONE if every required check passes, else FAILED."""
    found = [*findings(), *(_output(each, settings.storage) for each in settings.outputs)]
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            mark = "ok " if finding.works else "NO " if finding.needed else "-- "
            print(f"{mark} {finding.what:<12} {finding.told}")
    return ExitCode.DONE if all(f.works or not f.needed for f in found) else ExitCode.FAILED


def _python() -> list[Finding]:
    told = (
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {available_cpus():g} CPUs"
    )
    free = shutil.disk_usage(tempfile.gettempdir()).free >> 30
    return [
        Finding("python", sys.version_info >= (3, 11), told),
        Finding("disk", free >= 2, f"{free} GiB free for temporary files (Ray spills there)"),
        _shared_memory(),
    ]


def _shared_memory() -> Finding:
    """Check /dev/shm: containers have 64 MiB unless `--shm-size` is set."""
    from segray.dev_shm import advice, free_mib
    from segray.settings import RaySettings

    told = advice(RaySettings().object_store_mib)
    free = f"{free_mib() or 0:,} MiB free for images in Ray's object store"
    return Finding("/dev/shm", told is None, told or free, needed=False)


def _bytecode() -> list[Finding]:
    """Check for compiled bytecode: without it each of Ray's workers compiles all that it imports."""
    found = find_spec("ray")
    if found is None or found.origin is None:
        return []  # `_ray` reports it
    compiled = Path(cache_from_source(found.origin)).exists()
    if compiled or not sys.dont_write_bytecode:
        return [Finding("bytecode", True, "compiled" if compiled else "will be compiled at first use", False)]
    told = "PYTHONDONTWRITEBYTECODE is set and ray is not compiled, so each worker is slow to start"
    cure = "unset it, or `uv sync --compile-bytecode`"
    return [Finding("bytecode", False, f"{told}; {cure}", needed=False)]


def _accelerator() -> list[Finding]:
    try:
        import torch
        import torchvision

        from segray.models.device import resolve_device, resolve_precision
    except ImportError as error:
        return [Finding("torch", False, f"{error}; uv sync --reinstall-package torch")]
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    device = resolve_device("auto")
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU, the job runs on CPU"
    told = f"{name}; precision auto = {resolve_precision('auto', device)}"
    return [Finding("torch", True, versions), Finding("device", True, told)]


def _decoders() -> list[Finding]:
    from PIL import features

    from segray.sources.decode import has_heif

    names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF", "jpg_2000": "JPEG 2000"}
    names["avif"] = "AVIF"
    have = [name for feature, name in names.items() if features.check(feature)]
    missing = [name for name in names.values() if name not in have]
    told = ", ".join([*have, "BMP", "GIF", *["HEIC"] * has_heif()])
    if not has_heif():
        told += "; HEIC: uv sync --extra heic"
    if missing:
        told += f"; missing {', '.join(missing)}: uv sync --reinstall-package pillow"
    return [Finding("decoders", not missing, told)]


def _ray() -> list[Finding]:
    try:
        told = f"ray {version('ray')}"
        importlib.import_module("ray.data")
    except (PackageNotFoundError, ImportError) as error:
        return [Finding("ray", False, f"{error}; uv sync")]
    address = os.environ.get("RAY_ADDRESS")
    told += f"; RAY_ADDRESS={address}" if address else "; RAY_ADDRESS is not set, jobs start a local Ray"
    if address and not os.environ.get("RAY_AUTH_MODE"):
        told += "; if the cluster requires a token, set RAY_AUTH_MODE=token"
    return [Finding("ray", True, told)]


def _storage() -> list[Finding]:
    libraries = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
    found = []
    for protocol, library in libraries.items():
        try:
            told, works = f"{library} {version(library)}", True
        except PackageNotFoundError:
            told, works = f"uv sync --extra {EXTRAS[protocol]}", False
        found.append(Finding(f"{protocol}://", works, told, needed=False))
    return found


def _output(url: str, storage: "StorageSettings") -> Finding:
    """Check that an output can be written, by one run at a time; the check removes what it wrote."""
    from segray.errors import SegrayError
    from segray.output.folder import Output
    from segray.output.lease import ignored_condition

    name, number = f"segray-doctor-{uuid.uuid4().hex}", count()
    try:
        output = Output(url, storage)
        here = [Path(output.root), *Path(output.root).parents] if "file" in output.filesystem.protocol else []
        new = [folder for folder in here if not folder.exists()]
        output.check_usable()
        output.replace(name, b"first", None)
        ignored = ignored_condition(output, name, lambda: f"{next(number)}".encode())
        output.delete(name)
        for folder in new:
            folder.rmdir()
    except SegrayError as error:
        return Finding(shown(url), False, "; ".join(error.lines))
    if ignored is not None:
        told = f"ignores {ignored}: two runs could write one output at once; see storage.lease.probe"
        return Finding(shown(url), False, told)
    return Finding(shown(url), True, "writable, by one run at a time")


def _models() -> list[Finding]:
    from segray.errors import SettingsError
    from segray.models.catalog import bundled
    from segray.models.weights import load_weights
    from segray.storage import StorageSettings

    try:
        names = [load_weights(name, StorageSettings()).name for name in bundled()]
    except (SettingsError, ImportError) as error:
        return [Finding("models", False, f"{error}; install segray again")]
    return [Finding("models", True, f"bundled, loads without a download: {', '.join(names)}")]
