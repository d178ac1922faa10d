"""What `segray schedule` writes, for the tests of each scheduler."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from segray.cli import main

REMOTE = ("annotate", "s3://bucket/photos", "--output", "s3://bucket/labels")


def written(
    folder: Path, scheduler: str, *options: str, cron: str = "0 3 * * *", job: Sequence[str] = REMOTE
) -> dict[str, str]:
    """Suffix -> content of each file."""
    own = ["--cron", cron, "--as", scheduler, "--into", str(folder), *options]
    assert main(["schedule", *own, *job]) == 0
    return {path.suffix: path.read_text() for path in folder.iterdir() if path.is_file()}


def fake_segray(folder: Path, code: int) -> Path:
    """A `segray` that shows its settings, says something and ends with that code."""
    path = folder / "segray"
    path.write_text(f'#!/bin/sh\necho "ran $1 $2"\ncat "$3"\nexit {code}\n')
    path.chmod(0o755)
    return path


def isolated(packages: Sequence[str], program: str, text: str, **environment: str) -> str:
    """What a Python program prints in an environment of its own, with these packages, given `text`."""
    command = ["uv", "run", "--isolated", "--no-project", *(f"--with={each}" for each in packages)]
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        [*command, "python", "-c", program],
        input=text, env=clean | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr[-3000:]}"
    return done.stdout
