"""What a model of the user's own is given: floats in 0..1, or bytes where it says so."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from segray.annotate.custom_detector import CustomDetector


class Keeper:
    """Finds nothing and keeps what it was given."""

    def __call__(self, images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        self.images = images
        empty = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        return [{**empty, "boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 1, 28, 28)} for _ in images]


@pytest.mark.parametrize("takes_bytes", [False, True])
def test_pixels_are_floats_or_bytes(takes_bytes: bool) -> None:
    model = Keeper()
    if takes_bytes:
        model.image_dtype = torch.uint8  # type: ignore[attr-defined]
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    picture.setflags(write=False)  # as it comes from Ray
    CustomDetector(model, "keeper", torch.device("cpu"), 0.5).detect([picture])
    wanted = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    if not takes_bytes:
        wanted = wanted.float() / 255
    assert model.images[0].dtype == wanted.dtype
    assert torch.equal(model.images[0], wanted)
    with torch.inference_mode():
        model.images[0].zero_()
    assert picture.any()  # the model may write, what it was made of stays


def test_bytes_of_a_batch_lie_apart_and_follow_each_image() -> None:
    model = Keeper()
    model.image_dtype = torch.uint8  # type: ignore[attr-defined]
    detector = CustomDetector(model, "keeper", torch.device("cpu"), 0.5)
    draw = np.random.default_rng(0)
    for sides in ([(5, 7), (2, 3)], [(1, 2), (9, 9), (4, 4)], [(3, 3)]):
        pictures = [draw.integers(0, 256, (*side, 3), np.uint8) for side in sides]
        detector.detect(pictures)
        assert all(
            np.array_equal(image.permute(1, 2, 0).numpy(), picture)
            for image, picture in zip(model.images, pictures, strict=True)
        )
