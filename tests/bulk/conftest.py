"""The hundred images that several tests annotate, and what an undisturbed run makes of them."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from segray.sources.read_step import WHOLE_BYTES
from tests.bulk.runs import MODELS, TILING, annotate, make_images
from tests.scenes.made import town, write


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


@pytest.fixture(scope="session")
def mixed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as 40 files, a tar and a zip, and two scenes read by window; not to be changed."""
    folder = tmp_path_factory.mktemp("mixed") / "all"
    folder.mkdir()
    files = sorted(images.iterdir())
    for file in files[:40]:
        shutil.copyfile(file, folder / file.name)
    with tarfile.open(folder / "some.tar", "w") as tar:
        for file in files[40:70]:
            tar.add(file, file.name)
    with zipfile.ZipFile(folder / "rest.zip", "w") as rest:
        for file in files[70:]:
            rest.write(file, file.name)
    for name, seed in (("scene.tif", 0), ("other.tif", 1)):
        scene = write(folder / name, town(1700, 1700, seed), compress=None)
        assert scene.stat().st_size > WHOLE_BYTES
    return folder


@pytest.fixture(scope="session")
def expected_mixed(mixed: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The output of an undisturbed run over the mixed sources; not to be changed."""
    output = tmp_path_factory.mktemp("expected-mixed") / "out"
    assert annotate(mixed, "--output", output, "--weights", MODELS + "seeded", *TILING) == 0
    return output
