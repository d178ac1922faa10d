"""COCO files of any size, an item at a time: first images and categories, then annotations, or results."""

import json
from collections.abc import Iterator
from typing import Any

import ijson

from segray.data.coco_file import ImageId, TrueImage, categories_of, check_result, entry_of, images_of
from segray.errors import SettingsError
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri

_CHUNK = 1 << 20
_KEPT = ("id", "file_name", "height", "width", "split")


class CocoStream:
    """One file. JSON that only Python reads, with NaN, is read whole."""

    def __init__(self, url: str, storage: StorageSettings, setting: str) -> None:
        """Errors begin with the name of the setting; nothing is read yet."""
        self.where = f"{setting}: {canonical_uri(url)}"
        self._source, self._storage = Source(canonical_uri(url), url, "file", "", -1), storage
        self._whole: Any = None

    def header(self, group: str | None) -> tuple[dict[ImageId, TrueImage], dict[int, str]]:
        """Return the images by id, in its order, and the categories.

        group: name of the value of an image that becomes its `group`. Raises SettingsError for what is
        missing or not COCO.
        """
        entries = []
        for entry in self._items("images.item"):
            kept = {name: entry_of(entry, name) for name in _KEPT} | {"group": entry_of(entry, group or "")}
            entries.append(kept)
        categories = list(self._items("categories.item"))
        if not entries and not categories and next(self.annotations(), None) is None:
            raise SettingsError(f"{self.where}: not COCO JSON: it needs images, annotations and categories")
        return images_of(entries, self.where), categories_of(categories, self.where)

    def annotations(self) -> Iterator[Any]:
        """Yield the annotations, in their order. Raises SettingsError."""
        return self._items("annotations.item")

    def results(self) -> Iterator[Any]:
        """Yield COCO results, checked. Raises SettingsError."""
        place = -1
        for place, result in enumerate(self._items("item")):
            check_result(result, place, self.where)
            yield result
        if place < 0 and self._start() != b"[":
            raise SettingsError(
                f"{self.where}: not COCO results: expected a list of image_id, category_id, score …"
            )

    def _items(self, prefix: str) -> Iterator[Any]:
        done = 0
        if self._whole is None:
            try:
                with open_source(self._source, self._storage) as stream:
                    for item in ijson.items(stream, prefix, use_float=True, buf_size=_CHUNK):
                        yield item
                        done += 1
                return
            except FileNotFoundError as error:
                raise SettingsError(f"{self.where}: no such file") from error
            except IsADirectoryError as error:
                raise SettingsError(f"{self.where}: a folder, not a file") from error
            except OSError as error:
                raise SettingsError(f"{self.where}: {describe(error)}") from error
            except ijson.JSONError:
                self._whole = self._read()
        items = self._whole
        if "." in prefix:
            items = entry_of(items, prefix.partition(".")[0])
        yield from items[done:] if isinstance(items, list) else ()

    def _start(self) -> bytes:
        with open_source(self._source, self._storage) as stream:
            return stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]

    def _read(self) -> Any:
        with open_source(self._source, self._storage) as stream:
            try:
                return json.loads(stream.read())
            except (ValueError, RecursionError) as error:
                raise SettingsError(f"{self.where}: it is not JSON: {error}") from error
