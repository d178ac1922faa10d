"""Scenes among the sources, GeoTIFF and JPEG 2000: which files may be some, and how their ranges are had."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pyarrow as pa
from PIL.TiffImagePlugin import COMPRESSION_INFO

from segray.errors import ItemError
from segray.scenes.rangefile import Range
from segray.scenes.scene import Tiling, patches
from segray.sources.decode import Decoded
from segray.sources.fetch import fetch_files
from segray.sources.item import Source, image_id
from segray.sources.roundtrips import as_item_error, request_all
from segray.sources.rows import FetchedRows
from segray.sources.sandbox import DecodeSandbox, Room
from segray.storage import StorageSettings, open_filesystem

WHOLE_BYTES = 8 << 20
"""A smaller one is fetched whole, like any picture: one request; of a larger one, what its tiles need."""
PATCH = 6
"""Tiles are read in squares of so many a side, since neighbours share blocks of the file: of blocks of 512 x
512 and tiles of 1024, 1.3 times as many are read as there are, instead of 2.9 times."""
AHEAD = 4
"""So many windows are under way beside the one that is decoded."""
_Answers = dict[Range, bytes | Exception]
_SUFFIXES = (".tif", ".tiff", ".gtiff", ".jp2", ".j2k")
_PLACE_TAGS = (33922, 34264, 34735, 50844)
"""ModelTiepoint, ModelTransformation, GeoKeyDirectory (OGC GeoTIFF 1.1), RPCCoefficient."""
_JP2 = b"\0\0\0\x0cjP  "
_PLACE_BOXES = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.data")
"""GeoJP2's UUID; GML in JPEG 2000 (OGC 08-085r8)."""
_HEAD_BYTES = 1 << 16
"""Boxes that give a place stand before the picture."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLES, _COMPRESSION = 277, 259
_FOR_GDAL = (34887, 50000, 50001)
"""LERC, Zstandard and WebP within TIFF: Pillow's messages are of damage, as of those it does not know."""


def is_large(source: Source) -> bool:
    """Whether a source is to be looked at before it is fetched."""
    return has_scene_name(source) and source.size > WHOLE_BYTES and source.error_type is None


def has_scene_name(source: Source) -> bool:
    """By its name."""
    return source.uri.lower().endswith(_SUFFIXES)


def may_be_scene(data: memoryview) -> bool:
    """Whether the first directory of a TIFF has a tag that gives it a place, control points or RPCs, or JPEG
    2000 a box that does.

    Others are pictures, and come near GDAL only where Pillow does not know what they hold.
    """
    if bytes(data[:8]) == _JP2:
        start = bytes(data[:_HEAD_BYTES])
        return any(box in start for box in _PLACE_BOXES)
    try:
        return any(tag in _PLACE_TAGS for tag, _ in _tags(data))
    except (struct.error, OverflowError):  # an offset beyond any file
        return False


def is_for_gdal(data: memoryview, error: ItemError) -> bool:
    """Whether Pillow refused a sound picture for its bands, depth or compression: GDAL reads it by bands."""
    if bytes(data[:8]) == _JP2:
        header = bytes(data[:_HEAD_BYTES]).partition(b"ihdr")[2]  # height, width, components, bits less one
        return error.error_type in ("unsupported", "corrupt") and len(header) > 10 and header[10] & 0x7F > 7
    if bytes(data[:4]) not in _TIFF:
        return False
    try:
        tags = dict(_tags(data))
    except (struct.error, OverflowError):
        return False
    compression = tags.get(_COMPRESSION, 1)
    odd = tags.get(_SAMPLES, 1) > 4 or compression in _FOR_GDAL or compression not in COMPRESSION_INFO
    return error.error_type == "unsupported" or (error.error_type == "corrupt" and odd)


def _tags(data: memoryview) -> Iterator[tuple[int, int]]:
    """(Number, first value where it is one of 16 bits, else of no use)."""
    if bytes(data[:4]) not in _TIFF:
        return
    order = "<" if bytes(data[:1]) == b"I" else ">"
    big = b"+" in bytes(data[2:4])
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, position)
    first, width = position + (8 if big else 2), 20 if big else 12
    for entry in range(first, first + min(count, 4096) * width, width):
        (tag,) = struct.unpack_from(order + "H", data, entry)
        (value,) = struct.unpack_from(order + "H", data, entry + (12 if big else 8))
        yield tag, value


