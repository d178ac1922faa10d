"""The U-Net paper's overlap-tile strategy (its section 2): an oracle for mirrored borders."""

import torch
from torch import Tensor

from segray.models.any_size import mirrored
from segray.models.unet import UNet, valid_input_size, valid_margin


@torch.no_grad()
def overlap_tile(model: UNet, images: Tensor, tile: int = 384) -> Tensor:
    """Return logits of whole images from a "valid" network, in tiles whose border is mirrored.

    The paper's section 2. images: float (n, bands, h, w), any h and w from 1, on any device; the logits
    (n, outputs, h, w) lie there too. tile: least side of the logits of one tile, pixels; made a multiple of
    2^depth, because tiles must start on one grid of pooling to give what the whole mirrored image gives in
    one piece. They do, up to rounding, but not with "group" normalisation: its statistics are the tile's.
    """
    settings = model.settings
    scale, margin = 1 << settings.depth, valid_margin(settings)
    height, width = images.shape[-2:]
    steps = [-(-min(tile, side) // scale) * scale for side in (height, width)]
    sizes = [valid_input_size(step, settings) for step in steps]
    weight = model.head.weight
    logits = images.new_empty(len(images), model.head.out_channels, height, width)
    for top in range(0, height, steps[0]):
        rows = mirrored(top - margin, top - margin + sizes[0], height).to(images.device)
        for left in range(0, width, steps[1]):
            columns = mirrored(left - margin, left - margin + sizes[1], width).to(images.device)
            part = model(images[..., rows[:, None], columns].to(weight))
            place = logits[..., top : top + steps[0], left : left + steps[1]]
            place.copy_(part[..., : place.shape[-2], : place.shape[-1]])
    return logits
