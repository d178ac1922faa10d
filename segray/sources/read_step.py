"""The first step: files -> tables of FETCHED; small files whole, in concurrent groups, scenes by tile.

Every file comes with its bytes or its own error. Of a large scene only its headers are read here: its rows
name the tiles whose byte ranges the decode step requests. Archives: see `archives`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from fsspec.spec import AbstractFileSystem

from segray.errors import ItemError
from segray.scenes.scene import Tiling, patches
from segray.sources.byte_ranges import FileRanges
from segray.sources.concurrent_requests import as_item_error, request_all
from segray.sources.file_headers import has_scene_name
from segray.sources.item import Source, image_id
from segray.sources.rows import FetchedRows, fits
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings, open_filesystem

MAX_FILE_BYTES = 1 << 30
"""A larger encoded image is rejected unread: it would have to be in memory as a whole."""
_UNKNOWN_SIZE = 1 << 20
"""Assumed size of a file in a group when its storage does not report one."""
WHOLE_BYTES = 8 << 20
"""A smaller scene is fetched whole, like an image, in one request; of a larger one, what its tiles need."""
PATCH = 6
"""Tiles are read in squares of this many a side, since neighbours share blocks of the file: with blocks of
512 x 512 and tiles of 1024, each block is read 1.3 times instead of 2.9 times."""


def read_files(
    sources: Sequence[Source],
    done: Mapping[str, Sequence[int]],
    storage: StorageSettings,
    sandbox: DecodeSandbox,
    tiling: Tiling,
    max_bytes: int,
) -> Iterator[pa.Table]:
    """Read files into tables of FETCHED: their bytes, and, of large scenes, a row for each square of tiles.

    `done`: image_id -> tiles that have a result; `max_bytes`: the largest file that is fetched whole.
    Boundaries and contents of the tables depend on the files alone.
    """
    pictures = [source for source in sources if tiling.volumes or not is_large(source)]
    yield from fetch_files(pictures, storage, max_bytes=max_bytes)
    for source in sources:
        if is_large(source) and not tiling.volumes:
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


def fetch_files(
    sources: Sequence[Source], storage: StorageSettings, max_bytes: int = MAX_FILE_BYTES
) -> Iterator[pa.Table]:
    """Read sources, in order, into tables of FETCHED; a file that cannot be read becomes an error row.

    Tables are cut by the listed sizes, not by what the reads return, so that the same sources always make the
    same tables. `max_bytes` is the largest file that is read.
    """
    rows = FetchedRows()
    for group in _groups(sources, max_bytes):
        for source, data in zip(group, read_all(group, storage, max_bytes), strict=True):
            rows.add_file(source, data)
        yield rows.take()


def _groups(sources: Sequence[Source], max_bytes: int) -> Iterator[list[Source]]:
    """Yield groups of neighbours that share a table, by their listed sizes."""
    group, held = list[Source](), 0
    for source in sources:
        size = _UNKNOWN_SIZE if source.size < 0 else source.size if source.size <= max_bytes else 0
        if not fits(len(group), held, size):
            yield group
            group, held = [], 0
        group.append(source)
        held += size
    if group:
        yield group


def read_all(
    group: list[Source], storage: StorageSettings, max_bytes: int = MAX_FILE_BYTES
) -> list[bytes | ItemError]:
    """Return the bytes of each source, or its error; all are requested at once."""
    results: list[bytes | ItemError] = [_known_error(source, max_bytes) or b"" for source in group]
    by_storage: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for place, source in enumerate(group):
        if not isinstance(results[place], ItemError):
            filesystem, path = open_filesystem(source.address, storage, is_listed=True)
            by_storage.setdefault(id(filesystem), (filesystem, []))[1].append((place, path))
    for filesystem, places in by_storage.values():
        sizes = [group[place].size for place, _ in places]
        answers = _contents(filesystem, [path for _, path in places], sizes, storage, max_bytes)
        for (place, _), answer in zip(places, answers, strict=True):
            results[place] = _checked(answer, max_bytes)
    return results


def _contents(
    filesystem: AbstractFileSystem,
    paths: list[str],
    sizes: list[int],
    storage: StorageSettings,
    max_bytes: int,
) -> list[bytes | Exception]:
    """Return each file's content, at most one byte more than `max_bytes`, or its error.

    Requested as a range one byte longer than the listed size, because s3fs looks a file up before it reads it
    without a range. A file that is not as long as listed is read again: it has changed, or the storage
    decompresses it.
    """
    ranges = [_range(path, max_bytes if size < 0 else size) for path, size in zip(paths, sizes, strict=True)]
    answers = request_all(filesystem, "cat_file", ranges, storage)
    again = [
        place
        for place, (answer, size) in enumerate(zip(answers, sizes, strict=True))
        if size > 0 and not isinstance(answer, Exception) and len(answer) != size
    ]
    whole = [_range(paths[place], max_bytes) for place in again]
    repeated = request_all(filesystem, "cat_file", whole, storage)
    for place, answer in zip(again, repeated, strict=True):
        answers[place] = answer
    return answers


def _range(path: str, size: int) -> dict[str, Any]:
    if size == 0:  # storages refuse any range of an empty file
        return {"path": path}
    return {"path": path, "start": 0, "end": size + 1}


def _known_error(source: Source, max_bytes: int) -> ItemError | None:
    if source.error_type is not None:
        return ItemError(source.error_type, source.error or source.error_type)
    return _too_large(source.size, max_bytes) if source.size > max_bytes else None


def _checked(answer: bytes | Exception, max_bytes: int) -> bytes | ItemError:
    if isinstance(answer, Exception):
        return as_item_error(answer)
    return answer if len(answer) <= max_bytes else _too_large(len(answer), max_bytes)


def _too_large(size: int, max_bytes: int) -> ItemError:
    return ItemError(
        "too_large", f"the file has {size:,} bytes, above the limit of {max_bytes:,}; --max-file-mib"
    )


def is_large(source: Source) -> bool:
    """Return whether a source may be a scene that is large enough to be read by ranges."""
    return has_scene_name(source) and source.size > WHOLE_BYTES and source.error_type is None


def scene_id(source: Source) -> str:
    """Return the image_id of a file."""
    return image_id(source.uri, None, 0, source.version)
