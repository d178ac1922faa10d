"""Read an output of `panoptic`: segment ids of pixels, the table of segments, the ledger.

A pixel holds the id of its segment, 0 where it belongs to none (void): in a PNG as COCO-panoptic has it,
id = R + 256 G + 256^2 B (https://cocodataset.org/#format-data), in a GeoTIFF of a scene as uint32.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from segray.errors import ErrorType, ItemError, SettingsError
from segray.output.io import files_below
from segray.retries import error_type, retrying
from segray.schema import BOX
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, open_filesystem
from segray.tile_overlap import Window, blocks

T = TypeVar("T")
FOLDER, SEGMENTS, COCO_FILE = "panoptic", "segments", "panoptic.json"
VOID_ID = 0
SIDE = 2048
"""Side of the windows in which a scene is read, pixels."""
MOST_SEGMENTS = 2**24 - 1
"""Largest id in three bytes."""

SEGMENT = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("segment_id", pa.int64()),  # unique in its image
        pa.field("category_id", pa.int32()),
        pa.field("category", pa.dictionary(pa.int32(), pa.string())),
        pa.field("isthing", pa.bool_()),
        pa.field("area", pa.int64()),  # visible pixels
        pa.field("bbox", BOX),  # of the visible pixels
        pa.field("iscrowd", pa.int8()),
        pa.field("score", pa.float32()),  # null for stuff, and where a person drew it
        pa.field("instance_id", pa.string()),  # null for stuff
        pa.field("visible", pa.float32()),  # share of the instance's mask that is left; null for stuff
    ]
)
"""One row a segment, within a file sorted by image and `segment_id`."""


INFO = ("segment_id", "category_id", "area", "bbox", "iscrowd", "score", "instance_id")
"""Columns that `info_of` takes."""


def rgb_of(ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return segment ids (h, w) below 2^24 as colours, uint8 (h, w, 3)."""
    little = np.ascontiguousarray(ids, "<u4").view(np.uint8)
    return np.ascontiguousarray(little.reshape(*ids.shape, 4)[..., :3])


def ids_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the segment ids, uint32 (h, w), of colours (h, w, 3)."""
    red, green, blue = (rgb[..., band].astype(np.uint32) for band in range(3))
    ids: NDArray[np.uint32] = red | green << np.uint32(8) | blue << np.uint32(16)
    return ids


def png_of(ids: NDArray[np.uint32]) -> bytes:
    """Encode segment ids (h, w) as COCO-panoptic PNG."""
    file = io.BytesIO()
    Image.fromarray(rgb_of(ids)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def ids_in(data: bytes) -> NDArray[np.uint32]:
    """Return the segment ids, uint32 (h, w), of a COCO-panoptic PNG.

    Raises ItemError where the bytes are no such picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise ItemError("unsupported", f"mode {image.mode}; a panoptic PNG is RGB")
            return ids_of(np.asarray(image))
    except ItemError:
        raise
    except MemoryError:
        raise ItemError("memory", "decoding it needs more memory than there is") from None
    except Exception as error:  # Pillow's decoders raise any type on broken bytes
        kind: ErrorType = "truncated" if "truncated" in str(error) else "corrupt"
        raise ItemError(kind, f"PNG: {describe(error)}") from error


class PngIds:
    """The segment ids of an image."""

    def __init__(self, data: bytes) -> None:
        """Decode a PNG. Raises ItemError as `ids_in`."""
        self._ids = ids_in(data)
        self.size: tuple[int, int] = self._ids.shape[0], self._ids.shape[1]
        """Height, width in pixels."""
        self.digest = hashlib.sha256(data).digest()

    def windows(self) -> Iterator[Window]:
        """Yield the whole image."""
        yield Window(0, self.size[0], 0, self.size[1])

    def read(self, window: Window) -> NDArray[np.uint32]:
        """Return the ids of a window, uint32 (h, w)."""
        return self._ids[window.row_start : window.row_stop, window.col_start : window.col_stop]


