"""Each loss against its formula in loops, torch and torchvision; several processes against one."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from segray.errors import SettingsError
from segray.train.losses import (
    LossSettings,
    alone,
    build_loss,
    inverse_frequency,
    outputs_for,
    reduce_over_ranks,
)
from tests.train.side_by_side import run_side_by_side

WEIGHTS = (0.5, 2.0, 0.0, 1.25)
CASES = {
    "ce": (LossSettings("ce"), 4),
    "ce-two": (LossSettings("ce", ignore_index=0), 2),
    "weighted_ce": (LossSettings("weighted_ce", class_weights=WEIGHTS), 4),
    "dice": (LossSettings("dice"), 4),
    "dice-all": (LossSettings("dice", dice_classes="all", smooth=0.5), 4),
    "dice-one": (LossSettings("dice"), 1),
    "focal": (LossSettings("focal"), 4),
    "focal-weights": (LossSettings("focal", gamma=0.5, class_weights=WEIGHTS), 4),
    "focal-one": (LossSettings("focal"), 1),
    "focal-alpha": (LossSettings("focal", alpha=0.25, gamma=1.5), 1),
    "bce": (LossSettings("bce", ignore_index=-100), 1),
    "bce-positive": (LossSettings("bce", positive_weight=3.0), 1),
    "bce_dice": (LossSettings("bce_dice", dice_weight=0.7, positive_weight=0.4), 1),
    "ce_dice": (LossSettings("ce_dice", dice_weight=2.0), 4),
    "ce_dice-weights": (LossSettings("ce_dice", class_weights=WEIGHTS, dice_classes="all"), 4),
}
every_case = pytest.mark.parametrize(("settings", "outputs"), CASES.values(), ids=CASES.keys())


def batch(settings: LossSettings, outputs: int, n: int = 3, side: int = 5) -> tuple[Tensor, Tensor]:
    """Return float64 logits and a target whose last class is absent and a third of which is ignored."""
    generator = torch.Generator().manual_seed(n + side)
    shape = (n, side, side + 1)
    logits = 2 * torch.randn(n, outputs, *shape[1:], dtype=torch.float64, generator=generator)
    target = torch.randint(0, max(2, outputs - 1), shape, generator=generator)
    hidden = torch.rand(shape, generator=generator) < 1 / 3
    return logits, target.masked_fill(hidden, settings.ignore_index)


def written_out(settings: LossSettings, logits: Tensor, target: Tensor) -> float:
    """The oracle: the papers' formulas, a pixel at a time; one output s is the probabilities 1 - s, s."""
    pixels: list[tuple[NDArray[np.float64], int]] = []
    for image in range(len(target)):
        for y, x in np.ndindex(*target.shape[1:]):
            true = int(target[image, y, x])
            if true == settings.ignore_index:
                continue
            scores = logits[image, :, y, x].numpy()
            if len(scores) == 1:
                positive = 1 / (1 + math.exp(-scores[0]))
                pixels.append((np.array([1 - positive, positive]), true))
            else:
                pixels.append((np.exp(scores) / np.exp(scores).sum(), true))
    binary = logits.shape[1] == 1
    weights = settings.class_weights or (1.0,) * max(2, logits.shape[1])
    loss = 0.0
    if settings.name in ("ce", "weighted_ce", "ce_dice"):
        losses = [-weights[true] * math.log(p[true]) for p, true in pixels]
        loss += sum(losses) / sum(weights[true] for _, true in pixels)
    if settings.name in ("bce", "bce_dice"):
        factor = settings.positive_weight or 1.0
        losses = [-(factor if true == 1 else 1) * math.log(p[true]) for p, true in pixels]
        loss += sum(losses) / len(pixels)
    if settings.name == "focal":
        if settings.alpha is not None:
            weights = (1 - settings.alpha, settings.alpha)
        losses = [-weights[t] * (1 - p[t]) ** settings.gamma * math.log(p[t]) for p, t in pixels]
        loss += sum(losses) / len(pixels)
    if "dice" in settings.name:
        dices = []
        for index in [1] if binary else range(logits.shape[1]):
            true_pixels = sum(true == index for _, true in pixels)
            if not true_pixels and settings.dice_classes == "present" and not binary:
                continue
            overlap = sum(p[index] for p, true in pixels if true == index)
            predicted = sum(p[index] for p, _ in pixels)
            dices.append(
                (2 * overlap + settings.smooth) / (predicted + true_pixels + settings.smooth),
            )
        factor = 1.0 if settings.name == "dice" else settings.dice_weight
        loss += factor * (1 - sum(dices) / len(dices))
    return loss


