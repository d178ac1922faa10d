"""Read single files, list the files of a folder, and write metrics.json at the end."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from segray.atomic import put_atomically
from segray.errors import JobFailedError, SettingsError
from segray.output.names import SCORES
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.local import everything, walk
from segray.sources.names import without_suffix
from segray.sources.remote import list_files
from segray.storage import StorageSettings, canonical_uri, open_filesystem, split_protocol

T = TypeVar("T")


def read_file(url: str, storage: StorageSettings, setting: str) -> bytes:
    """Return the bytes of one file. Raises SettingsError, which begins with the name of the setting."""
    data = read_if_there(url, storage, setting)
    if data is None:
        raise SettingsError(f"{setting}: {canonical_uri(url)}: no such file")
    return data


def read_if_there(url: str, storage: StorageSettings, setting: str) -> bytes | None:
    """Return the bytes of one file; None where it does not exist. Raises SettingsError as `read_file`."""
    filesystem, path = open_filesystem(url, storage)
    try:
        return _requested(
            f"{setting}: {canonical_uri(url)}", lambda: bytes(filesystem.cat_file(path)), storage
        )
    except FileNotFoundError:
        return None


def files_below(url: str, suffixes: tuple[str, ...], storage: StorageSettings) -> list[Source]:
    """Return the files with these suffixes below a folder, by name; none if the folder does not exist."""
    protocol, _ = split_protocol(url)
    filesystem, path = open_filesystem(url, storage)
    if protocol == "file":
        found = list(walk(path)) if Path(path).is_dir() else []
    else:
        prefix = path.rstrip("/") + "/"
        found = _requested(
            canonical_uri(url),
            lambda: list(list_files(filesystem, protocol, prefix, everything, storage)),
            storage,
        )
    named = [file for file in found if file.uri.endswith(suffixes) and "/." not in file.uri]
    return sorted(named, key=lambda file: file.uri)


def label_files(url: str, storage: StorageSettings, setting: str) -> dict[str, list[Source]]:
    """Return the images below a folder by their relative names without suffix; hidden files are skipped.

    Raises SettingsError, which begins with the name of the setting, where `url` is not a folder.
    """
    root = canonical_uri(url).rstrip("/") + "/"
    files: dict[str, list[Source]] = {}
    try:
        for source in Listing([url], storage):
            if not source.uri.startswith(root):
                raise SettingsError(f"{canonical_uri(url)}: not a folder")
            name = source.uri[len(root) :]
            if source.kind == "file" and not PurePosixPath(name).name.startswith("."):
                files.setdefault(without_suffix(name), []).append(source)
    except SettingsError as error:
        raise SettingsError(*(f"{setting}: {line}" for line in error.lines)) from error
    return files


def check_output(url: str, storage: StorageSettings) -> None:
    """Raise SettingsError within seconds where nothing can be written: no bucket, no permission, a file."""
    filesystem, path = open_filesystem(url, storage)
    if split_protocol(url)[0] == "file":
        there = next(each for each in (Path(path), *Path(path).parents) if each.exists())
        if not there.is_dir():
            raise SettingsError(f"output: {there} is a file")
        try:
            tempfile.TemporaryFile(dir=there).close()  # mode bits are not enough: read-only mounts, /proc
        except OSError as error:
            raise SettingsError(f"output: cannot write into {there}: {describe(error)}") from error
        return
    bucket = path.split("/", 1)[0]
    try:
        _requested(f"output: {canonical_uri(url)}", lambda: filesystem.info(bucket), storage)
    except FileNotFoundError as error:
        raise SettingsError(f"output: there is no bucket or container {bucket}; create it first") from error


def write_metrics(url: str, record: dict[str, Any], storage: StorageSettings) -> str:
    """Write metrics.json, whole or not at all; return its URL. Raises JobFailedError where that fails."""
    filesystem, root = open_filesystem(url, storage)
    path, data = f"{root.rstrip('/')}/{SCORES}", _readable(record).encode()
    where = f"{canonical_uri(url).rstrip('/')}/{SCORES}"
    try:
        retrying(lambda: put_atomically(filesystem, path, data + b"\n"), storage)
    except OSError as error:
        raise JobFailedError(f"cannot write {where}: {describe(error)}; run the command again") from error
    return where


def _readable(record: dict[str, Any]) -> str:
    """Return JSON with a list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n[-+.,\seE0-9]*\]", lambda found: " ".join(found[0].split()), text)


def _requested(what: str, call: Callable[[], T], storage: StorageSettings) -> T:
    """Return `call()`, with few retries, before work begins.

    Raises FileNotFoundError as it is, every other error as SettingsError.
    """
    try:
        return retrying(call, storage.hasty)
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise SettingsError(f"{what}: a folder, not a file") from error
    except Exception as error:  # each library has its own types
        raise SettingsError(f"{what}: {describe(error)}") from error