class TiffIds:
    """The segment ids of a scene, read by window."""

    def __init__(self, path: Path) -> None:
        """Open a local GeoTIFF. Raises ItemError where it is none, or not of whole numbers."""
        import rasterio
        from rasterio.errors import RasterioError

        try:
            self._file = rasterio.open(path)
        except RasterioError as error:
            raise ItemError("corrupt", f"GeoTIFF: {describe(error)}") from error
        if self._file.count != 1 or self._file.dtypes[0] != "uint32":
            raise ItemError(
                "unsupported", f"GeoTIFF of {self._file.dtypes[0]}; segment ids are one band of uint32"
            )
        self.size: tuple[int, int] = self._file.height, self._file.width
        """Height, width in pixels."""
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").digest()

    def windows(self) -> Iterator[Window]:
        """Yield windows that cover the scene."""
        return blocks(Window(0, self.size[0], 0, self.size[1]), SIDE)

    def read(self, window: Window) -> NDArray[np.uint32]:
        """Return the ids of a window, uint32 (h, w). Raises ItemError where the file is damaged."""
        from rasterio.errors import RasterioError
        from rasterio.windows import Window as RasterWindow

        place = RasterWindow(window.col_start, window.row_start, window.width, window.height)
        try:
            found: NDArray[np.uint32] = self._file.read(1, window=place)
        except RasterioError as error:
            raise ItemError("corrupt", f"GeoTIFF: {describe(error)}") from error
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def opened_ids(address: str, storage: StorageSettings) -> Iterator[PngIds | TiffIds]:
    """Fetch and open a file of segment ids, by its suffix. Raises ItemError."""
    filesystem, path = open_filesystem(address, storage)
    if not path.lower().endswith((".tif", ".tiff")):
        yield PngIds(_fetched(lambda: bytes(filesystem.cat_file(path)), storage))
        return
    with TemporaryDirectory(prefix="segray-ids-") as folder:
        local = Path(folder) / "ids.tif"
        _fetched(lambda: filesystem.get_file(path, str(local)), storage)
        with closing(TiffIds(local)) as file:
            yield file


def _fetched(call: Callable[[], T], storage: StorageSettings) -> T:
    """Return `call()`, with retries. Raises ItemError where the storage fails."""
    try:
        return retrying(call, storage)
    except Exception as error:  # each library has its own types
        raise ItemError(error_type(error), describe(error)) from error


def segment_files(run: str, storage: StorageSettings) -> list[Source]:
    """Return the Parquet files of segments, by name; none where the folder is no output of `panoptic`."""
    return files_below(f"{run.rstrip('/')}/{SEGMENTS}", (".parquet",), storage)


def ledger_rows(files: Sequence[Source], columns: Sequence[str], storage: StorageSettings) -> Iterator[Any]:
    """Yield the rows of Parquet files as dictionaries, a row group in memory.

    Raises SettingsError for a file that cannot be read or lacks a column.
    """
    for file in files:
        try:
            with open_source(file, storage) as stream:
                parquet = pq.ParquetFile(stream)
                if lost := set(columns) - set(parquet.schema_arrow.names):
                    raise SettingsError(f"{file.uri} has no column {', '.join(sorted(lost))}")
                for group in range(parquet.num_row_groups):
                    yield from parquet.read_row_group(group, columns=list(columns)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise SettingsError(f"{file.uri} cannot be read: {describe(error)}") from error


def info_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a segment of `segments_info`: COCO's fields, then what a thing has beside them."""
    score = row["score"]
    more = {
        "score": None if score is None else float(str(np.float32(score))),
        "segray_instance_id": row["instance_id"],
    }
    return {
        "id": row["segment_id"],
        "category_id": row["category_id"],
        "area": row["area"],
        "bbox": [int(side) for side in row["bbox"]],
        "iscrowd": row["iscrowd"],
        **{name: value for name, value in more.items() if value is not None},
    }
