"""Probabilities of an image that is too large for one call of the network, in memory: its windows, blended.

For `--blur`: windows that wait in the output until their item is complete, as those of scenes do, would put
pixels there that nobody has blurred yet. Windows are compressed, the map is made block by block.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from segray.bulk.batches import Image
from segray.errors import ItemError
from segray.palette import VOID
from segray.predict.blend import blended
from segray.predict.maps import TOGETHER
from segray.predict.windows import packed_window, unpacked_window
from segray.scenes.scene import Scene

Predict = Callable[[Mapping[int, Image]], Iterator[tuple[int, NDArray[np.uint16] | ItemError]]]
"""Windows by number -> number and probabilities (classes, h, w) uint16, or why there are none."""


def labels_by_windows(
    image: Image, scene: Scene, predict: Predict, classes: int, together: int, probabilities: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """Return labels (h, w) of an image (h, w, 3), and probabilities (classes, h, w) if wanted.

    together: windows predicted at a time. Raises ItemError where one has no result.
    """
    packed = dict[int, bytes]()
    numbers = range(len(scene.grid))
    for first in numbers[::together]:
        some = {number: _cut(image, scene, number) for number in numbers[first : first + together]}
        for number, found in predict(some):
            if isinstance(found, ItemError):
                raise found
            packed[number] = packed_window(found, None)
    labels = np.empty(image.shape[:2], np.uint8)
    kept = np.empty((classes, *image.shape[:2]), np.uint16) if probabilities else None
    blocks = blended(scene.grid, lambda number: unpacked_window(packed[number]), classes, TOGETHER)
    for block, values in blocks:
        part = np.s_[block.row_start : block.row_stop, block.col_start : block.col_stop]
        labels[part] = np.where(values.any(0), values.argmax(0), VOID)
        if kept is not None:
            kept[:, *part] = values
    return labels, kept


def _cut(image: Image, scene: Scene, number: int) -> Image:
    window = scene.grid.window(number)
    return image[window.row_start : window.row_stop, window.col_start : window.col_stop]
