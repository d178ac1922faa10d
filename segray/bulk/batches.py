"""Split the images of one table into batches of one shape that fit into memory. No Ray."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segray.arrow_rows import byte_views
from segray.errors import ItemError
from segray.models.device import is_out_of_memory

Image = NDArray[np.uint8]
"""(height, width, 3) uint8."""
T = TypeVar("T")


class Batches:
    """Batches images by their shape inside the network, so that results do not depend on the other
    images of the table, but for the last bits of the arithmetic."""

    def __init__(self, size: int, key: Callable[[int, int], Hashable]) -> None:
        """Store the arguments; size: maximum images per batch. key: of height and width, one per batch."""
        self.size = size
        self._key = key

    def run(
        self, pictures: Mapping[int, Image], predict: Callable[[Sequence[Image]], Sequence[T | ItemError]]
    ) -> Iterator[tuple[int, T | ItemError]]:
        """Yield (row number, result of `predict` for its image (height, width, 3) uint8), batch by batch.

        Out of memory halves the batches, permanently; a single image that does not fit is rejected.
        """
        for rows in self._rows(pictures):
            yield from zip(rows, self._tried([pictures[row] for row in rows], predict), strict=True)

    def _rows(self, pictures: Mapping[int, Image]) -> Iterator[list[int]]:
        groups: dict[Hashable, list[int]] = {}
        for row, picture in pictures.items():
            groups.setdefault(self._key(*picture.shape[:2]), []).append(row)
        for rows in groups.values():
            while rows:
                size = self.size  # it may have been halved
                yield rows[:size]
                rows = rows[size:]

    def _tried(
        self, images: Sequence[Image], predict: Callable[[Sequence[Image]], Sequence[T | ItemError]]
    ) -> Sequence[T | ItemError]:
        try:
            return predict(images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        if torch.cuda.is_available():  # after the except: it kept the failed batch's tensors alive
            torch.cuda.empty_cache()
        if len(images) == 1:
            return [ItemError("memory", f"no room for the model's work on this image: {reason}")]
        half = len(images) // 2
        self.size = min(self.size, half)
        return [*self._tried(images[:half], predict), *self._tried(images[half:], predict)]


def images_of(table: pa.Table) -> dict[int, Image]:
    """Return images (height, width, 3) uint8 by row number, views into the table; some rows have none."""
    columns = byte_views(table["pixels"]), table["height"].to_pylist(), table["width"].to_pylist()
    return {
        row: pixels.reshape(height, width, 3)
        for row, (pixels, height, width) in enumerate(zip(*columns, strict=True))
        if pixels is not None
    }
