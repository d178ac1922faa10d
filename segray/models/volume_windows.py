"""A whole volume through a network for patches: MONAI's sliding window, with a Gaussian weight."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

OVERLAP = 0.5
"""Share of a patch that neighbouring windows have in common, as in nnU-Net."""


def by_windows(network: Callable[[Tensor], Tensor], voxels: Tensor, patch: Sequence[int]) -> Tensor:
    """Return logits (n, outputs, d, h, w) of normalised voxels (n, 1, d, h, w) of any size.

    A side that is shorter than the patch is filled with 0, the mean, on both ends.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI's imports
        from monai.inferers.utils import sliding_window_inference

    found: Any = sliding_window_inference(voxels, patch, 1, network, overlap=OVERLAP, mode="gaussian")
    logits: Tensor = found
    return logits
