"""The file to import, local or in a bucket; of a zip archive, the members that hold labels."""

import codecs
import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from segray.data.pair_folders import SPLIT_NAMES
from segray.data.vector_files import find_file
from segray.errors import SettingsError
from segray.output.io import files_below
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, open_filesystem, shown, split_protocol


@dataclass(frozen=True, slots=True)
class Inside:
    """A local file of labels, or a member of a local zip archive."""

    name: str
    """For messages."""
    path: Path
    member: str | None = None
    number: int = 0
    split: str | None = None
    """By the name of the member: `instances_val.json`."""

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it for reading, after the mark of UTF-8 that some editors write."""
        if self.member is None:
            with self.path.open("rb") as stream:
                yield _after_mark(stream)
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            yield _after_mark(stream)


def _after_mark(stream: IO[bytes]) -> IO[bytes]:
    if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        stream.seek(0)
    return stream


def local_file(source: Source, storage: StorageSettings, folder: Path) -> Path:
    """Return the file on this machine; remote ones are copied into `folder`."""
    if split_protocol(source.uri)[0] == "file":
        return Path(source.address)
    local = folder / "labels"
    with open_source(source, storage) as stream, local.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return local


def labels_in(source: Source, suffix: str, storage: StorageSettings, folder: Path) -> list[Inside]:
    """Return the file itself, or the members of a zip archive with this suffix, by name.

    Raises SettingsError where it cannot be read or has none.
    """
    try:
        local = local_file(source, storage, folder)
        if not zipfile.is_zipfile(local):
            return [Inside(source.uri, local)]
        with zipfile.ZipFile(local) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith(suffix))
    except (OSError, zipfile.BadZipFile) as error:
        raise SettingsError(f"{source.uri}: it cannot be read: {describe(error)}") from error
    if not names:
        raise SettingsError(f"{source.uri}: the archive has no {suffix} file")
    return [
        Inside(f"{source.uri}/{name}", local, name, number, _split(name)) for number, name in enumerate(names)
    ]


def _split(name: str) -> str | None:
    stem = name.rpartition("/")[2].rpartition(".")[0].lower()
    return SPLIT_NAMES.get(stem.removeprefix("instances_"))


def version_of(url: str, storage: StorageSettings, *, is_folder: bool) -> str:
    """Return what changes when the labels do: of one file its version, of a folder a digest of all versions.

    Raises SettingsError where there is no such file or folder.
    """
    if not is_folder:
        return find_file(url, storage).version
    files = files_below(url, ("",), storage)
    if not files:
        raise SettingsError(f"file: {shown(url)}: no such folder, or an empty one; the format is a folder")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.uri}\0{file.version}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_small(url: str, storage: StorageSettings) -> str | None:
    """Return a text file of a folder; None where there is none."""
    filesystem, path = open_filesystem(url, storage)
    try:
        return bytes(retrying(lambda: filesystem.cat_file(path), storage.hasty)).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown(url)}: it is not UTF-8: {error}") from error
