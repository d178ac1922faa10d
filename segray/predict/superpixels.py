"""Superpixels: regions of similar colour, so that label maps follow the edges of the image.

SLIC (R. Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods, 2012) of
scikit-image, extra `superpixels`.
"""

import importlib.util

import numpy as np
from numpy.typing import NDArray

from segray.errors import SettingsError


def check_installed() -> None:
    """Raise SettingsError where scikit-image is missing."""
    if importlib.util.find_spec("skimage") is None:
        raise SettingsError("superpixels needs scikit-image: install the extra `superpixels`")


def superpixels(pixels: NDArray[np.uint8], side: int, compactness: float) -> NDArray[np.int64]:
    """Return the number from 0 of each pixel's superpixel (h, w) int64, of an image (h, w, 3) uint8.

    side: of a superpixel, about, in pixels. compactness: how much more nearness counts than colour.
    """
    from skimage.segmentation import slic

    height, width = pixels.shape[:2]
    number = max(1, round(height * width / side**2))
    found: NDArray[np.int64] = slic(pixels, number, compactness, start_label=0, channel_axis=-1)
    return found


def averaged(
    probabilities: NDArray[np.float32], regions: NDArray[np.int64], valid: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Return probabilities (classes, h, w), each the mean over its superpixel's valid pixels."""
    weights = np.ones(regions.size) if valid is None else valid.ravel().astype(float)
    flat, count = regions.ravel(), int(regions.max()) + 1
    sizes = np.maximum(np.bincount(flat, weights, count), 1)
    means = [np.bincount(flat, weights * each.ravel(), count) / sizes for each in probabilities]
    return np.stack(means).astype(np.float32)[:, regions]
