"""Losses of semantic segmentation, each a function of sums over the global batch.

A mean over each worker's own pixels, averaged over workers, is not the mean over all pixels when the workers
have unequally many that count, and a Dice of a part is not a part of the Dice. So a loss here is
`value(reduce(sums))`: `sums` adds over this worker's pixels, `reduce` adds over the workers, `value` divides.

Which loss fits which network: `bce` and `bce_dice` take one output (sigmoid; target 0 or 1), `ce`,
`weighted_ce` and `ce_dice` one output a class (softmax; target 0 to outputs - 1), `dice` and `focal` both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, distributed

from segray.errors import SettingsError
from segray.palette import VOID
from segray.train.choices import LossName
from segray.train.loss_sums import (
    Pixels,
    binary_cross_entropy_sums,
    cross_entropy_sums,
    dice_loss,
    dice_sums,
    focal_sums,
    ratio,
)

LOSSES: tuple[str, ...] = get_args(LossName)
SIGMOID_ONLY = frozenset({"bce", "bce_dice"})
SOFTMAX_ONLY = frozenset({"ce", "weighted_ce", "ce_dice"})

Reduce = Callable[[Tensor], Tensor]
"""Adds a 1-D tensor of sums over all workers, differentiably."""


@dataclass(frozen=True)
class LossSettings:
    """Which loss, and its constants; `build_loss` checks them."""

    name: str = "ce"
    """One of `LOSSES`."""
    ignore_index: int = VOID
    """Target value of ignored pixels, which are in no sum."""
    class_weights: tuple[float, ...] | None = None
    """One weight per class, 0 or more: `weighted_ce` needs it, `ce_dice` and softmax `focal` may have it."""
    positive_weight: float | None = None
    """Factor on the pixels of class 1 in `bce` and `bce_dice`; none = 1."""
    smooth: float = 1.0
    """Pixels added to numerator and denominator of Dice, above 0: an empty class left empty has Dice 1."""
    dice_classes: Literal["present", "all"] = "present"
    """Classes in Dice's mean: those with a true pixel in the global batch, or all of them.

    `all` punishes a class for being predicted where it is absent, but shows a Dice near 0 for every absent
    class with a little probability. With one output the foreground always counts.
    """
    dice_weight: float = 1.0
    """Factor on the Dice part of `bce_dice` and `ce_dice`."""
    gamma: float = 2.0
    """Exponent of `focal`; 0 gives cross-entropy."""
    alpha: float | None = None
    """Weight of class 1 in `focal` with one output (paper: 0.25), 1 - alpha that of class 0; none = 1."""


class Term(NamedTuple):
    """One summand of a loss."""

    sums: Callable[[Pixels], Tensor]
    """One worker's sums, 1-D."""
    value: Callable[[Tensor], Tensor]
    """The scalar computed from the global sums."""
    length: int
    """Number of sums."""
    factor: float = 1.0
    fixed_slopes: bool = True
    """Whether the derivatives of `value` depend on the target alone, as a mean's do: 1 / its divisor."""


def alone(sums: Tensor) -> Tensor:
    """Return the sums unchanged, 1-D: the `reduce` of a single process."""
    return sums


