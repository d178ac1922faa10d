"""The model in the package: it loads, says what it is, and finds nuclei in images that it never saw."""

from pathlib import Path

import pytest
import torch

from jobs.benchmarks.accuracy import score_torchvision
from segray.data.pair_reader import CocoExample
from segray.data.splits import split_of
from segray.models import bundled_models
from segray.models.modelfile import ModelCard, ModelFile, build_model, load_model_file
from tests.train.coco import read_coco

NUCLEI = Path(__file__).parents[1] / "data" / "nuclei"


@pytest.fixture(scope="module")
def loaded() -> ModelFile:
    return load_model_file(bundled_models()["nuclei-small"])


def card_of(loaded: ModelFile) -> ModelCard:
    assert isinstance(loaded.card, ModelCard)
    return loaded.card


@pytest.fixture(scope="module")
def images() -> list[CocoExample]:
    return [example for _, example in read_coco(NUCLEI)]


def test_the_file_is_small_and_says_what_it_is(loaded: ModelFile) -> None:
    path = bundled_models()["nuclei-small"]
    assert path.stat().st_size < 10e6
    assert path.with_suffix(".md").exists()
    assert card_of(loaded).categories == {1: "nucleus"}
    assert loaded.card.licence == "Apache-2.0"
    assert "BBBC038" in loaded.card.source
    assert loaded.module.roi_heads.detections_per_img == 400


def test_the_images_belong_to_the_test_split(images: list[CocoExample]) -> None:
    assert len(images) == 11
    assert {split_of(image.digest, seed=0) for image in images} == {"test"}


def test_it_finds_nuclei_in_images_it_never_saw(loaded: ModelFile, images: list[CocoExample]) -> None:
    """The shipped file scored AP 0.511 and AP50 0.899 on these eleven; the bounds leave room for rounding."""
    scores = score_torchvision(loaded.module, card_of(loaded), images).compute()
    assert scores["ap"] > 0.49
    assert scores["ap50"] > 0.87


def test_weights_that_are_broken_would_be_noticed(loaded: ModelFile, images: list[CocoExample]) -> None:
    """The test above can fail: the same network with the backbone of another seed finds nothing."""
    torch.manual_seed(1)
    broken = build_model(loaded.card)
    kept = {name: value for name, value in loaded.module.state_dict().items() if "backbone" not in name}
    broken.load_state_dict(kept, strict=False)
    assert score_torchvision(broken.eval(), card_of(loaded), images[:2]).compute()["ap50"] < 0.2
