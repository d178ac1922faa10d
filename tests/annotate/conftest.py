"""The hundred images that several tests annotate, and what an undisturbed run makes of them."""

from pathlib import Path

import pytest

from tests.annotate.runs import MODELS, annotate, make_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 100 small crops of real images; not to be changed."""
    return make_images(tmp_path_factory.mktemp("images") / "all", 100)


@pytest.fixture(scope="session")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The output of an undisturbed run over the folder; not to be changed."""
    output = tmp_path_factory.mktemp("expected") / "out"
    assert annotate(images, "--output", output, "--weights", MODELS + "seeded") == 0
    return output
