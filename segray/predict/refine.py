"""What follows the network, before a class is chosen: dense CRF, then superpixels, window by window.

Both look at the image's own pixels, in windows of `tile` pixels that share `overlap`, as scenes are processed
in; refined windows are blended as the network's own are (`blend`). So memory is bounded, and a map does not
depend on which worker refined which window; near a seam it is not exactly that of the whole image at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segray.bulk.batches import Image
from segray.errors import ItemError
from segray.predict.crf import mean_field
from segray.predict.network import ONE
from segray.predict.settings import PredictSettings
from segray.predict.superpixels import averaged, superpixels
from segray.predict.windowed import assembled
from segray.tile_overlap import Grid, Window

Shares = NDArray[np.uint16]
"""Probabilities (classes, h, w), `ONE` is 1."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Refinement:
    """The steps that the settings ask for."""

    settings: PredictSettings
    device: torch.device
    """Where the CRF is computed."""

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(self.settings.crf.iterations or self.settings.superpixels)

    def image(self, pixels: Image, shares: Shares) -> Shares:
        """Return the refined probabilities of an image of any size. Raises ItemError."""
        grid = Grid(pixels.shape[0], pixels.shape[1], self.settings.tile, self.settings.overlap)
        if len(grid) == 1:
            return self.window(pixels, shares)

        def refined() -> Iterator[tuple[int, Shares]]:
            for number in range(len(grid)):
                part = _part(grid.window(number))
                yield number, self.window(pixels[part], shares[:, *part])

        return assembled(grid, refined(), len(shares))

    def window(self, pixels: Image, shares: Shares, nodata: Mask | None = None) -> Shares:
        """Return the refined probabilities of one window; of pixels without data they stay.

        Raises ItemError for settings of the CRF that do not fit the window.
        """
        valid = None if nodata is None else ~nodata
        if valid is not None and not valid.any():
            return shares
        found: NDArray[np.float32] = shares.astype(np.float32) / np.float32(ONE)
        if self.settings.crf.iterations:
            found = self._crf(pixels, found, valid)
        if self.settings.superpixels:
            regions = superpixels(pixels, self.settings.superpixels, self.settings.compactness)
            found = averaged(found, regions, valid)
        fine = np.rint(found * ONE).astype(np.uint16)
        return fine if valid is None else np.where(valid, fine, shares)

    def _crf(self, pixels: Image, shares: NDArray[np.float32], valid: Mask | None) -> NDArray[np.float32]:
        """Return probabilities (classes, h, w) after mean field among the valid pixels."""
        height, width = shares.shape[1:]
        rows, cols = np.nonzero(np.ones((height, width), bool) if valid is None else valid)
        positions = np.stack([cols, rows], 1).astype(np.float32)  # in the order of the authors' code
        colours = pixels[rows, cols].astype(np.float32)
        try:
            given = [self._on_device(each) for each in (shares[:, rows, cols].T, colours, positions)]
            found = mean_field(given[0], given[1], given[2], self.settings.crf)
        except ValueError as error:
            raise ItemError("unsupported", f"crf: {error}") from error
        refined = shares.copy()
        refined[:, rows, cols] = found.T.cpu().numpy()
        return refined

    def _on_device(self, values: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _part(window: Window) -> tuple[slice, slice]:
    return slice(window.row_start, window.row_stop), slice(window.col_start, window.col_stop)
