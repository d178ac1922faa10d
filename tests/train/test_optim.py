"""Optimisers against torch's own, built by hand, and against their update rules written out."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segray.errors import SettingsError
from segray.train.lr_schedule import LearningRate, ScheduleSettings
from segray.train.optim import OptimizerSettings, build_optimizer, decayed_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6, generator=generator)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


SGD: dict[str, Any] = {"lr": 1e-3, "momentum": 0.8}


@pytest.mark.parametrize(
    ("settings", "kind", "arguments"),
    [
        (OptimizerSettings(), torch.optim.AdamW, {"lr": 1e-3}),
        (
            OptimizerSettings("adamw", 0.02, 0.3, betas=(0.8, 0.9), eps=1e-3),
            torch.optim.AdamW,
            {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-3},
        ),
        (OptimizerSettings("adam", 0.02, 0.3), torch.optim.Adam, {"lr": 0.02}),
        (OptimizerSettings("sgd", 1e-3, 0.3, momentum=0.8), torch.optim.SGD, SGD),
        (
            OptimizerSettings("sgd", 1e-3, 0.3, momentum=0.8, nesterov=True),
            torch.optim.SGD,
            SGD | {"nesterov": True},
        ),
    ],
)
def test_steps_are_those_of_torch(
    settings: OptimizerSettings, kind: type[torch.optim.Optimizer], arguments: dict[str, Any]
) -> None:
    """The oracle has a group for each parameter, decayed by the kind of module that it belongs to."""
    ours, theirs = network(), network()
    groups = [
        {"params": [parameter], "weight_decay": settings.weight_decay if decays else 0.0}
        for module in theirs
        for name, parameter in module.named_parameters()
        for decays in [isinstance(module, nn.Conv2d) and name == "weight"]
    ]
    optimizer = build_optimizer(ours, settings)
    assert type(optimizer) is kind
    found = train(ours, optimizer)
    torch.testing.assert_close(found, train(theirs, kind(groups, **arguments)))
    assert all(not torch.equal(a, b) for a, b in zip(found, network().parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_without_a_gradient_only_weights_shrink(name: str) -> None:
    """Both take lr x weight_decay of a weight away, the first step's momentum being the step itself."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, OptimizerSettings(name, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in model.named_parameters():
        factor = 0.95 if key in ("0.weight", "4.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[key] * factor)


def test_momentum_written_out() -> None:
    layer = nn.Linear(1, 1, bias=False)
    weight, velocity = layer.weight.item(), 0.0
    optimizer = build_optimizer(layer, OptimizerSettings("sgd", lr=0.1, weight_decay=0.01, momentum=0.5))
    for gradient in (1.0, -2.0, 0.5):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        velocity = 0.5 * velocity + gradient + 0.01 * weight
        weight -= 0.1 * velocity
        assert layer.weight.item() == pytest.approx(weight)


def test_the_encoder_has_a_rate_of_its_own() -> None:
    """In every step of the schedule, against an optimiser with both rates written out; resumed exactly."""

    def pair() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 1)})

    def steps(model: Any, optimizer: Any, numbers: range, rates: Any) -> list[Tensor]:
        for step in numbers:
            rates(optimizer, step)
            optimizer.zero_grad()
            model["head"](model["encoder"](torch.full((2, 3), step + 1.0))).square().sum().backward()
            optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    settings = OptimizerSettings(lr=0.01, weight_decay=0.1, encoder_lr_factor=0.25)
    ours, theirs = pair(), pair()
    optimizer, rate = build_optimizer(ours, settings), LearningRate(ScheduleSettings("poly"), 0.01, 6)
    groups = [
        {"params": [each], "weight_decay": 0.1 * (each.ndim > 1), "factor": 0.25 if part == "encoder" else 1}
        for part in ("encoder", "head")
        for each in theirs[part].parameters()
    ]

    def by_hand(optimizer: Any, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 6) ** 0.9 * group["factor"]

    expected = steps(theirs, torch.optim.AdamW(groups), range(6), by_hand)
    steps(ours, optimizer, range(3), rate.set)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 2 / 6) ** 0.9)  # what metrics show
    again, resumed = copy.deepcopy(ours), build_optimizer(other := pair(), settings)
    other.load_state_dict(again.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(steps(other, resumed, range(3, 6), rate.set), expected)


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    groups = decayed_groups([each for each in model.parameters() if each.requires_grad], 0.5)
    assert [len(group["params"]) for group in groups] == [1, 6]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    model.requires_grad_(False)
    with pytest.raises(SettingsError, match="frozen"):
        build_optimizer(model, OptimizerSettings())


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (OptimizerSettings("lion"), "lion: is not one of adamw, adam, sgd"),
        (OptimizerSettings(lr=0.0), "lr is 0"),
        (OptimizerSettings(lr=math.nan), "lr is nan"),
        (OptimizerSettings(weight_decay=-0.1), "weight_decay"),
        (OptimizerSettings(betas=(0.9, 1.0)), "betas"),
        (OptimizerSettings(eps=0.0), "eps"),
        (OptimizerSettings(encoder_lr_factor=0.0), "encoder_lr_factor is 0"),
        (OptimizerSettings("sgd", momentum=1.0), "momentum"),
        (OptimizerSettings("sgd", momentum=0.0, nesterov=True), "nesterov"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: OptimizerSettings, names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        build_optimizer(network(), settings)