@every_case
def test_value_is_the_formula_written_out(settings: LossSettings, outputs: int) -> None:
    logits, target = batch(settings, outputs)
    loss = build_loss(settings, outputs)(logits, target)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(written_out(settings, logits, target), rel=1e-12)


@every_case
def test_gradient_is_the_slope(settings: LossSettings, outputs: int) -> None:
    logits, target = batch(settings, outputs, n=2, side=3)
    loss = build_loss(settings, outputs)
    assert torch.autograd.gradcheck(lambda values: loss(values, target), logits.requires_grad_())


def check_against(other: Callable[[Tensor, Tensor], Tensor], settings: LossSettings, outputs: int) -> None:
    """The same value and gradient as another library's loss, on float32."""
    logits, target = batch(settings, outputs)
    ours = logits.float().requires_grad_()
    theirs = logits.float().requires_grad_()
    loss, expected = build_loss(settings, outputs)(ours, target), other(theirs, target)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cross_entropy_is_that_of_torch() -> None:
    def other(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target, torch.tensor(WEIGHTS), ignore_index=255)

    check_against(other, LossSettings("weighted_ce", class_weights=WEIGHTS), 4)
    check_against(lambda x, t: functional.cross_entropy(x, t, ignore_index=255), LossSettings("ce"), 4)


def test_binary_cross_entropy_is_that_of_torch() -> None:
    def other(logits: Tensor, target: Tensor) -> Tensor:
        valid = target != 255
        one, truth = logits[:, 0][valid], target[valid].float()
        return functional.binary_cross_entropy_with_logits(one, truth, pos_weight=torch.tensor(3.0))

    check_against(other, LossSettings("bce", positive_weight=3.0), 1)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_loss_is_that_of_torchvision(alpha: float | None) -> None:
    from torchvision.ops import sigmoid_focal_loss  # late: every worker below would import it

    def other(logits: Tensor, target: Tensor) -> Tensor:
        valid = target != 255
        one, truth = logits[:, 0][valid], target[valid].float()
        value: Tensor = sigmoid_focal_loss(one, truth, -1 if alpha is None else alpha, 2.0, "mean")
        return value

    check_against(other, LossSettings("focal", alpha=alpha), 1)


@every_case
def test_without_a_pixel_that_counts_the_loss_is_zero(settings: LossSettings, outputs: int) -> None:
    """Also when the network says nonsense there, and when the batch has no image at all."""
    loss = build_loss(settings, outputs)
    for n in (2, 0):
        logits, target = batch(settings, outputs, n=n)
        logits[:, :, 0], logits[:, 0, 1] = math.inf, math.nan
        value = loss(logits.requires_grad_(), torch.full_like(target, settings.ignore_index))
        value.backward()  # type: ignore[no-untyped-call]
        assert value.item() == 0
        assert logits.grad is not None
        assert torch.equal(logits.grad, torch.zeros_like(logits))


@every_case
def test_ignored_pixels_are_in_nothing(settings: LossSettings, outputs: int) -> None:
    logits, target = batch(settings, outputs)
    ignored = (target == settings.ignore_index)[:, None].expand_as(logits)
    loss = build_loss(settings, outputs)
    changed = logits.masked_fill(ignored, math.nan).requires_grad_()
    value = loss(changed, target)
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(value, loss(logits, target))
    assert changed.grad is not None
    assert not changed.grad[ignored].any()
    assert changed.grad.isfinite().all()
    assert changed.grad[~ignored].any()


@every_case
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 2e4])
def test_half_precision_neither_rounds_nor_overflows(
    settings: LossSettings, outputs: int, kind: torch.dtype, scale: float
) -> None:
    logits, target = batch(settings, outputs, n=6, side=32)
    half = (logits.clamp(-3, 3) * scale).to(kind).requires_grad_()
    loss = build_loss(settings, outputs)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target.to(torch.int16))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(half.detach().double(), target), rtol=1e-5, atol=1e-6)
    assert half.grad is not None
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0])
def test_focal_loss_of_certain_pixels_has_a_slope(outputs: int, gamma: float) -> None:
    logits = torch.full((1, outputs, 1, 2), 200.0)
    logits[0, :-1] = -200 if outputs == 2 else 200
    value = build_loss(LossSettings("focal", gamma=gamma), outputs)(
        logits.requires_grad_(), torch.tensor([[[1, 0]]])
    )
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(100 * outputs)  # the second pixel is as wrong as can be
    assert logits.grad is not None
    assert logits.grad[0, -1].tolist()[0] == [pytest.approx(0.0), pytest.approx(0.5)]


