"""The model step of `predict`: DECODED -> ANNOTATED; the worker itself writes the maps.

A map's name is its item's id, and its contents follow from model and item: written twice, it is the same. The
ledger's row comes after it, so each item in the ledger has its map.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segray.bulk.batches import Batches, Image, images_of
from segray.bulk.results import Outcome, results_table
from segray.errors import ItemError
from segray.models.device import Precision
from segray.models.weights import LoadedModel
from segray.output.folder import Output
from segray.predict.blend import Pieces, labels_of
from segray.predict.blur import copy_name, encoded_copy, hidden
from segray.predict.cleanup import CleanUp
from segray.predict.maps import TOGETHER, as_bytes, plain_tiff, png
from segray.predict.network import Network
from segray.predict.refine import Refinement
from segray.predict.settings import PredictSettings
from segray.predict.windowed import labels_by_windows, slid
from segray.predict.windows import packed_window, window_name
from segray.scenes.nodata import nodata_mask
from segray.scenes.scene import Scene, scene_from

WRITERS = 16
"""Objects that are written at a time: a request to a bucket takes 50 to 100 ms."""


_NOT_BLURRED = ItemError("unsupported", "--blur copies images, not scenes: predict it without --blur")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row whose map is written."""

    instances: int = 0
    empty_masks: int = 0
    blurred: int | None = None
    """Regions that are hidden in the copy of the image; None without `--blur`."""


