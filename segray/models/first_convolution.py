"""The first convolution of a network that was trained on red, green and blue, for other bands."""

import torch
from torch import Tensor


def for_bands(three: Tensor, bands: int) -> Tensor:
    """Return weights (outputs, bands, h, w) from weights (outputs, 3, h, w).

    The first three bands keep theirs, a further one (near infrared) gets their mean, and all are scaled by
    3 / bands, so that the response keeps its scale; for one band they are summed. Three are unchanged.
    """
    if bands == 1:
        return three.sum(1, keepdim=True)
    mean = three.mean(1, keepdim=True).expand(-1, max(0, bands - 3), -1, -1)
    return torch.cat([three[:, :bands], mean], dim=1) * (3 / bands)
