"""The network of `predict` on a CPU: folded and fused, against the same one as it was trained.

U-Net on EfficientNet-Lite2 with random weights, one frame of 480 x 352, in CPU time: both arms have the same
threads. The gate: in float32 nearly all pixels get the same class, and the probabilities of bf16 are as near
to those of float32 as without fusing.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from jobs.benchmarks.measure import Figure, Options, check, ratios, take_turns
from segray.models.architectures import complete_settings
from segray.models.device import Precision
from segray.models.modelfile import SemanticCard, build_model
from segray.models.weights import LoadedModel
from segray.predict.network import ONE, Network

ARCH, CLASSES = "unet:efficientnet-lite2", 11
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAME = 0.9999
"""Least share of pixels with one class in both arms, in float32."""
FURTHER = 1.1
"""Most that the mean error of a probability in bf16 may grow."""


def figures(options: Options) -> Iterator[Figure]:
    """As it was trained over fused, in both precisions."""
    side = 64 if options.quick else 352
    frame = np.random.default_rng(0).integers(0, 256, (side, side * 15 // 11, 3), np.uint8)
    model = made()
    exact = arms_of(model, "fp32")[0].labels_and_probabilities([frame])[1].astype(float)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        arms = arms_of(model, precision)
        maps, shares = zip(*(each.labels_and_probabilities([frame]) for each in arms), strict=True)
        if precision == "fp32":
            same = float(np.mean(maps[0] == maps[1]))
            check(same >= SAME, f"network: {same:.4%} of the pixels have the same class")
            fact = f"{same:.2%} of the pixels the same"
        else:
            before, after = (float(np.abs(each - exact).mean()) / ONE for each in shares)
            check(
                after <= FURTHER * before, f"network: errors of probabilities {before:.5f}, fused {after:.5f}"
            )
            fact = f"error of a probability {before:.5f}, fused {after:.5f}"
        at_least = 0.0 if options.quick else 5.0
        calls: list[Callable[[], float]] = [
            partial(cpu_seconds_a_call, partial(each.labels, [frame]), at_least) for each in arms
        ]
        slow, fast = take_turns(calls, options.rounds(5))
        fact = f"{ARCH}: {median(slow) * 1e3:.0f}, {median(fast) * 1e3:.0f} ms of CPU; {fact}"
        yield Figure(f"network as trained / fused, {precision}", "", ratios(slow, fast), [fact])


def arms_of(model: LoadedModel, precision: Precision) -> tuple[Network, Network]:
    """The network as it was trained, and as `predict` uses it."""
    plain, fused = Network(model, "cpu", precision), Network(model, "cpu", precision)
    plain.module = model.module.to(memory_format=torch.channels_last)
    return plain, fused


def made() -> LoadedModel:
    """Random weights, with statistics of norms that are not those of a fresh network."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(CLASSES))
    card = SemanticCard(ARCH, complete_settings(ARCH, {}), CLASSES, names, MEAN, STD, 352, "crop")
    network: Any = build_model(card)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return LoadedModel(
        "made", "file", network.eval(), dict(enumerate(names)), None, "", card=card, task="semantic"
    )


def cpu_seconds_a_call(call: Callable[[], object], at_least_s: float) -> float:
    """Mean CPU time of a call, in all threads, over so many calls that they take `at_least_s` together."""
    call()
    calls, started = 0, time.process_time()
    while (passed := time.process_time() - started) < at_least_s or not calls:
        call()
        calls += 1
    return passed / calls
