"""The user's sources -> one Source for each file and archive, streamed.

folder, glob -> files below -> images and archives (the rest is counted, see `Choice`)
file         -> itself, with any name; an archive or a manifest by its suffix
manifest     -> one file for each row; likewise for files of a folder or glob with a manifest's suffix
STAC         -> one file for each Item of a .json that is named or of a glob that ends so; and of all below a
                folder without an image or archive
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

from segray.errors import SegrayError, SettingsError
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.local import everything, local_source, walk
from segray.sources.manifest import Wanted, read_manifest
from segray.sources.name_filter import EVERYTHING, EXCLUDED, METADATA, Choice, is_metadata, kind_of
from segray.sources.names import archive_kind, is_image_name, manifest_kind
from segray.sources.pattern import Pattern, has_magic
from segray.sources.remote import list_files, remote_source
from segray.sources.stac import StacReader, is_stac_name
from segray.storage import OBJECT_STORES, StorageSettings, canonical_uri, open_filesystem, split_protocol

_KINDS = 100
"""Number of suffixes that are counted separately."""
_JSON = ".json"
_NOTHING = "no such file, folder or bucket"


class Listing:
    """Iterate once: yields Sources and counts in `left_out` other names, by suffix or reason.

    Iterating raises SettingsError for a source that does not exist or cannot be listed.
    """

    def __init__(
        self,
        sources: Sequence[str],
        storage: StorageSettings,
        choice: Choice = EVERYTHING,
        keep_columns: Sequence[str] = (),
    ) -> None:
        """Store the columns to keep: manifests' rows then carry them (`Source.kept`)."""
        self.left_out = Counter[str]()
        self.wanted = Wanted(keep_columns)
        self._sources = sources
        self._storage = storage
        self._choice = choice

    @property
    def ignored(self) -> int:
        """Number of names that were left out."""
        return self.left_out.total()

    def __iter__(self) -> Iterator[Source]:
        for url in self._sources:
            try:
                yield from self._expand(url)
            except SegrayError:
                raise
            except FileNotFoundError as error:
                raise SettingsError(f"{canonical_uri(url)}: {_NOTHING}") from error
            except Exception as error:  # each library has its own types
                raise SettingsError(f"{canonical_uri(url)}: {describe(error)}") from error

    def _expand(self, url: str) -> Iterator[Source]:
        protocol, _ = split_protocol(url)
        filesystem, path = open_filesystem(url, self._storage)
        if protocol == "file":
            return self._expand_local(path)
        keys = canonical_uri(url).partition("://")[2]
        if protocol in OBJECT_STORES and keys.endswith("/") and self._has(filesystem, protocol, keys):
            return self._below(filesystem, protocol, keys)
        return self._expand_remote(filesystem, protocol, path)

    def _has(self, filesystem: AbstractFileSystem, protocol: str, keys: str) -> bool:
        """Return whether any name begins with `keys`, literally: an object may be named like a folder."""
        try:
            files = list_files(filesystem, protocol, keys, everything, self._storage.hasty)
            return next(files, None) is not None
        except FileNotFoundError:
            return False

    def _expand_local(self, path: str) -> Iterator[Source]:
        if stat.S_ISDIR(_mode(path)):
            os.scandir(path).close()  # raises at once where the folder itself cannot be listed
            if manifest_kind(path) is not None:
                return self._parts(walk(path))
            return self._images_or_stac(lambda: walk(path), path)
        if os.path.lexists(path):
            return self._named(local_source(path))
        if has_magic(path):
            there = next(str(folder) for folder in Path(path).parents if os.path.lexists(folder))
            return self._matching_local(Pattern(path, there))
        raise FileNotFoundError(path)

    def _expand_remote(self, filesystem: AbstractFileSystem, protocol: str, path: str) -> Iterator[Source]:
        info = self._first_contact(filesystem, path)
        if info is None:
            pattern = Pattern(path)
            files = list_files(filesystem, protocol, pattern.prefix, pattern.enters, self._storage)
            matching = (one for one in files if pattern.matches(one.address.partition("://")[2]))
            if manifest_kind(path) is not None:
                return self._parts(matching)
            if self._choice.stac and is_stac_name(path):
                return self._of_stac(matching)
            return self._chosen(matching, f"{protocol}://{pattern.root}")
        if info.get("type") == "directory" and protocol not in ("http", "https"):
            return self._below(filesystem, protocol, path.rstrip("/") + "/")
        return self._named(remote_source(protocol, path, info))

    def _below(self, filesystem: AbstractFileSystem, protocol: str, folder: str) -> Iterator[Source]:
        def files() -> Iterator[Source]:
            return list_files(filesystem, protocol, folder, everything, self._storage)

        if manifest_kind(folder.rstrip("/")) is not None:
            return self._parts(files())
        return self._images_or_stac(files, f"{protocol}://{folder}")

    def _first_contact(self, filesystem: AbstractFileSystem, path: str) -> dict[str, Any] | None:
        """Return the storage's information on the source; None where it does not exist but may be a glob."""
        try:
            return dict(retrying(lambda: filesystem.info(path), self._storage.hasty))
        except FileNotFoundError:
            if has_magic(path) and not path.startswith(("http://", "https://")):
                return None
            raise

    def _matching_local(self, pattern: Pattern) -> Iterator[Source]:
        if not stat.S_ISDIR(_mode(pattern.root)):
            raise SettingsError(f"{canonical_uri(pattern.path)}: no such folder: {pattern.root}")
        files = walk(pattern.root, pattern.enters)
        matching = (one for one in files if one.uri.endswith("/") or pattern.matches(one.address))
        if manifest_kind(pattern.path) is not None:
            return self._parts(matching)
        if self._choice.stac and is_stac_name(pattern.path):
            return self._of_stac(matching)
        return self._chosen(matching, pattern.root)

    def _parts(self, files: Iterator[Source]) -> Iterator[Source]:
        """Yield the rows of manifests in a folder or glob that has a manifest's suffix, such as Spark's.

        Names that begin with `_` or `.` are the writer's own.
        """
        for file in files:
            name = file.address.rstrip("/").rpartition("/")[2]
            if manifest_kind(name) is None or name.startswith(("_", ".")):
                self._count(kind_of(name))
            else:
                yield from self._named(file)

    def _images_or_stac(self, files: Callable[[], Iterator[Source]], root: str) -> Iterator[Source]:
        """Yield the images below a folder; where there is none, and no archive, those of its STAC Items.

        files: lists the folder, the second time for its JSON.
        """
        before = self.left_out[EXCLUDED]
        there = False
        for source in self._chosen(files(), root):
            there = True
            yield source
        if there or self.left_out[EXCLUDED] > before or not self._choice.stac or not self.left_out[_JSON]:
            return
        reader, names = self._reader(), (each for each in files() if kind_of(each.uri) == _JSON)
        documents = (each for each in names if not is_metadata(each.address.removeprefix(root).split("/")))
        yield from filter(self._is_chosen, reader.images(documents, follow=False))
        self.left_out[_JSON] -= reader.used
        self.left_out += Counter()  # drops a 0

    def _of_stac(self, files: Iterator[Source]) -> Iterator[Source]:
        """Yield the images of STAC documents that the user named."""
        return filter(self._is_chosen, self._reader().images(files, follow=True))

    def _is_chosen(self, image: Source) -> bool:
        """Return whether the globs choose an asset, or count it; a document with an error always is."""
        why = None if image.error_type else self._choice.leaves_out(image.address, named=True)
        if why is not None:
            self._count(why)
        return why is None

    def _reader(self) -> StacReader:
        return StacReader(self._storage, self._choice.asset)

    def _chosen(self, files: Iterator[Source], root: str) -> Iterator[Source]:
        """Yield the images and archives below `root`, and the folders that could not be listed."""
        for file in files:
            below = file.address.removeprefix(root)
            kind = archive_kind(file.uri)
            if kind is None and not is_image_name(file.uri) and not file.uri.endswith("/"):
                self._count(METADATA if is_metadata(below.split("/")) else kind_of(below))
            elif why := self._choice.leaves_out(below, is_archive=kind is not None):
                self._count(why)
            else:
                yield file if kind is None else replace(file, kind=kind)

    def _count(self, kind: str) -> None:
        known = kind in self.left_out or len(self.left_out) < _KINDS
        self.left_out[kind if known else "other suffixes"] += 1

    def _named(self, file: Source) -> Iterator[Source]:
        """Yield the sources of a file that the user named."""
        if file.error_type == "missing":
            raise SettingsError(f"{file.uri}: {file.error}")
        kind = archive_kind(file.uri)
        if kind is None and manifest_kind(file.uri) is not None:
            for row in read_manifest(file, self._storage, self.wanted):
                is_none = row.uri.startswith(f"{file.uri}#row=")  # no address to match
                why = None if is_none else self._choice.leaves_out(row.address, named=True)
                if why is None:
                    yield row
                else:
                    self._count(why)
        elif kind is None and self._choice.stac and is_stac_name(file.uri):
            yield from self._of_stac(iter([file]))
        else:
            yield file if kind is None else replace(file, kind=kind)


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0
