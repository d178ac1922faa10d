"""Samples between processes: named arrays of an image as a row of a table, and back. No torch here.

A task's transform defines the arrays; loaders make them, the training process collates them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
_ARRAY = pa.struct(
    [
        ("name", pa.string()),
        ("type", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("data", pa.large_binary()),
    ]
)
SAMPLES = pa.schema(
    [("name", pa.string()), ("arrays", pa.list_(_ARRAY)), ("error_type", pa.string()), ("error", pa.string())]
)
"""A table of samples is a batch; `error`s are null, except in a table of one row, an error for the batch."""


class Transform(Protocol):
    """How a task turns an image into the model's input; pickled into the processes that load."""

    def training(self, example: Any, epoch: int, item: str) -> Arrays:
        """Return the arrays to train on: a function of seed, epoch and item."""

    def scoring(self, example: Any) -> Arrays:
        """Return the arrays to score, without augmentation."""

    def collate(self, samples: list[tuple[str, Arrays]]) -> Any:
        """Return the batch of named samples, with `names`; of none, one that all workers can step with."""


def sample_row(name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a row of schema SAMPLES."""
    kept = [
        {"name": key, "type": array.dtype.str, "shape": array.shape, "data": array.tobytes()}
        for key, array in arrays.items()
    ]
    return {"name": name, "arrays": kept}


def samples_in(table: pa.Table) -> list[tuple[str, Arrays]]:
    """Return (name, arrays) of rows of schema SAMPLES; the arrays are read-only views of the table."""
    rows = zip(table["name"].to_pylist(), table["arrays"], strict=True)
    return [(name, {each["name"].as_py(): _array(each) for each in arrays}) for name, arrays in rows]


def _array(kept: pa.StructScalar) -> NDArray[Any]:
    shape, data = kept["shape"].as_py(), kept["data"].as_buffer()
    return np.frombuffer(data or b"", kept["type"].as_py()).reshape(shape)