@every_case
def test_sums_of_batches_add(settings: LossSettings, outputs: int) -> None:
    logits, target = batch(settings, outputs, n=5)
    loss = build_loss(settings, outputs)
    sums = loss.sums(logits[:2], target[:2]) + loss.sums(logits[2:], target[2:])
    torch.testing.assert_close(loss.value(sums), loss(logits, target), rtol=1e-12, atol=0)


def test_a_target_that_does_not_fit_is_refused() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="class 4 in a target: known are 0 to 3"):
        build_loss(LossSettings("ce"), 4)(logits, torch.full((1, 2, 2), 4))
    with pytest.raises(ValueError, match="class -1 in a target"):
        build_loss(LossSettings("dice"), 4)(logits, torch.full((1, 2, 2), -1))
    with pytest.raises(ValueError, match="class 2 in a target: known are 0 to 1"):
        build_loss(LossSettings("bce"), 1)(logits[:, :1], torch.full((1, 2, 2), 2))
    for target in (torch.zeros(1, 1, 2, 2), torch.zeros(2, 2), torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match="are needed"):
            build_loss(LossSettings("ce"), 4)(logits, target.long())


def test_the_absent_class_counts_only_if_asked() -> None:
    """Two classes, one of them absent and predicted with 1/2 on 4 pixels."""
    logits, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    present = 1 - (2 * 2 + 1) / (2 + 4 + 1)
    absent = 1 - 1 / (2 + 0 + 1)
    settings = LossSettings("dice")
    assert build_loss(settings, 2)(logits, target).item() == pytest.approx(present)
    both = build_loss(replace(settings, dice_classes="all"), 2)(logits, target).item()
    assert both == pytest.approx((present + absent) / 2)
    assert build_loss(settings, 1)(logits[:, :1], target).item() == pytest.approx(absent)


def test_inverse_frequency() -> None:
    counts = [30, 0, 10, 20]
    weights = inverse_frequency(counts)
    assert weights == (60 / (3 * 30), 0.0, 60 / (3 * 10), 60 / (3 * 20))
    assert inverse_frequency(torch.tensor(counts)) == weights
    assert inverse_frequency([10**15, 1]) == (0.5 * (1 + 1e-15), 0.5 * (10**15 + 1))
    build_loss(LossSettings("weighted_ce", class_weights=weights), 4)
    with pytest.raises(SettingsError, match="no labelled pixel"):
        inverse_frequency([0, 0])


def test_outputs_follow_the_loss() -> None:
    two = {"ce": 2, "weighted_ce": 2, "ce_dice": 2, "dice": 2, "focal": 2, "bce": 1, "bce_dice": 1}
    assert {name: outputs_for(name, 2) for name in two} == two
    assert outputs_for("ce", 21) == outputs_for("dice", 21) == outputs_for("focal", 21) == 21
    assert outputs_for("bce", 1) == outputs_for("dice", 1) == outputs_for("focal", 1) == 1
    for name, classes in (
        ("bce", 3),
        ("bce_dice", 21),
        ("ce", 1),
        ("ce_dice", 1),
        ("dice", 0),
        ("lovasz", 2),
    ):
        with pytest.raises(SettingsError, match=name):
            outputs_for(name, classes)


