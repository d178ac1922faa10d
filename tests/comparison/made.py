"""Small networks, and images with label maps for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, model_bytes
from segray.models.semantic import build_semantic

CLASSES = ("ground", "tree", "roof")
SIZES = ((40, 36), (33, 51), (40, 36), (17, 90), (40, 36), (28, 30))
"""Height and width of the test images."""


def write_data(folder: Path) -> Path:
    """Images with labels in which a class is where a colour is; two to train with."""
    for number, (height, width) in enumerate((*SIZES, (20, 20), (20, 20))):
        random = np.random.default_rng(number)
        split = "test" if number < len(SIZES) else "train"
        label = random.choice([0, 1, 2, 255], (height, width), p=[0.4, 0.3, 0.2, 0.1])
        pixels = random.integers(0, 120, (height, width, 3))
        pixels[np.arange(height)[:, None], np.arange(width), np.minimum(label, 2)] += 100
        _save(folder / f"images/{split}/{number}.png", pixels)
        _save(folder / f"labels/{split}/{number}.png", label)
    return folder


def _save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_model(
    path: Path, seed: int, width: int = 4, fit: str = "crop", classes: tuple[str, ...] = CLASSES
) -> Path:
    """A network with random weights, whose classes are about as frequent as each other."""
    settings = complete_settings("unet", {"width": width, "depth": 2, "norm": "batch"})
    torch.manual_seed(seed)
    network = build_semantic("unet", 3, len(classes), settings).eval()
    *_, bias = (each for name, each in network.named_parameters() if name.endswith("bias"))
    with torch.no_grad():
        bias.sub_(network(torch.rand(4, 3, 48, 48) - 0.5).mean((0, 2, 3)))
    card = SemanticCard("unet", settings, len(classes), classes, (0.5,) * 3, (0.3,) * 3, 48, fit)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_bytes(card, network.state_dict()))
    return path


WIDEST = [60]
"""Of a `Picky`."""
SEEN: list[int] = []
"""Widths of the images that a `Picky` was shown."""


class Picky(torch.nn.Module):
    """The highest colour is the class; wide images are too much for it, and it knows two classes alone."""

    categories = {0: "Roof", 1: " ground "}  # noqa: RUF012 - as a user writes it

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        SEEN.append(pixels.shape[-1])
        if pixels.shape[-1] > WIDEST[0]:
            raise ValueError("too wide for me")
        return pixels[:, [2, 0]]


def picky() -> Picky:
    """For `--weights python:tests.comparison.made:picky`."""
    return Picky()


def convolutions() -> torch.nn.Module:
    """Two convolutions, whose operations are counted by hand."""
    torch.manual_seed(0)
    network: Any = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1, bias=False)
    )
    network.categories = {0: "a", 1: "b"}
    return network  # type: ignore[no-any-return]


class OfBytes(torch.nn.Module):
    """A detector that takes bytes alone, as what uses OpenCV does; it finds nothing."""

    image_dtype = torch.uint8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        for image in images:
            if image.dtype != torch.uint8:
                raise TypeError("bytes, please")
            self.layer(image.float()[None])
        none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        found = {**none, "scores": torch.zeros(0), "masks": torch.zeros(0, 1, 28, 28)}
        return [found for _ in images]


def of_bytes() -> OfBytes:
    """For `--weights python:tests.comparison.made:of_bytes`."""
    return OfBytes()
