"""Addresses of models in a registry: `registry://BUCKET/PATH#MODEL@ALIAS`, or `@VERSION`.

registry://bucket/models#roads            the champion, in S3
registry+gs://bucket/models#roads@8c1f0e2b9d47
registry:models#roads@challenger          a folder on disk; registry:///data/models#… with an absolute path
"""

import re
from dataclasses import dataclass

from segray.address import absolute_path
from segray.errors import SettingsError
from segray.storage import canonical_uri, shown, split_protocol

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
_FORM = re.compile(
    r"registry(?:\+(?P<kind>[a-z0-9]+))?:(?P<slashes>//)?(?P<path>[^#]*[^#/][^#]*)#(?P<model>[^#@]+)(?:@(?P<which>[^#@]*))?"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9a-f]{12}")
_KINDS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "file": "file",
}


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """A model in a registry, by alias or version."""

    url: str
    """URL of the registry, as for any storage; a path on disk as the user wrote it."""
    model: str
    which: str = CHAMPION
    """One of ALIASES, or a version."""

    def __str__(self) -> str:
        protocol, is_url, path = self.url.partition("://")
        if not is_url:
            where = f"registry://{path or protocol}" if self.url.startswith("/") else f"registry:{self.url}"
        else:
            where = f"registry{'' if protocol == 's3' else '+' + protocol}://{path}"
        return f"{where}#{self.model}@{self.which}"


def is_registry(spec: str) -> bool:
    """Return whether a `--weights` value has the form of a registry address."""
    return spec.startswith(("registry:", "registry+"))


def parse(spec: str) -> RegistryAddress:
    """Parse a registry address. Raises SettingsError where its form is invalid."""
    found = _FORM.fullmatch(spec)
    if found is None:
        raise SettingsError(
            f"weights {shown(spec)!r}: write registry://BUCKET/PATH#MODEL@ALIAS (or @VERSION), on "
            "disk registry:PATH#MODEL@ALIAS"
        )
    kind, path = found["kind"] or "s3", found["path"]
    if kind not in _KINDS:
        raise SettingsError(
            f"weights {shown(spec)!r}: registry+{kind} is not one of registry+s3, registry+gs, registry+az"
        )
    if not found["slashes"] and found["kind"]:
        raise SettingsError(f"weights {shown(spec)!r}: write registry+{kind}://")
    is_local = path.startswith("/") or not found["slashes"] or kind == "file"
    url = path if is_local else f"{_KINDS[kind]}://{path}"
    if not is_local and canonical_uri(url) != split_protocol(url)[1]:
        raise SettingsError(
            f"weights {shown(spec)!r}: keys and signatures in a URL are not used; set storage.s3, "
            "storage.gcs or storage.azure"
        )
    model, which = check_model(found["model"]), found["which"]
    return RegistryAddress(url.rstrip("/") or "/", model, check_which(CHAMPION if which is None else which))


def absolute(spec: str) -> str:
    """Return the address with a local path made absolute; an invalid one unchanged, `parse` reports it."""
    try:
        address = parse(spec)
    except SettingsError:
        return spec
    if "://" in address.url:
        return str(address)
    return str(RegistryAddress(absolute_path(address.url), address.model, address.which))


def check_model(name: str) -> str:
    """Return the name of a model. Raises SettingsError where it is not a valid folder on every storage."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"model {name[:100]!r}: use letters, digits, `.`, `_` and `-`, at most 100")
    return name


def check_which(which: str) -> str:
    """Return an alias or a version, a full sha256 shortened. Raises SettingsError for anything else."""
    if which in ALIASES:
        return which
    if re.fullmatch(r"[0-9a-f]{64}", which):
        return which[:12]
    if not _VERSION.fullmatch(which):
        raise SettingsError(
            f"{which[:80]!r} is neither a version (12 hex digits) nor an alias ({', '.join(ALIASES)})"
        )
    return which