class MemoryRanges:
    """A file that was fetched whole."""

    def __init__(self, key: str, data: memoryview) -> None:
        self.key, self.size, self.data = key, len(data), data

    def read(self, ranges: Sequence[Range]) -> Sequence[memoryview]:
        """Views."""
        return [self.data[offset : offset + size] for offset, size in ranges]

    def ahead(self, groups: Sequence[Sequence[Range]]) -> None:
        """It is all here."""


class FileRanges:
    """A file where it lies; the ranges of one call are read together, with the retries of all requests."""

    def __init__(self, uri: str, version: str, address: str, size: int, storage: StorageSettings) -> None:
        self.key, self.size = f"{uri}\0{version}", size
        self._storage = storage
        self._filesystem, self._path = open_filesystem(address, storage, is_listed=True)
        self._coming: dict[Range, Future[_Answers]] = {}
        """What was asked for ahead."""

    def read(self, ranges: Sequence[Range]) -> Sequence[bytes]:
        """The bytes of each. Raises ItemError of the first that cannot be read."""
        found = self._request([each for each in ranges if each not in self._coming])
        for each in ranges:
            if each in self._coming:
                found[each] = self._coming.pop(each).result()[each]
        return [_checked(found[each], each[1]) for each in ranges]

    def ahead(self, groups: Sequence[Sequence[Range]]) -> None:
        """Ask for each group, in a thread, unless it was asked for before."""
        for group in groups:
            new = [each for each in group if each not in self._coming]
            if new:
                future = _threads().submit(self._request, new)
                self._coming |= dict.fromkeys(new, future)

    def _request(self, ranges: Sequence[Range]) -> _Answers:
        wanted = [{"path": self._path, "start": offset, "end": offset + size} for offset, size in ranges]
        answers = request_all(self._filesystem, "cat_file", wanted, self._storage) if wanted else []
        return dict(zip(ranges, answers, strict=True))


def decode_picture(
    sandbox: DecodeSandbox, file: MemoryRanges, max_pixels: int, tiling: Tiling, room: Room | None = None
) -> Decoded:
    """As `DecodeSandbox.decode`; a sound picture that Pillow does not know is read by its bands."""
    try:
        return sandbox.decode(file.data, max_pixels, room)
    except ItemError as error:
        if not is_for_gdal(file.data, error):
            raise
    scene = sandbox.describe(file, replace(tiling, picture_pixels=0, resolution=None))
    assert scene is not None
    return sandbox.whole(file, scene, max_pixels, room)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AHEAD)


def _checked(answer: bytes | Exception, size: int) -> bytes:
    if isinstance(answer, Exception):
        raise as_item_error(answer, "the scene")
    if len(answer) != size:
        raise ItemError("truncated", "the file is shorter than it was when it was listed")
    return answer


def read_files(
    sources: Sequence[Source],
    done: Mapping[str, Sequence[int]],
    storage: StorageSettings,
    sandbox: DecodeSandbox,
    tiling: Tiling,
    max_bytes: int,
) -> Iterator[pa.Table]:
    """Files as tables of FETCHED: their bytes, and, of large scenes, a row for each square of tiles.

    `done`: image_id -> tiles that have an answer; `max_bytes`: the largest file that is fetched whole.
    Ends and contents of the tables depend on the files alone.
    """
    pictures = [source for source in sources if not is_large(source)]
    yield from fetch_files(pictures, storage, max_bytes=max_bytes)
    for source in sources:
        if is_large(source):
            yield from _scene_or_picture(
                source, done.get(scene_id(source), ()), storage, sandbox, tiling, max_bytes
            )


def _scene_or_picture(
    source: Source,
    done: Sequence[int],
    storage: StorageSettings,
    sandbox: DecodeSandbox,
    tiling: Tiling,
    max_bytes: int,
) -> Iterator[pa.Table]:
    rows = FetchedRows()
    try:
        file = FileRanges(source.uri, source.version, source.address, source.size, storage)
        scene = sandbox.describe(file, tiling)
    except ItemError as error:
        rows.add_file(source, error)
        yield rows.take()
        return
    if scene is None:
        yield from fetch_files([source], storage, max_bytes=max_bytes)
        return
    have = set(done)
    for tiles in patches(scene.grid, [tile in have for tile in range(len(scene.grid))], PATCH):
        rows.add_tiles(source, scene.to_json(), tiles)
        yield rows.take()


def scene_id(source: Source) -> str:
    """The image_id of a file."""
    return image_id(source.uri, None, 0, source.version)
