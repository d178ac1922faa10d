"""Images -> labels and probabilities: against torch's own functions and training's way of scoring."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segray.data.pair_reader import Example
from segray.models.modelfile import SemanticCard
from segray.models.weights import LoadedModel
from segray.predict.network import ONE, Network
from segray.train.transforms.semantic import SemanticTransform
from segray.train.transforms.strength import AugmentSettings
from tests.predict.networks import Local, local

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def model(module: nn.Module, resized_to: int | None = None, classes: int = 3) -> LoadedModel:
    names = tuple(f"class {number}" for number in range(classes))
    fit = "crop" if resized_to is None else "resize"
    card = SemanticCard("test", {}, classes, names, MEAN, STD, resized_to or 64, fit)
    named = card.categories
    return LoadedModel("test", "file", module.eval(), named, None, "digest", None, card, card.task)


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (2, 10, 13, 3), np.uint8)
    return [np.kron(each, np.ones((4, 4, 1), np.uint8)) for each in coarse]


def logits(module: nn.Module, pixels: NDArray[np.uint8]) -> Tensor:
    """Of one picture, as one writes it down."""
    normal = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / (
        torch.tensor(STD).view(3, 1, 1)
    )
    with torch.inference_mode():
        found: Tensor = module(normal[None])
    return found


def test_labels_and_probabilities(images: list[NDArray[np.uint8]]) -> None:
    network = Network(model(local()), "cpu", "fp32")
    expected = torch.cat([logits(Local(), image) for image in images])
    assert np.array_equal(network.labels(images), expected.argmax(1).numpy())
    labels, found = network.labels_and_probabilities(images)
    assert np.array_equal(labels, network.labels(images))
    assert np.allclose(found / ONE, expected.softmax(1).numpy(), atol=0.5 / ONE + 1e-6)
    assert len(np.unique(network.labels(images))) == 3


class OneOutput(Local):
    """The first logit alone: the probability of class 1."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :1]


def test_one_output_is_two_classes(images: list[NDArray[np.uint8]]) -> None:
    network = Network(model(OneOutput(), classes=2), "cpu", "fp32")
    one = logits(OneOutput(), images[0])[0, 0].sigmoid().numpy()
    found = network.labels_and_probabilities(images[:1])[1][0]
    assert np.allclose(found / ONE, [1 - one, one], atol=0.5 / ONE + 1e-6)
    assert np.array_equal(network.labels(images[:1])[0], one > 0.5)


@pytest.mark.parametrize(("tta", "views"), [("flip", 2), ("d4", 8)])
def test_views_are_averaged(tta: str, views: int, images: list[NDArray[np.uint8]]) -> None:
    """Every view is turned, answered and turned back, by numpy."""
    total = []
    for quarters in range(4 if tta == "d4" else 1):
        for mirrored in (False, True):
            seen = np.rot90(images[0][:, ::-1] if mirrored else images[0], quarters, (0, 1))
            back = np.rot90(logits(Local(), seen).softmax(1)[0].numpy(), -quarters, (1, 2))
            total.append(back[:, :, ::-1] if mirrored else back)
    assert len(total) == views
    expected = np.mean(total, axis=0)
    network = Network(model(local()), "cpu", "fp32", tta)
    labels, found = network.labels_and_probabilities(images[:1])
    assert np.array_equal(labels, network.labels(images[:1]))
    assert np.allclose(found[0] / ONE, expected, atol=0.5 / ONE + 1e-5)
    assert not np.allclose(total[0], expected, atol=0.02)
    sure = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2] > 1e-4
    assert np.array_equal(network.labels(images[:1])[0][sure], expected.argmax(0)[sure])


def test_a_resizing_model_sees_what_training_scored(images: list[NDArray[np.uint8]]) -> None:
    """The pixels of `SemanticTransform.scoring`; the logits come back to the picture's size."""
    transform = SemanticTransform(32, "resize", AugmentSettings(preset="off"), 0, (0, 0, 0))
    example = Example(images[0], np.zeros(images[0].shape[:2], np.uint8), "", "")
    pixels = transform.scoring(example)["pixels"]
    small = logits(Local(), pixels.transpose(1, 2, 0))
    large = nn.functional.interpolate(small, images[0].shape[:2], mode="bilinear", align_corners=False)
    network = Network(model(local(), resized_to=32), "cpu", "fp32")
    assert np.array_equal(network.labels(images[:1])[0], large.argmax(1)[0].numpy())
