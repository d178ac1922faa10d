"""A release of Ray that lacks every private name that segray uses costs speed, not the job."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement

from segray import ray_private
from tests.bulk.runs import REAL
from tests.train.squares import arguments, write_squares

ROOT = Path(__file__).parents[1]
SEGRAY = Path(sys.executable).parent / "segray"
RENAMES = """
import sys
from segray import ray_private
ray_private.NAMES.update({name: f"{path}_renamed" for name, path in ray_private.NAMES.items()})
sys.modules["segray.own_ray"] = None  # what it imports of Ray is gone
"""


@pytest.fixture
def later(tmp_path: Path) -> dict[str, str]:
    """An environment in which every Python, Ray's workers as well, starts with the names taken away."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start/sitecustomize.py").write_text(RENAMES)
    return os.environ | {"PYTHONPATH": str(tmp_path / "start")}


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """`segray` in a process of its own."""
    return subprocess.run(
        [SEGRAY, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600
    )


def test_every_name_is_in_this_ray() -> None:
    assert [name for name in ray_private.NAMES if ray_private.find(name) is None] == []


def test_annotate(later: dict[str, str], tmp_path: Path) -> None:
    done = run(later, "annotate", *REAL[:2], "--weights", "nuclei-small", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "is newer than segray knows" in done.stderr
    assert pq.read_table(tmp_path / "out/images").num_rows == 2


def test_train(later: dict[str, str], tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    done = run(later, "train", *arguments(data, tmp_path / "out", "--epochs", 1))
    assert done.returncode == 0, done.stderr
    assert "training listens on all addresses" in done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["verb"] == "train"


def test_releases_with_private_names_are_bounded() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    for name in ("ray", "torch", "torchvision"):
        assert any(each.operator == "<" for each in bounds[name]), name
