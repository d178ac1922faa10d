"""One scene through reading, model and joining in this process: the job without Ray and storage."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.annotate.merge_instances import merged_item
from segray.annotate.predictor import Predictor
from segray.models.weights import load_weights
from segray.scenes.scene import Tiling
from segray.sources.decode_step import Decoder
from segray.sources.listing import Listing
from segray.sources.read_step import read_files
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings

STORAGE = StorageSettings()
ORACLE = "python:tests.scenes.oracle:"


def tiles(path: Path, tiling: Tiling, sandbox: DecodeSandbox, max_pixels: int = 10**8) -> Iterator[pa.Table]:
    """DECODED, tile by tile."""
    fetched = read_files(list(Listing([str(path)], STORAGE)), {}, STORAGE, sandbox, tiling, 1 << 30)
    decoder = Decoder(sandbox, max_pixels, tiling, STORAGE)
    for table in fetched:
        yield from decoder.tables(table)


def answered(path: Path, tiling: Tiling, sandbox: DecodeSandbox, model: str) -> pa.Table:
    """ANNOTATED, a row a tile."""
    predictor = Predictor(
        load_weights(ORACLE + model, STORAGE),
        device="cpu",
        precision="fp32",
        score_threshold=0.5,
        batch_size=1,
    )
    return pa.concat_tables([predictor.predict(table) for table in tiles(path, tiling, sandbox)])


def annotated(
    path: Path, tiling: Tiling, sandbox: DecodeSandbox, model: str, crs: str = "OGC:CRS84"
) -> dict[str, Any]:
    """The item's row."""
    (row,) = merged_item(answered(path, tiling, sandbox, model), crs).to_pylist()
    return dict(row)


def encoded(masks: Sequence[NDArray[np.bool_]]) -> list[Any]:
    """COCO's run lengths of whole masks."""
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def ious(row: dict[str, Any], truth: Sequence[Any]) -> NDArray[np.float64]:
    """(instances, truths): of each instance with each of the encoded masks."""
    found = [each["segmentation"] for each in row["found"]]
    return np.asarray(coco.iou(found, list(truth), [0] * len(truth)), np.float64)
