"""Resize masks without a shift against their image."""

import torch
from torch import Tensor

from segray.data.labels import nearest_pixels


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (..., height, width) of any type at another size, see `nearest_pixels`.

    torch's plain NEAREST is up to half a pixel off, and `functional.resized_crop` uses it for masks whatever
    its arguments are.
    """
    rows, cols = (
        torch.from_numpy(nearest_pixels(*lengths)) for lengths in zip(mask.shape[-2:], size, strict=True)
    )
    return mask.index_select(-2, rows).index_select(-1, cols)
