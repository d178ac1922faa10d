"""One image, in a thread of its own: read its map, fuse, write its segment ids; its rows come back."""

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import ErrorType, ItemError
from segray.masks.spans import counts_of, spans_of
from segray.output.folder import Output
from segray.output.panoptic import FOLDER, MOST_SEGMENTS, VOID_ID, png_of
from segray.panoptic.classes import Classes
from segray.panoptic.fusion import Fusion, Labels, Segment, Thing
from segray.panoptic.settings import PanopticSettings
from segray.panoptic.table import Row, Work
from segray.retries import error_type, retrying
from segray.sources.concurrent_requests import describe
from segray.storage import open_filesystem
from segray.tile_overlap import Window, blocks

SIDE = 2048
"""Side of the windows of a scene, pixels: with ids, map and booleans about 50 MB."""
_LARGE = 16_000_000
"""Pixels above which an image is fused alone, for the sake of memory."""
_ONE_DECODER = threading.Lock()
_ONE_LARGE = threading.Lock()


@dataclass(frozen=True, slots=True)
class Fused:
    """The rows of one image."""

    image: dict[str, Any]
    segments: list[dict[str, Any]] = field(default_factory=list)


def fused(work: Work, settings: PanopticSettings, classes: Classes, store: Output) -> Fused:
    """Fuse one image and write its file; a fault of its data rejects it.

    Raises JobFailedError where the output cannot be written.
    """
    try:
        if work.rejected is not None:
            raise ItemError(*work.rejected)
        if _pixels(work) <= _LARGE or work.is_scene:
            return _fused(work, settings, classes, store)
        with _ONE_LARGE:
            return _fused(work, settings, classes, store)
    except ItemError as error:
        return _rejected(work, error.error_type, error.reason)
    except MemoryError:
        return _rejected(work, "memory", "fusing it needs more memory than there is")


def _pixels(work: Work) -> int:
    return (work.height or 0) * (work.width or 0)


def _fused(work: Work, settings: PanopticSettings, classes: Classes, store: Output) -> Fused:
    things = [_thing(row, work) for row in work.rows]
    if len(things) > MOST_SEGMENTS - len(classes.stuff):
        raise ItemError("too_large", f"{len(things):,} instances; ids of three bytes hold {MOST_SEGMENTS:,}")
    name = f"{FOLDER}/{work.image_id}{'.tif' if work.is_scene else '.png'}"
    rules = classes, settings.min_visible, settings.min_stuff_area
    if work.is_scene:
        with _scene(work, settings) as (data, folder):
            fusion = Fusion(things, lambda window: _read(data, window), _windows(work), *rules)
            from segray.panoptic.cog import write_cog

            void = write_cog(fusion, data, folder, lambda path: store.put_file(name, path))
    else:
        whole = _label_image(work, settings)
        windows = [Window(0, whole.shape[0], 0, whole.shape[1])]
        fusion = Fusion(things, lambda _: whole, windows, *rules)
        ((_, ids),) = fusion.ids()
        store.put(name, png_of(ids))
        void = int(np.count_nonzero(ids == VOID_ID))
    return _rows(work, fusion, name, void)


def _thing(row: Row, work: Work) -> Thing:
    """Return an instance with its mask decoded. Raises ItemError where that is broken."""
    what = f"the mask of {row.instance_id or 'an instance'}"
    if (row.height, row.width) != (work.height, work.width):
        raise ItemError("unsupported", f"{what} is of {row.width} x {row.height} pixels, not of its image's")
    try:
        (counts,) = counts_of([row.counts])
    except (UnicodeEncodeError, IndexError) as error:
        raise ItemError("corrupt", f"{what} is no run lengths") from error
    if (counts < 0).any() or counts.sum() != row.height * row.width:
        raise ItemError("corrupt", f"{what} is broken")
    mask = spans_of(counts, row.height)
    return Thing(row.instance_id, row.category_id, row.category, row.score, row.iscrowd, mask)


