"""Sums over pixels from which the losses of semantic segmentation are computed.

A function named sums takes one worker's `Pixels` and returns a 1-D tensor in the type of the logits, to which
the sums of other pixels may be added. `ratio` and `dice_loss` turn sums into a loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Pixels(NamedTuple):
    """One worker's batch, sanitised: where a pixel is ignored, logits and target are 0."""

    logits: Tensor
    """(n, outputs, h, w) float32, or float64 if the network is."""
    target: Tensor
    """(n, h, w) int64."""
    valid: Tensor
    """(n, h, w) bool."""


def ratio(sums: Tensor) -> Tensor:
    """Return total / weight of two sums (2,), a scalar; 0, with a graph, where nothing has weight."""
    total, weight = sums.unbind()
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def cross_entropy_sums(pixels: Pixels, class_weights: Sequence[float]) -> Tensor:
    """Return (2,): sums of w_t (-log p_t) and of w_t over pixels with true class t, p = softmax of the
    logits.

    Their ratio is the weighted mean of `torch.nn.CrossEntropyLoss`.
    """
    weights = _per_pixel(pixels, class_weights)
    return torch.stack([-(weights * _log_probability(pixels)).sum(), weights.sum()])


def binary_cross_entropy_sums(pixels: Pixels, positive_weight: float) -> Tensor:
    """Return (2,): sum of -(w t log s + (1 - t) log(1 - s)), s = sigmoid of the logit, and the pixel count.

    As `torch.nn.BCEWithLogitsLoss` with its `pos_weight`: the weight is not in the divisor.
    """
    weights = _per_pixel(pixels, (1.0, positive_weight))
    return torch.stack([-(weights * _log_probability(pixels)).sum(), _count(pixels)])


def focal_sums(pixels: Pixels, gamma: float, class_weights: Sequence[float]) -> Tensor:
    """Return (2,): sum of -a_t (1 - p_t)^gamma log p_t and the number of pixels.

    Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5; p_t is the probability of the true
    class and a_t = `class_weights[t]`. Divided by the pixels that count, as every one of them has a class
    (the paper divides by the anchors that were given one).
    """
    weights, log_p = _per_pixel(pixels, class_weights), _log_probability(pixels)
    # at p = 1 the slope of a power below 1 is infinite and times log p = 0 NaN; the product's limit is 0
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return torch.stack([-(weights * missing**gamma * log_p).sum(), _count(pixels)])


def dice_sums(pixels: Pixels) -> Tensor:
    """Return (3 * outputs,): sums of p g, of p and of g; p the probability, g 1 where it is the truth."""
    logits, target, valid = pixels
    outputs = logits.shape[1]
    probability = logits.softmax(1) if outputs > 1 else logits.sigmoid()
    first = 0 if outputs > 1 else 1  # a single output is the probability of class 1
    classes = torch.arange(first, first + outputs, device=target.device)[:, None, None]
    truth = (target[:, None] == classes) & valid[:, None]
    overlap = torch.where(truth, probability, 0.0).sum((0, 2, 3))
    predicted = torch.where(valid[:, None], probability, 0.0).sum((0, 2, 3))
    return torch.cat([overlap, predicted, truth.sum((0, 2, 3)).to(overlap.dtype)])


def dice_loss(sums: Tensor, outputs: int, smooth: float, *, absent: bool) -> Tensor:
    """Return 1 - the mean over classes of (2 sum pg + smooth) / (sum p + sum g + smooth), 3 x outputs sums.

    Milletari et al. 2016, V-Net, section 3, with the plain sums of Sudre et al. 2017, Generalised Dice, in
    place of V-Net's squares. Classes without a true pixel count only if `absent`.
    """
    overlap, predicted, true = sums.view(3, outputs).unbind()
    dice = (2 * overlap + smooth) / (predicted + true + smooth)
    counted = ((true > 0) | absent).to(dice.dtype)
    return ((1 - dice) * counted).sum() / counted.sum().clamp(min=1)


def _log_probability(pixels: Pixels) -> Tensor:
    """Return the logarithm of the true class's probability, (n, h, w); finite for every finite logit."""
    if pixels.logits.shape[1] > 1:
        return pixels.logits.log_softmax(1).gather(1, pixels.target[:, None])[:, 0]
    return functional.logsigmoid(torch.where(pixels.target == 1, 1, -1) * pixels.logits[:, 0])


def _per_pixel(pixels: Pixels, class_weights: Sequence[float]) -> Tensor:
    """Return the weight of every pixel's true class, (n, h, w); 0 where it is ignored."""
    weights = pixels.logits.new_tensor(class_weights)[pixels.target]
    return torch.where(pixels.valid, weights, 0.0)


def _count(pixels: Pixels) -> Tensor:
    return pixels.valid.sum().to(pixels.logits.dtype)  # counted in int64: float32 stops at 16.7 million
