"""The container recipe: what it copies and installs, in a clean folder, and that Debian has its packages."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.debian import private_apt

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "jobs/cluster/Dockerfile").read_text().splitlines()


def of(word: str) -> list[str]:
    """What stands behind that instruction, line by line."""
    return [line.removeprefix(f"{word} ") for line in LINES if line.startswith(f"{word} ")]


def test_its_instructions_are_known() -> None:
    """By Docker's reference: https://docs.docker.com/reference/dockerfile/"""
    words = [line.split()[0] for line in LINES]
    assert set(words) == {"#", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER"}
    assert next(word for word in words if word != "#") == "FROM"


def test_what_it_installs(tmp_path: Path) -> None:
    """The lock's versions, with nothing but what it copies; and this Python's."""
    for line in of("COPY"):
        *sources, target = line.split()
        for source in sources:
            place = tmp_path / target / (source if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)
    assert of("FROM")[0].startswith(f"python:{sys.version_info.major}.{sys.version_info.minor}-")
    (command,) = [line for line in of("RUN") if "uv sync" in line]
    kept = {"UV_CACHE_DIR": ("cache", "dir"), "UV_PYTHON_INSTALL_DIR": ("python", "dir")}
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    for name, words in kept.items():  # what this machine has fetched
        told = subprocess.run(["uv", *words], check=True, capture_output=True, text=True)
        environment[name] = told.stdout.strip()
    environment["XDG_CONFIG_HOME"] = os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    environment["HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    path = re.search(r"PATH=/segray/(\S+):", "\n".join(of("ENV")))
    assert path is not None
    environment["PATH"] = f"{tmp_path / path[1]}:{os.environ['PATH']}"
    (links,) = [line.removeprefix("ln -s ").split() for line in of("RUN") if line.startswith("ln ")]
    assert links.pop() == "/usr/local/bin/"
    (tmp_path / "bin").mkdir()
    for link in links:
        (tmp_path / "bin" / Path(link).name).symlink_to(tmp_path / link.removeprefix("/segray/"))
    told = subprocess.run(
        [tmp_path / "bin/segray", "--version"], env=environment, check=True, capture_output=True, text=True
    )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert told.stdout == f"segray {version('segray')} (Python {python}, Ray {version('ray')})\n"
    subprocess.run([tmp_path / "bin/ray", "--version"], env=environment, check=True, capture_output=True)
    program = "import s3fs, gcsfs, adlfs, pi_heif"
    subprocess.run(["python", "-c", program], env=environment, check=True)


def test_debian_has_its_packages(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if request.config.getoption("without_slurm"):
        pytest.skip("--without-slurm: no apt")
    (command,) = [line for line in of("RUN") if "apt-get install" in line]
    packages = list(command.partition("--no-install-recommends")[2].split())
    assert packages
    apt = private_apt(tmp_path)
    for words in (["update"], ["install", "--simulate", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*apt, *words], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
