"""Turn the outcome of each row into the ANNOTATED table, for all bulk tasks."""

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from segray.errors import ErrorType, ItemError
from segray.schema import ANNOTATED, QUALITY


class Result(Protocol):
    """The model's result for a row."""

    @property
    def instances(self) -> int:
        """Number of instances found."""

    @property
    def empty_masks(self) -> int:
        """Number of masks that were dropped because no pixel was left."""


Outcome = Result | ItemError | None
"""The outcome of a row: a result, a rejection, or None for a control row, or a tile without data."""


_OF_MERGED = ("tiles", "tiles_rejected", "tiles_skipped", "tile_rows")
"""Columns of an item that was merged from its tiles, null before that."""


def results_table(decoded: pa.Table, outcomes: Sequence[Outcome], found: pa.Array | None = None) -> pa.Table:
    """Turn DECODED and the outcome of each row into ANNOTATED, one row for each row, in order.

    Rows that came with an error stay rejected with it. Control rows (null `image_id`) keep their values, and
    all other columns are null or empty. `found`: the column of that name; None: empty lists.
    """
    final = [
        outcome or _earlier_error(*error)
        for outcome, *error in zip(
            outcomes, decoded["error_type"].to_pylist(), decoded["error"].to_pylist(), strict=True
        )
    ]
    columns: dict[str, Any] = {
        "status": [
            _status(outcome) if outcome else "skipped" if tile is not None else None
            for outcome, tile in zip(final, decoded["tile"].to_pylist(), strict=True)
        ],
        "instances": [outcome and getattr(outcome, "instances", 0) for outcome in final],
        "error_type": [getattr(outcome, "error_type", None) for outcome in final],
        "error": [getattr(outcome, "reason", None) for outcome in final],
        "empty_masks": [outcome and getattr(outcome, "empty_masks", 0) for outcome in final],
        "blurred": pa.array([getattr(outcome, "blurred", None) for outcome in final], pa.int32()),
        "vanished": [None if outcome is None else False for outcome in final],
        "crs": pa.nulls(decoded.num_rows, pa.string()),
        **{field.name: _of_results(decoded[field.name], final, field) for field in QUALITY},
        "found": pa.array([[]] * decoded.num_rows, ANNOTATED.field("found").type) if found is None else found,
        **{name: pa.nulls(decoded.num_rows, ANNOTATED.field(name).type) for name in _OF_MERGED},
    }
    arrays = [columns[name] if name in columns else decoded[name] for name in ANNOTATED.names]
    return pa.table(arrays, schema=ANNOTATED)


def rejected_rows(decoded: pa.Table, error_type: ErrorType, reason: str) -> pa.Table:
    """Turn DECODED into ANNOTATED with every image rejected for one reason; other rows pass through."""
    error = ItemError(error_type, reason)
    return results_table(
        decoded, [error if valid else None for valid in pc.is_valid(decoded["pixels"]).to_pylist()]
    )


def _of_results(column: pa.ChunkedArray, outcomes: Sequence[Outcome], field: pa.Field) -> pa.Array:
    """Return the column with null where an image was rejected."""
    values = column.to_pylist()
    return pa.array(
        [
            None if isinstance(outcome, ItemError) else value
            for value, outcome in zip(values, outcomes, strict=True)
        ],
        field.type,
    )


def _earlier_error(error_type: ErrorType | None, reason: str | None) -> ItemError | None:
    return None if error_type is None else ItemError(error_type, reason or "")


def _status(outcome: Result | ItemError) -> str:
    return "rejected" if isinstance(outcome, ItemError) else "annotated"
