"""Sizes of images that labels name, from the first bytes of their files, many at once."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from segray.errors import ItemError
from segray.sources.concurrent_requests import as_item_error, request_all
from segray.sources.decode import upright_size, with_image
from segray.sources.item import Source
from segray.sources.read_step import read_all
from segray.storage import StorageSettings, open_filesystem, split_protocol

_HEAD_BYTES = 1 << 18
"""Enough for the headers of most formats, an EXIF thumbnail and an ICC profile included."""
Size = tuple[int, int]


def sizes_of(sources: Sequence[Source], storage: StorageSettings, max_pixels: int) -> list[Size | ItemError]:
    """Return height and width of each image, upright, or why they cannot be read.

    Of a file whose first bytes do not tell, such as a TIFF with its directory at the end, all bytes are read.
    """
    return [
        _size(source, head, storage, max_pixels)
        for source, head in zip(sources, _heads(sources, storage), strict=True)
    ]


def whole_size(source: Source, storage: StorageSettings, max_pixels: int) -> Size | ItemError:
    """Return height and width of an image, upright, by its whole file: a PNG may end with its EXIF."""
    (data,) = read_all([source], storage)
    return data if isinstance(data, ItemError) else _size_in(data, max_pixels)


def _heads(sources: Sequence[Source], storage: StorageSettings) -> Iterator[bytes | Exception]:
    for _, some in groupby(sources, key=lambda source: split_protocol(source.address)[0]):
        opened = [open_filesystem(source.address, storage, is_listed=True) for source in some]
        wanted = [{"path": path, "start": 0, "end": _HEAD_BYTES} for _, path in opened]
        yield from request_all(opened[0][0], "cat_file", wanted, storage)


def _size(
    source: Source, head: bytes | Exception, storage: StorageSettings, max_pixels: int
) -> Size | ItemError:
    if isinstance(head, Exception):
        return as_item_error(head)
    found = _size_in(head, max_pixels)
    if isinstance(found, ItemError) and found.error_type != "too_large" and len(head) == _HEAD_BYTES:
        return whole_size(source, storage, max_pixels)
    return found


def _size_in(data: bytes, max_pixels: int) -> Size | ItemError:
    try:
        width, height = with_image(data, max_pixels, upright_size)
    except ItemError as error:
        return error
    return height, width
