"""What tests of training share: one thread, and one undisturbed run of the command."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.train import squares


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """On a busy machine threads wait for each other after every operator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of squares; not to be changed."""
    return squares.write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The output of one worker that nobody disturbed; not to be changed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert squares.train(data, output, "--epochs", squares.EPOCHS) == 0
    return output
