"""The pixels of chosen images, read again from their sources and scaled for the page.

A source that is gone, has changed its size or cannot be decoded costs its picture; the reason is kept. Of a
run with `--blur` its copies are read, never the sources.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError
from segray.scenes.scene import Scene, Tiling, scene_from
from segray.sources.archives import read_archive
from segray.sources.byte_ranges import FileRanges, MemoryRanges
from segray.sources.concurrent_requests import as_item_error
from segray.sources.decode_step import decode_image
from segray.sources.item import Source
from segray.sources.manifest import look_up_rows
from segray.sources.names import archive_kind
from segray.sources.read_step import fetch_files
from segray.sources.sandbox import ByteRanges, DecodeSandbox
from segray.storage import StorageSettings

Pixels = NDArray[np.uint8]
_NOWHERE = Source("", "", "file", "", -1)
_TOGETHER = 64
_NO_COPY = "the run's blurred copy of it is not there"
THUMBNAIL = 360
"""Longest side of the small picture in the list, pixels."""
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Picture:
    """What is shown of an image."""

    pixels: Pixels
    """RGB, (height, width, 3) uint8, at most as large as the page shows."""
    changed: bool
    """Whether the file has another version than the run saw."""


class PictureReader:
    """Reads pictures of ledger rows; files are decoded in a process that a hostile one may kill."""

    def __init__(
        self, side: int, max_pixels: int, storage: StorageSettings, copies: str | None = None
    ) -> None:
        """Begin; copies: folder of blurred copies, `IMAGE_ID.jpg` or `.png`, read in place of the sources."""
        self._side, self._max_pixels, self._storage = side, max_pixels, storage
        self._copies = copies
        self._sandbox = DecodeSandbox()

    def __enter__(self) -> "PictureReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._sandbox.close()

    def read(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Picture | ItemError]]:
        """Yield each row with its picture, or why there is none; archives last, each opened once."""
        archives: dict[str, list[dict[str, Any]]] = {}
        plain = []
        for row in rows:
            if row.get("member") is None or self._copies is not None:
                plain.append(row)
            else:
                archives.setdefault(row["uri"], []).append(row)
        for first in range(0, len(plain), _TOGETHER):
            yield from self._files(plain[first : first + _TOGETHER])
        for uri, members in archives.items():
            yield from self._members(uri, members)

    def _files(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Picture | ItemError]]:
        if self._copies is None:
            sources = self._looked_up([row["uri"] for row in rows])
        else:
            sources = self._copies_of(rows, self._copies)
        whole = []
        for row, source in zip(rows, sources, strict=True):
            if source.error_type is None and _scene(row) is not None:
                yield row, self._of_scene_file(row, source)
            else:
                whole.append((row, source))
        queue = iter(whole)
        for table in fetch_files([source for _, source in whole], self._storage):
            for fetched in table.select(["data", "error_type", "error"]).to_pylist():
                row, source = next(queue)
                version = source.version if self._copies is None else None
                yield row, self._picture(row, fetched, version)

    def _looked_up(self, addresses: Sequence[str]) -> list[Source]:
        numbered: list[tuple[int, str | None]] = [*enumerate(addresses, 2)]
        return look_up_rows(numbered, _NOWHERE, "/", self._storage)

    def _copies_of(self, rows: Sequence[dict[str, Any]], folder: str) -> list[Source]:
        """Return the copy of each row, or why there is none."""
        jpegs, pngs = (
            self._looked_up([f"{folder}/{row['image_id']}.{suffix}" for row in rows])
            for suffix in ("jpg", "png")
        )
        found = [jpeg if png.error_type else png for jpeg, png in zip(jpegs, pngs, strict=True)]
        return [replace(each, error=_NO_COPY) if each.error_type == "missing" else each for each in found]

    def _members(
        self, uri: str, rows: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], Picture | ItemError]]:
        """Yield the members of one archive; those that are not found are missing."""
        (source,) = look_up_rows([(2, uri)], _NOWHERE, "/", self._storage)
        wanted = {row["member_index"]: row for row in rows if row.get("member_index") is not None}
        for row in rows:
            if row.get("member_index") is None:
                yield (
                    row,
                    ItemError("unsupported", "its row lacks member_index, which finds it in the archive"),
                )
        lost = ItemError("missing", "the archive does not hold it any more")
        tables = read_archive(
            replace(source, kind=archive_kind(uri) or "zip"), _AllBut(set(wanted)), self._storage
        )
        for table in tables:
            columns = table.select(["member", "member_index", "data", "error_type", "error"])
            for fetched in columns.to_pylist():
                found = wanted.get(fetched["member_index"])
                if found is not None and found["member"] == fetched["member"]:
                    del wanted[fetched["member_index"]]
                    yield found, self._picture(found, fetched, None)
                elif fetched["error_type"] is not None:
                    lost = ItemError(fetched["error_type"], fetched["error"])
            if not wanted:
                return
        for row in wanted.values():
            yield row, lost

    def _picture(
        self, row: dict[str, Any], fetched: dict[str, Any], version: str | None
    ) -> Picture | ItemError:
        """Return what is shown; version: of the file, None where the ledger's is of something else."""
        if fetched["error_type"] is not None:
            return ItemError(fetched["error_type"], fetched["error"])
        changed = version is not None and bool(row.get("version")) and row["version"] != version
        return self._shown(row, MemoryRanges(row["image_id"], memoryview(fetched["data"])), changed)

    def _of_scene_file(self, row: dict[str, Any], source: Source) -> Picture | ItemError:
        try:
            file = FileRanges(source.uri, source.version, source.address, source.size, self._storage)
            return self._shown(row, file, bool(row.get("version")) and row["version"] != source.version)
        except Exception as error:  # noqa: BLE001 - each storage has its own; it costs this picture
            return as_item_error(error, "the scene")

    def _shown(self, row: dict[str, Any], file: ByteRanges, changed: bool) -> Picture | ItemError:
        try:
            scene = _scene(row)
            if scene is None:
                assert isinstance(file, MemoryRanges)
                pixels = decode_image(self._sandbox, file, self._max_pixels, Tiling()).pixels
                if pixels.shape[:2] != (row["height"], row["width"]):
                    size = f"{pixels.shape[1]} x {pixels.shape[0]}"
                    return ItemError("unsupported", f"it has {size} pixels now: it has changed since the run")
                return Picture(smaller(pixels, self._side), changed)
            return Picture(
                self._sandbox.whole(file, coarser(scene, self._side), self._side**2).pixels, changed
            )
        except ItemError as error:
            return error