def _label_image(work: Work, settings: PanopticSettings) -> Labels:
    """Return the map of an image, uint8 (h, w). Raises ItemError."""
    filesystem, path = open_filesystem(_address(work, settings, ".png"), settings.storage)
    try:
        data = retrying(lambda: bytes(filesystem.cat_file(path)), settings.storage)
    except Exception as error:  # each library has its own types
        raise ItemError(error_type(error), f"map: {describe(error)}") from error
    from segray.sources.label_image import read_stored

    with _ONE_DECODER:  # Pillow's limits are global to the process
        values = read_stored(data, max(1, _pixels(work))).values
    if values.shape != (work.height, work.width):
        shown = " x ".join(map(str, values.shape[::-1]))
        raise ItemError("unsupported", f"map: {shown} pixels, its image {work.width} x {work.height}")
    if values.dtype != np.uint8:
        raise ItemError("unsupported", "map: more than 8 bits a pixel")
    return values


def _address(work: Work, settings: PanopticSettings, suffix: str) -> str:
    return f"{settings.maps.rstrip('/')}/labels/{work.image_id}{suffix}"


@contextmanager
def _scene(work: Work, settings: PanopticSettings) -> Iterator[tuple[Any, Path]]:
    """Fetch the map of a scene; yield the open raster and a temporary folder. Raises ItemError."""
    import rasterio
    from rasterio.errors import RasterioError

    filesystem, path = open_filesystem(_address(work, settings, ".tif"), settings.storage)
    cache = rasterio.Env(GDAL_CACHEMAX=64 << 20)  # else a twentieth of the memory
    with TemporaryDirectory(prefix="segray-panoptic-") as folder, cache:
        local = Path(folder) / "map.tif"
        try:
            retrying(lambda: filesystem.get_file(path, str(local)), settings.storage)
        except Exception as error:  # each library has its own types
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # of the temporary folder
                raise
            raise ItemError(error_type(error), f"map: {describe(error)}") from error
        try:
            data = rasterio.open(local)
        except RasterioError as error:
            raise ItemError("corrupt", f"map: {describe(error)}") from error
        with data:
            if (data.height, data.width) != (work.height, work.width) or data.dtypes[0] != "uint8":
                shown = f"map: {data.width} x {data.height} pixels of {data.dtypes[0]}"
                raise ItemError("unsupported", f"{shown}, its scene {work.width} x {work.height} of uint8")
            yield data, Path(folder)


def _windows(work: Work) -> Sequence[Window]:
    return list(blocks(Window(0, work.height or 0, 0, work.width or 0), SIDE))


def _read(data: Any, window: Window) -> Labels:
    """Return a window of an open map, uint8 (h, w). Raises ItemError where the file is damaged."""
    from rasterio.errors import RasterioError
    from rasterio.windows import Window as RasterWindow

    try:
        place = RasterWindow(window.col_start, window.row_start, window.width, window.height)
        found: NDArray[np.uint8] = data.read(1, window=place)
    except RasterioError as error:
        raise ItemError("corrupt", f"map: {describe(error)}") from error
    return found


def _rows(work: Work, fusion: Fusion, name: str, void: int) -> Fused:
    things = sum(each.thing is not None for each in fusion.segments)
    image = _image(work) | {
        "status": "annotated",
        "segments": len(fusion.segments),
        "instances": things,
        "dropped": fusion.dropped,
        "small_stuff": fusion.small,
        "void_pixels": void,
        "file": name,
    }
    return Fused(image, [_segment(work.image_id, each) for each in fusion.segments])


def _segment(image_id: str, segment: Segment) -> dict[str, Any]:
    thing = segment.thing
    return {
        "image_id": image_id,
        "segment_id": segment.segment_id,
        "category_id": segment.category_id,
        "category": segment.category,
        "isthing": thing is not None,
        "area": segment.area,
        "bbox": segment.bbox,
        "iscrowd": 0 if thing is None else thing.iscrowd,
        "score": None if thing is None else thing.score,
        "instance_id": None if thing is None else thing.instance_id,
        "visible": segment.visible,
    }


def _rejected(work: Work, kind: ErrorType, reason: str) -> Fused:
    return Fused(_image(work) | {"status": "rejected", "error_type": kind, "error": reason})


def _image(work: Work) -> dict[str, Any]:
    names = ("image_id", "uri", "member", "height", "width", "crs", "split", "group", "inputs")
    return {name: getattr(work, name) for name in names}
