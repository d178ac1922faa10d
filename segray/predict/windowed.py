"""Probabilities of an image in overlapping windows, in memory, blended into one map.

For the sliding window, for what follows the network (`refine`), and for `--blur` of large images: windows
that wait in the output until their item is complete, as those of scenes do, would put pixels there that
nobody has blurred yet. Windows are compressed, the map is made block by block.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from segray.bulk.batches import Image
from segray.errors import ItemError
from segray.predict.blend import Pieces, Read, blended, blended_labels, labels_of
from segray.predict.maps import TOGETHER
from segray.predict.windows import PackedWindow, packed_window
from segray.scenes.scene import Scene
from segray.tile_overlap import Grid

Predict = Callable[[Mapping[int, Image]], Iterator[tuple[int, NDArray[np.uint16] | ItemError]]]
"""Windows by number -> number and probabilities (classes, h, w) uint16, or why there are none."""
Network = Callable[[Sequence[Image]], Sequence[NDArray[np.uint16]]]
"""Images of one shape -> probabilities (classes, h, w) uint16 of each."""


def slid(image: Image, side: int, network: Network, classes: int, together: int) -> NDArray[np.uint16]:
    """Return probabilities (classes, h, w) of an image in windows of `side` pixels that overlap by half.

    together: windows given to the network at a time.
    """
    grid = Grid(image.shape[0], image.shape[1], side, side // 2)
    if len(grid) == 1:
        return network([image])[0]

    def found() -> Iterator[tuple[int, NDArray[np.uint16]]]:
        for first in range(0, len(grid), together):
            numbers = range(first, min(first + together, len(grid)))
            yield from zip(numbers, network([_cut(image, grid, each) for each in numbers]), strict=True)

    return assembled(grid, found(), classes)


def labels_by_windows(
    image: Image, scene: Scene, predict: Predict, classes: int, together: int, probabilities: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """Return labels (h, w) of an image (h, w, 3), and probabilities (classes, h, w) if wanted.

    together: windows predicted at a time. Raises ItemError where one has no result.
    """

    def each_window() -> Iterator[tuple[int, NDArray[np.uint16]]]:
        numbers = range(len(scene.grid))
        for first in numbers[::together]:
            some = {each: _cut(image, scene.grid, each) for each in numbers[first : first + together]}
            for number, found in predict(some):
                if isinstance(found, ItemError):
                    raise found
                yield number, found

    labels = np.empty(image.shape[:2], np.uint8)
    if not probabilities:
        read = _kept(scene.grid, each_window(), labels=True)
        for block, found in blended_labels(scene.grid, read, classes, TOGETHER):
            labels[block.row_start : block.row_stop, block.col_start : block.col_stop] = found
        return labels, None
    shares = assembled(scene.grid, each_window(), classes)
    return labels_of(shares), shares


def assembled(
    grid: Grid, windows: Iterable[tuple[int, NDArray[np.uint16]]], classes: int
) -> NDArray[np.uint16]:
    """Return the probabilities (classes, h, w) of all windows of a grid, by number, blended."""
    whole = np.empty((classes, grid.height, grid.width), np.uint16)
    for block, values in blended(grid, _kept(grid, windows, labels=False), classes, TOGETHER):
        whole[:, block.row_start : block.row_stop, block.col_start : block.col_stop] = values
    return whole


def _kept(grid: Grid, windows: Iterable[tuple[int, NDArray[np.uint16]]], *, labels: bool) -> Read:
    """Compress all windows; return what reads them. labels: enough where windows do not overlap."""
    pieces, packed = Pieces(grid, TOGETHER), dict[int, PackedWindow]()
    for number, found in windows:
        window, parts = grid.window(number), pieces.of_window(number)
        packed[number] = PackedWindow(packed_window(found, None, window, parts, labels=labels), window, parts)
    return lambda number, area: packed[number].part(area)


def _cut(image: Image, grid: Grid, number: int) -> Image:
    window = grid.window(number)
    return image[window.row_start : window.row_stop, window.col_start : window.col_stop]