class _AllBut:
    """Holds every number but some: which members of an archive are left out."""

    def __init__(self, wanted: Container[int]) -> None:
        self._wanted = wanted

    def __contains__(self, index: object) -> bool:
        return index not in self._wanted


def _scene(row: dict[str, Any]) -> Scene | None:
    """Return the scene of a row that is read by window; None for an ordinary image, also a large one."""
    text = row.get("scene")
    scene = None if text is None else scene_from(text)
    return scene if scene is not None and scene.bands else None


def coarser(scene: Scene, side: int) -> Scene:
    """Return a scene as one window with at most `side` pixels on its longer side, read from an overview."""
    less = max(1.0, max(scene.height, scene.width) / side)
    height, width = max(1, int(scene.height / less)), max(1, int(scene.width / less))
    return replace(scene, height=height, width=width, tile=max(height, width), overlap=0)


def smaller(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Scale an image (height, width, …) down so that its longer side is at most `side`."""
    less = max(pixels.shape[:2]) / side
    if less <= 1:
        return pixels
    size = max(1, round(pixels.shape[1] / less)), max(1, round(pixels.shape[0] / less))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def jpeg(pixels: Pixels) -> bytes:
    """Encode RGB pixels, (height, width, 3) uint8."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert done
    return data.tobytes()