def reduce_over_ranks(sums: Tensor) -> Tensor:
    """Return the sums over all ranks of the default process group, 1-D; without one, the sums unchanged.

    With S = sum of s_r over R ranks, every rank holds L = f(S). The backward pass adds the R equal f'(S) and
    gives rank r the gradient R f'(S) ds_r/dw; DistributedDataParallel's mean over ranks makes that
    f'(S) sum of ds_r/dw = dL/dw, exactly the gradient of one process with the whole batch.
    `torch.distributed.nn.functional.all_reduce` does the same but is deprecated since torch 2.15, and its
    suggested replacement is a private module.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return sums
    return _SumOverRanks.apply(sums)  # type: ignore[no-any-return]


class _SumOverRanks(torch.autograd.Function):
    """All-reduce; a sum of everything to everyone is its own transpose."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        total = sums.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverRanks.apply(*gradients)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SemanticLoss:
    """A validated loss; call it, or add `sums` over many batches and compute `value` once."""

    outputs: int
    ignore_index: int
    terms: tuple[Term, ...]

    def __call__(self, logits: Tensor, target: Tensor, reduce: Reduce = alone) -> Tensor:
        """Return the loss of the global batch, a scalar, alike on every worker; 0 if no pixel counts.

        `logits` float (n, outputs, h, w), `target` integer (n, h, w). Computed in float32 also under autocast
        (float64 logits stay float64). Raises ValueError for shapes that do not fit and for a target that is
        neither a class nor `ignore_index`.
        """
        return self.value(reduce(self.sums(logits, target)))

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return this worker's sums, float 1-D; those of several batches may be added, of many in float64."""
        pixels = self._pixels(logits, target)
        return torch.cat([term.sums(pixels) for term in self.terms])

    def value(self, sums: Tensor) -> Tensor:
        """Return the loss from sums (1-D) over any number of pixels, a scalar."""
        lengths = [term.length for term in self.terms]
        parts = zip(self.terms, torch.split(sums, lengths), strict=True)
        return torch.stack([term.factor * term.value(part) for term, part in parts]).sum()

    @property
    def fixed_slopes(self) -> bool:
        """Return whether `slopes` depend on the targets alone, so that those of any logits are right."""
        return all(term.fixed_slopes for term in self.terms)

    def slopes(self, sums: Tensor) -> Tensor:
        """Return the derivative of `value` by each of the global sums, 1-D.

        The gradient of the loss is then slopes . d(sums)/dw, and d(sums)/dw adds over parts of a batch.
        """
        sums = sums.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.value(sums), sums)[0]

    def _pixels(self, logits: Tensor, target: Tensor) -> Pixels:
        n, *size = target.shape
        if logits.shape != (n, self.outputs, *size) or target.ndim != 3:
            shapes = f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
            raise ValueError(f"{shapes}: (n, {self.outputs}, h, w) and (n, h, w) are needed")
        target = target.long()
        valid = target != self.ignore_index
        target = target.masked_fill(~valid, 0)
        _check_classes(target, max(2, self.outputs))
        # autocast narrows no operation of a loss, so wide logits are all it takes to compute in float32
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        # filled before anything is computed: an infinite logit times a mask of 0 would be NaN
        return Pixels(wide.masked_fill(~valid[:, None], 0.0), target, valid)


def build_loss(settings: LossSettings, outputs: int) -> SemanticLoss:
    """Return the loss for a network with that many outputs. Raises SettingsError with all that is invalid."""
    if problems := list(_problems(settings, outputs)):
        raise SettingsError(*problems)
    weights = settings.class_weights or (1.0,) * outputs
    ce = Term(partial(cross_entropy_sums, class_weights=weights), ratio, length=2)
    dice = _dice(settings, outputs)
    weighted_dice = dice._replace(factor=settings.dice_weight)
    terms: dict[str, tuple[Term, ...]] = {
        "ce": (ce,),
        "weighted_ce": (ce,),
        "dice": (dice,),
        "focal": (_focal(settings, outputs),),
        "bce": (_bce(settings),),
        "bce_dice": (_bce(settings), weighted_dice),
        "ce_dice": (ce, weighted_dice),
    }
    return SemanticLoss(outputs, settings.ignore_index, terms[settings.name])


def outputs_for(loss: str, classes: int) -> int:
    """Return how many outputs a network needs for the loss and for classes 0 to classes - 1.

    `bce` and `bce_dice` separate two classes with one output; every other loss takes one per class. Raises
    SettingsError where loss and number do not match.
    """
    outputs = 1 if loss in SIGMOID_ONLY and classes == 2 else classes
    if problems := list(_misfit(loss, outputs)):
        raise SettingsError(*problems)
    return outputs


