"""Read an output of `panoptic`: segment ids of pixels, the table of segments, the ledger.

A pixel holds the id of its segment, 0 where it belongs to none (void): in a PNG as COCO-panoptic has it,
id = R + 256 G + 256^2 B (https://cocodataset.org/#format-data), in a GeoTIFF of a scene as uint32.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from segray.errors import ErrorType, ItemError, SettingsError
from segray.output.io import files_below
from segray.schema import BOX
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings

FOLDER, SEGMENTS, COCO_FILE = "panoptic", "segments", "panoptic.json"
VOID_ID = 0
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
