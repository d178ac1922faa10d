"""Runs that the tests of this folder correct."""

import pytest

from tests.export.made import Run, made
from tests.importer.made import scenes


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four images in two parts, one in an archive, one empty; and one that was rejected."""
    return made(tmp_path_factory.mktemp("made"), splits=("train", "val", None, "train"), drawn=True)


@pytest.fixture(scope="session")
def located(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three scenes, the last one empty."""
    return scenes(tmp_path_factory.mktemp("scenes"))