def inverse_frequency(counts: Sequence[int] | Tensor, power: float = 1.0) -> tuple[float, ...]:
    """Return class weights w_c = N / (n_c^power S) from the pixels n_c of each class, integers of any size.

    N is the sum of the counts, S that of n_k^(1 - power) over the classes that occur, so that the mean weight
    of a pixel is 1. With power 1 every class that occurs weighs the same in all (scikit-learn's "balanced";
    King and Zeng 2001), with 0 every pixel does. A class that never occurs has weight 0. Raises SettingsError
    when no class occurs.
    """
    pixels = [int(count) for count in counts]
    if not any(pixels):
        raise SettingsError("class weights: no labelled pixel was counted, so no class has a frequency")
    shares = sum(count ** (1 - power) for count in pixels if count > 0)
    return tuple(sum(pixels) / (count**power * shares) if count > 0 else 0.0 for count in pixels)


def _dice(settings: LossSettings, outputs: int) -> Term:
    absent = settings.dice_classes == "all" or outputs == 1
    value = partial(dice_loss, outputs=outputs, smooth=settings.smooth, absent=absent)
    return Term(dice_sums, value, length=3 * outputs, fixed_slopes=False)


def _bce(settings: LossSettings) -> Term:
    weight = 1.0 if settings.positive_weight is None else settings.positive_weight
    return Term(partial(binary_cross_entropy_sums, positive_weight=weight), ratio, length=2)


def _focal(settings: LossSettings, outputs: int) -> Term:
    alpha = settings.alpha
    weights = settings.class_weights or (1.0,) * max(2, outputs)
    if alpha is not None:
        weights = (1 - alpha, alpha)
    return Term(partial(focal_sums, gamma=settings.gamma, class_weights=weights), ratio, length=2)


def _check_classes(target: Tensor, classes: int) -> None:
    if target.numel() == 0:
        return
    low, high = (int(value) for value in torch.stack(target.aminmax()).tolist())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(f"class {wrong} in a target: known are 0 to {classes - 1} and the ignored value")


def _misfit(loss: str, outputs: int) -> Iterator[str]:
    if loss not in LOSSES:
        yield f"loss {loss}: is not one of {', '.join(LOSSES)}"
    elif outputs < 1:
        yield f"loss {loss}: {outputs} classes: at least 1 is needed"
    elif loss in SIGMOID_ONLY and outputs > 1:
        yield f"loss {loss}: separates two classes, not {outputs}; use ce, ce_dice, dice or focal"
    elif loss in SOFTMAX_ONLY and outputs == 1:
        yield f"loss {loss}: needs two or more classes; use bce, bce_dice, dice or focal"


def _problems(settings: LossSettings, outputs: int) -> Iterator[str]:
    name, positive, alpha = settings.name, settings.positive_weight, settings.alpha
    yield from _misfit(name, outputs)
    yield from _weight_problems(name, outputs, settings.class_weights)
    if positive is not None and not (name in SIGMOID_ONLY and 0 < positive < math.inf):
        yield f"loss {name}: positive_weight belongs to bce and bce_dice and is above 0"
    if alpha is not None and not (name == "focal" and outputs == 1 and 0 <= alpha <= 1):
        yield f"loss {name}: alpha is 0 to 1, for focal with one output; with more, set class_weights"
    if settings.dice_classes not in ("present", "all"):
        yield f"loss {name}: dice_classes is {settings.dice_classes}, but must be present or all"
    if not 0 < settings.smooth < math.inf:
        yield f"loss {name}: smooth is {settings.smooth}, but must be above 0"
    for constant, value in (("dice_weight", settings.dice_weight), ("gamma", settings.gamma)):
        if not 0 <= value < math.inf:
            yield f"loss {name}: {constant} is {value}, but must be 0 or more"


def _weight_problems(name: str, outputs: int, weights: tuple[float, ...] | None) -> Iterator[str]:
    if weights is None:
        if name == "weighted_ce":
            yield "loss weighted_ce: needs class weights; set class_weights, or use ce"
    elif name not in ("weighted_ce", "ce_dice", "focal") or outputs == 1:
        yield f"loss {name}: does not take class_weights with {outputs} outputs; leave them out"
    elif len(weights) != outputs:
        yield f"loss {name}: {len(weights)} class_weights for {outputs} classes; give one for each"
    elif not (all(weight >= 0 for weight in weights) and 0 < sum(weights) < math.inf):
        yield f"loss {name}: class_weights must be finite, 0 or more, and not all 0"
