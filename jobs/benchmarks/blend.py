"""What `predict` adds to its network for the label map of a scene of 100 MP, in CPU time.

The network is a U-Net of width 16 with 8 classes and random weights, windows of 1,024 px that overlap by 128;
it runs on a few windows, and its time is that of all of them in proportion. Blending is all between its
answer and the labels: windows packed as pieces, unpacked, mixed, labelled, without storage and GeoTIFF. The
gate: of a smaller scene the labels are those of one sum over whole windows.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from jobs.benchmarks.pictures import BUNDLED, tiled
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, build_model
from segray.models.weights import LoadedModel
from segray.predict.blend import Pieces, blended_labels, labels_of, ramp
from segray.predict.maps import TOGETHER
from segray.predict.network import Network
from segray.predict.windows import PackedWindow, packed_window
from segray.tile_overlap import OVERLAP, TILE, Grid, Window

CLASSES, WIDTH = 8, 16
DIFFERENT = 4
"""Windows that the network sees; the scene repeats them."""

Found = Sequence[NDArray[np.uint16]]


def figures(options: Options) -> Iterator[Figure]:
    """Blending over network."""
    side, tile, overlap = (700, 256, 32) if options.quick else (10_000, TILE, OVERLAP)
    network = made()
    real = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(BUNDLED.glob("*.png"))]
    pictures = [tiled(real, (tile, tile), seed) for seed in range(DIFFERENT)]
    found = [network.labels_and_probabilities([picture])[1][0] for picture in pictures]

    small = Grid(2 * tile + 90, 3 * tile - 70, tile, overlap)
    check(np.array_equal(by_pieces(small, found), at_once(small, found)), "blend: the labels differ")

    grid = Grid(side, side, tile, overlap)
    arms = [partial(network_s, network, pictures, len(grid)), partial(blend_s, grid, found)]
    slow, fast = take_turns(arms, options.rounds(5))
    fact = f"{len(grid)} windows: network {median(slow):.1f}, blending {median(fast):.1f} s of CPU"
    yield Figure("CPU of blending / of the network, 100 MP, 8 classes", "<= 0.3", ratios(fast, slow), [fact])


def made() -> Network:
    """Random weights."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(CLASSES))
    settings = complete_settings("unet", {"width": WIDTH})
    card = SemanticCard("unet", settings, CLASSES, names, (0.5,) * 3, (0.25,) * 3, TILE, "crop")
    model = LoadedModel(
        "made", "file", build_model(card).eval(), dict(enumerate(names)), None, "", card=card, task="semantic"
    )
    return Network(model, "cpu", "fp32")


def network_s(network: Network, pictures: Sequence[NDArray[np.uint8]], windows: int) -> float:
    """CPU time of probabilities of so many windows."""
    started = time.process_time()
    for picture in pictures:
        network.labels_and_probabilities([picture])
    return (time.process_time() - started) * windows / len(pictures)


def blend_s(grid: Grid, found: Found) -> float:
    """CPU time from the probabilities of all windows to the labels of the scene."""
    started = time.process_time()
    for _ in labels(grid, found):
        pass
    return time.process_time() - started


def labels(grid: Grid, found: Found) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Blocks of the map, as `predict` makes them without a storage."""
    pieces, packed = Pieces(grid, TOGETHER), list[PackedWindow]()
    for number, window in enumerate(grid):
        parts = pieces.of_window(number)
        data = packed_window(found[number % len(found)], None, window, parts, labels=True)
        packed.append(PackedWindow(data, window, parts))
    return blended_labels(grid, lambda number, area: packed[number].part(area), CLASSES, TOGETHER)


def by_pieces(grid: Grid, found: Found) -> NDArray[np.uint8]:
    """The map as `predict` makes it."""
    whole = np.empty((grid.height, grid.width), np.uint8)
    for block, values in labels(grid, found):
        whole[block.row_start : block.row_stop, block.col_start : block.col_stop] = values
    return whole


def at_once(grid: Grid, found: Found) -> NDArray[np.uint8]:
    """The map by one sum over whole windows."""
    total = np.zeros((CLASSES, grid.height, grid.width), np.float32)
    weights = np.zeros((grid.height, grid.width), np.float32)
    for number, window in enumerate(grid):
        down = ramp(window.row_start, window.row_stop, grid.height, grid.overlap)
        across = ramp(window.col_start, window.col_stop, grid.width, grid.overlap)
        place = np.s_[window.row_start : window.row_stop, window.col_start : window.col_stop]
        weight = down[:, None] * across
        weights[place] += weight
        total[:, *place] += weight * found[number % len(found)]
    return labels_of(np.rint(total / weights).astype(np.uint16))
