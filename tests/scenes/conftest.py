"""The README's scene, annotated once for all tests that look at it."""

import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.bulk.runs import annotate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def kampala(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the output of the README's scene command with more options behind it; not to be changed."""
    command = re.search(r"uv run segray (annotate tests/data/scenes .*)", (ROOT / "README.md").read_text())
    assert command is not None
    _, *arguments = shlex.split(command[1])

    @cache
    def output(*more: str) -> Path:
        folder = tmp_path_factory.mktemp("kampala") / "out"
        arguments[arguments.index("--output") + 1] = str(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            assert annotate(*arguments, *more) == 0
        return folder

    return output
