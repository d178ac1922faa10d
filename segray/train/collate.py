"""Samples between processes: named arrays of an image as a row of a table, and back. No torch here.

What the arrays are says the transform of a task; loaders make them, the process that trains collates them.
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
"""A table of samples is a batch; `error`s are null but in a table of one row, which stands for the batch."""


class Transform(Protocol):
    """What an image of a task becomes on its way to the model; pickled into the processes that load."""

    def training(self, example: Any, epoch: int, item: str) -> Arrays:
        """Return what is learned from: a function of seed, epoch and item."""

    def scoring(self, example: Any) -> Arrays:
        """Return what is scored; nothing is drawn."""

    def collate(self, samples: list[tuple[str, Arrays]]) -> Any:
        """Return the batch of named samples, with `names`; of none, one that all workers can step with."""


def sample_row(name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a row of SAMPLES."""
    kept = [
        {"name": key, "type": array.dtype.str, "shape": array.shape, "data": array.tobytes()}
        for key, array in arrays.items()
    ]
    return {"name": name, "arrays": kept}


def samples_in(table: pa.Table) -> list[tuple[str, Arrays]]:
    """Return what rows of SAMPLES hold; the arrays are views of the table, not to be written."""
    rows = zip(table["name"].to_pylist(), table["arrays"], strict=True)
    return [(name, {each["name"].as_py(): _array(each) for each in arrays}) for name, arrays in rows]


def _array(kept: pa.StructScalar) -> NDArray[Any]:
    shape, data = kept["shape"].as_py(), kept["data"].as_buffer()
    return np.frombuffer(data or b"", kept["type"].as_py()).reshape(shape)