@pytest.mark.parametrize(
    ("settings", "outputs", "names"),
    [
        (LossSettings("hinge"), 2, "hinge: is not one of ce"),
        (LossSettings("bce"), 2, "bce: separates two classes, not 2"),
        (LossSettings("ce"), 1, "ce: needs two or more"),
        (LossSettings("weighted_ce"), 2, "set class_weights"),
        (LossSettings("weighted_ce", class_weights=(1.0,)), 2, "1 class_weights for 2 classes"),
        (LossSettings("weighted_ce", class_weights=(1.0, -1.0)), 2, "0 or more"),
        (LossSettings("weighted_ce", class_weights=(0.0, 0.0)), 2, "not all 0"),
        (LossSettings("weighted_ce", class_weights=(math.inf, 1.0)), 2, "finite"),
        (LossSettings("ce", class_weights=(1.0, 1.0)), 2, "ce: does not take class_weights"),
        (LossSettings("focal", class_weights=(1.0,)), 1, "focal: does not take class_weights"),
        (LossSettings("focal", alpha=0.25), 2, "alpha"),
        (LossSettings("focal", alpha=1.25), 1, "alpha"),
        (LossSettings("focal", gamma=-1.0), 1, "gamma"),
        (LossSettings("dice", smooth=0.0), 2, "smooth"),
        (LossSettings("dice", dice_classes="some"), 2, "dice_classes"),  # type: ignore[arg-type]
        (LossSettings("ce_dice", dice_weight=math.nan), 2, "dice_weight"),
        (LossSettings("ce", positive_weight=2.0), 2, "positive_weight"),
        (LossSettings("bce", positive_weight=0.0), 1, "positive_weight"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: LossSettings, outputs: int, names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        build_loss(settings, outputs)


def test_all_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        build_loss(LossSettings("bce", gamma=-1.0, smooth=-1.0), 3)
    assert len(caught.value.lines) == 3


# Several processes: the gradients of one process with the whole batch.

SHARES = {2: (2, 4), 3: (1, 2, 3)}
"""Images of each worker, of six."""


def network(outputs: int, kind: torch.dtype) -> nn.Module:
    torch.manual_seed(outputs)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, outputs, 1)).to(kind)


def uneven(settings: LossSettings, outputs: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return six images and a target of which the first counts nowhere and the second in two pixels."""
    _, target = batch(settings, outputs, n=6, side=9)
    target[0], target[1, 1:], target[1, 0, 2:] = (settings.ignore_index,) * 3
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 11, 12, dtype=kind, generator=generator), target


def gradients(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, target: Tensor
) -> list[Tensor]:
    """Return the loss and the gradient of every parameter."""
    model.zero_grad()
    value = loss(model(images), target)
    value.backward()  # type: ignore[no-untyped-call]
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def rank_gradients(own: slice) -> dict[Any, list[Tensor]]:
    """Return this rank's losses and gradients of every case, under real DistributedDataParallel."""
    found: dict[Any, list[Tensor]] = {}
    for name, (settings, outputs) in CASES.items():
        for kind in (torch.float32, torch.float64):
            loss = partial(build_loss(settings, outputs), reduce=reduce_over_ranks)
            images, target = uneven(settings, outputs, kind)
            model = DistributedDataParallel(network(outputs, kind))
            found[name, kind] = gradients(model, loss, images[own], target[own])
            empty = torch.full_like(target, settings.ignore_index)
            found[name, kind, "empty"] = gradients(model, loss, images[own], empty[own])
    return found


def worker(rank: int, folder: str) -> None:
    """One process: a rank of three, then, unless it is the third, of two; leaves what it found."""
    torch.set_num_threads(1)
    for workers in (3, 2):
        if rank < workers:
            meet = f"file://{folder}/meet-{workers}"
            distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=workers)
            first = sum(SHARES[workers][:rank])
            found = rank_gradients(slice(first, first + SHARES[workers][rank]))
            torch.save(found, f"{folder}/{workers}-{rank}.pt")
            distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, list[Tensor]]]]:
    """What each rank found, by their number; the same processes serve both: torch is slow to load."""
    folder = tmp_path_factory.mktemp("ranks")
    run_side_by_side(worker, (str(folder),), 3)
    return {n: [torch.load(folder / f"{n}-{rank}.pt") for rank in range(n)] for n in SHARES}


@pytest.mark.parametrize("workers", SHARES)
@every_case
def test_several_processes_have_the_gradients_of_one(
    ranks: dict[int, list[dict[Any, list[Tensor]]]], settings: LossSettings, outputs: int, workers: int
) -> None:
    loss = build_loss(settings, outputs)
    (name,) = (name for name, case in CASES.items() if case == (settings, outputs))
    for kind, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        one = gradients(network(outputs, kind), loss, *uneven(settings, outputs, kind))
        assert all(value.abs().max() > 1e-3 for value in one)
        for found in ranks[workers]:
            torch.testing.assert_close(found[name, kind], one, rtol=0, atol=tolerance)
            assert len(found[name, kind, "empty"]) == len(one)
            assert not any(value.any() for value in found[name, kind, "empty"])


@pytest.mark.parametrize("name", ["ce", "dice", "bce_dice", "focal"])
def test_a_mean_of_the_workers_own_losses_is_something_else(name: str) -> None:
    """What the reduction is for: otherwise the test above could not fail."""
    settings, outputs = CASES[name]
    images, target = uneven(settings, outputs, torch.float64)
    loss, model = build_loss(settings, outputs), network(outputs, torch.float64)
    whole = gradients(model, loss, images, target)
    parts = [gradients(model, loss, images[own], target[own]) for own in (slice(0, 2), slice(2, 6))]
    assert (whole[1] - (parts[0][1] + parts[1][1]) / 2).abs().max() > 1e-3


def test_one_process_reduces_nothing() -> None:
    sums = torch.ones(3)
    assert reduce_over_ranks(sums) is sums
    assert alone(sums) is sums