@dataclass(frozen=True, slots=True)
class _Border:
    """Mirrored pixels around a window at the border of its scene."""

    above: int
    below: int
    left: int
    right: int

    def around(self, image: Image) -> Image:
        return np.pad(image, ((self.above, self.below), (self.left, self.right), (0, 0)), mode="reflect")

    def cut(self, maps: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Return (classes, h, w) without the border."""
        rows, cols = maps.shape[1:]
        return maps[:, self.above : rows - self.below, self.left : cols - self.right]


class MapPredictor:
    """One model on one device."""

    def __init__(
        self,
        model: LoadedModel,
        settings: PredictSettings,
        device: str,
        precision: Precision,
        batch_size: int,
        threads: int | None,
        store: Output,
    ) -> None:
        """Load the model; device and precision: resolved. threads: of torch on a CPU; None: unchanged."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.settings = model, settings
        self.network = Network(model, device, precision, settings.tta)
        self._refinement = Refinement(settings, self.network.device)
        self._clean_up = CleanUp(settings.smallest_area, settings.close_holes, model.classes)
        self._pictures = Batches(batch_size, lambda height, width: (height, width))
        self._tiles = Batches(batch_size, lambda height, width: (height, width))
        self._store = store
        self._threads = ThreadPoolExecutor(WRITERS)

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED, in the order of the rows, once all maps are written.

        Raises JobFailedError where the output cannot be written, and whatever the model raises.
        """
        images = images_of(table)
        tiles = table["tile"].to_pylist()
        outcomes: list[Outcome] = [None] * table.num_rows
        writing: list[Future[None]] = []
        whole = {row: image for row, image in images.items() if tiles[row] is None}
        for row, maps in self._maps_of(whole):
            outcomes[row] = maps if isinstance(maps, ItemError) else Labelled()
            if not isinstance(maps, ItemError):
                image_id = table["image_id"][row].as_py()
                writing.append(self._threads.submit(self._write_picture, image_id, *maps))
                if self.settings.blur:
                    regions, name, copy = self._copy(table, row, whole[row], maps[0])
                    outcomes[row] = Labelled(blurred=regions)
                    writing.append(self._threads.submit(self._store.put, name, copy))
        windows = {row: image for row, image in images.items() if tiles[row] is not None}
        if self.settings.blur:
            outcomes = [_NOT_BLURRED if row in windows else each for row, each in enumerate(outcomes)]
            windows = {}
        borders = {row: self._border(table, row) for row in windows}
        bordered = {row: borders[row].around(image) for row, image in windows.items()}
        for row, found in self._tiles.run(bordered, self._probabilities):
            nodata = _nodata(table, row)
            refined = self._refined(windows[row], borders[row], found, nodata)
            outcomes[row] = refined if isinstance(refined, ItemError) else Labelled()
            if not isinstance(refined, ItemError):
                writing.append(self._threads.submit(self._write_window, table, row, refined, nodata))
        for each in writing:
            each.result()
        return results_table(table, outcomes)

    def _maps_of(
        self, images: Mapping[int, Image]
    ) -> Iterator[tuple[int, tuple[NDArray[np.uint8], NDArray[np.uint16] | None] | ItemError]]:
        """Yield row and maps of whole images; with `--blur` large ones are among them."""
        large = [row for row, image in images.items() if self._is_large(image)]
        yield from self._pictures.run({row: images[row] for row in images if row not in large}, self._maps)
        for row in large:
            try:
                yield row, self._maps_by_windows(images[row])
            except ItemError as error:
                yield row, error

    def _is_large(self, image: Image) -> bool:
        pixels = image.shape[0] * image.shape[1]
        return bool(self.settings.blur) and not self.network.resized_to and pixels > self.settings.tile_above

    def _maps_by_windows(self, image: Image) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        """Return the maps of a large image. Raises ItemError where a window has no result."""
        height, width = image.shape[:2]
        scene = Scene(height, width, self.settings.tile, self.settings.overlap)

        def predict(windows: Mapping[int, Image]) -> Iterator[tuple[int, NDArray[np.uint16] | ItemError]]:
            borders = {number: border_of(scene, number) for number in windows}
            bordered = {number: borders[number].around(window) for number, window in windows.items()}
            for number, found in self._tiles.run(bordered, self._probabilities):
                yield number, self._refined(windows[number], borders[number], found)

        classes, wanted = len(self.model.classes), self.settings.probabilities
        labels, shares = labels_by_windows(image, scene, predict, classes, self._tiles.size, wanted)
        return self._clean_up.array(labels), shares

    def _refined(
        self,
        image: Image,
        border: _Border,
        found: NDArray[np.uint16] | ItemError,
        nodata: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint16] | ItemError:
        """Return what the network found in a window with its border: without it, and refined."""
        if isinstance(found, ItemError):
            return found
        cut = border.cut(found)
        if not self._refinement:
            return cut
        try:
            return self._refinement.window(image, cut, nodata)
        except ItemError as error:
            return error

    def _copy(
        self, table: pa.Table, row: int, image: Image, labels: NDArray[np.uint8]
    ) -> tuple[int, str, bytes]:
        """Return the number of regions hidden in the copy of an image, its name and its bytes."""
        numbers = [self.model.classes.index(name) for name in self.settings.blur]
        pixels, regions = hidden(image, np.isin(labels, numbers), self.settings.blur_margin)
        address = table["member"][row].as_py() or table["uri"][row].as_py()
        name = copy_name(table["image_id"][row].as_py(), address, *image.shape[:2])
        return regions, name, encoded_copy(pixels, name)

    def _maps(self, images: Sequence[Image]) -> list[tuple[NDArray[np.uint8], NDArray[np.uint16] | None]]:
        """Return labels (h, w), and probabilities (classes, h, w) where requested."""
        found: list[tuple[NDArray[np.uint8], NDArray[np.uint16] | None]]
        if self._refinement or self.settings.sliding_window:
            refine = self._refinement.image
            pairs = zip(images, self._probabilities(images), strict=True)
            shares = [refine(image, each) if self._refinement else each for image, each in pairs]
            found = [(labels_of(each), each) for each in shares]
        elif self.settings.probabilities:
            found = list(zip(*self.network.labels_and_probabilities(images), strict=True))
        else:
            found = [(labels, None) for labels in self.network.labels(images)]
        wanted = self.settings.probabilities
        return [(self._clean_up.array(labels), shares if wanted else None) for labels, shares in found]

    def _probabilities(self, images: Sequence[Image]) -> list[NDArray[np.uint16]]:
        """Return probabilities (classes, h, w), of the sliding window where it is set."""
        classes, together, side = len(self.model.classes), self._pictures.size, self.settings.sliding_window
        if side:
            return [slid(image, side, self._network, classes, together) for image in images]
        return self._network(images)

    def _network(self, images: Sequence[Image]) -> list[NDArray[np.uint16]]:
        return list(self.network.labels_and_probabilities(images)[1])

    def _border(self, table: pa.Table, row: int) -> _Border:
        scene, tile = scene_from(table["scene"][row].as_py()), table["tile"][row].as_py()
        return border_of(scene, tile)

    def _write_picture(
        self, image_id: str, labels: NDArray[np.uint8], probabilities: NDArray[np.uint16] | None
    ) -> None:
        if probabilities is not None:
            data = plain_tiff(as_bytes(probabilities), self.model.classes)
            self._store.put(f"probabilities/{image_id}.tif", data)
        self._store.put(f"labels/{image_id}.png", png(labels, len(self.model.classes)))

    def _write_window(
        self, table: pa.Table, row: int, found: NDArray[np.uint16], nodata: NDArray[np.bool_] | None
    ) -> None:
        image_id, tile = table["image_id"][row].as_py(), table["tile"][row].as_py()
        grid = scene_from(table["scene"][row].as_py()).grid
        pieces, labels = Pieces(grid, TOGETHER).of_window(tile), not self.settings.probabilities
        packed = packed_window(found, nodata, grid.window(tile), pieces, labels=labels)
        self._store.put(window_name(image_id, tile, self._store.generation), packed)


def _nodata(table: pa.Table, row: int) -> NDArray[np.bool_] | None:
    """Return where a tile has no data (h, w)."""
    packed = table["nodata"][row].as_py()
    shape = table["height"][row].as_py(), table["width"][row].as_py()
    return None if packed is None else nodata_mask(packed, *shape)


def border_of(scene: Scene, tile: int) -> _Border:
    """Return half the overlap, where the window ends with its scene and is large enough."""
    window = scene.grid.window(tile)
    rows, cols = (max(0, min(scene.overlap // 2, side - 1)) for side in (window.height, window.width))
    return _Border(
        rows * (window.row_start == 0),
        rows * (window.row_stop == scene.height),
        cols * (window.col_start == 0),
        cols * (window.col_stop == scene.width),
    )
