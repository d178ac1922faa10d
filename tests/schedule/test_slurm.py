"""A line of scrontab whose options and script Slurm's own `sbatch` knows, and no misspelt one."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.schedule.made import written
from tests.submit.slurm_cluster import install_slurm

ALL = ("--partition", "gpu", "--account", "lab", "--nodes", "2", "--gpus", "1", "--name", "nightly")
LINE = re.compile(r"(?:(?:\*|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*) ){5}(.+)")
"""What scrontab reads (its parse.c): numbers, ranges, lists, and steps that are not cron's."""


def is_taken(scrontab: str) -> bool:
    """Comments, lines of options, each with a line of a job behind them."""
    lines = scrontab.splitlines()
    return all(each.startswith("#") for each in lines[:-1]) and LINE.fullmatch(lines[-1]) is not None


def unknown(folder: Path, options: list[str]) -> bool:
    """Whether `sbatch` itself says that it does not know one of them, in a script of these lines."""
    script = folder / "script.sh"
    script.write_text("#!/bin/sh\n" + "".join(f"#SBATCH {each}\n" for each in options) + "true\n")
    root = install_slurm()
    libraries = [str(root / "usr/lib/x86_64-linux-gnu"), str(root / "usr/lib/x86_64-linux-gnu/slurm-wlm")]
    (folder / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\n"
        f"GresTypes=gpu\nMessageTimeout=1\nPluginDir={libraries[1]}\n"
    )
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "LD_LIBRARY_PATH": ":".join(libraries),
    }
    done = subprocess.run(
        [root / "usr/bin/sbatch", "--test-only", script], env=environment, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    is_unknown = "unrecognized option" in said or "Invalid" in said or 'Try "sbatch' in said
    assert is_unknown or "contact" in said.lower() or "connect" in said.lower(), said
    return is_unknown


@pytest.mark.usefixtures("apt")
def test_slurm_knows_the_options(tmp_path: Path) -> None:
    files = written(tmp_path / "made", "slurm", *ALL)
    for suffix, mark in ((".sh", "#SBATCH "), (".scrontab", "#SCRON ")):
        options = re.findall(f"^{mark}(.*)", files[suffix], re.MULTILINE)
        assert len(options) > 5
        assert not unknown(tmp_path, options)
        for option in options:
            name, equals, value = option.partition("=")
            assert unknown(tmp_path, [f"{name}x{equals}{value}"]), option


def test_the_line(tmp_path: Path) -> None:
    scrontab = written(tmp_path, "slurm", "--name", "nightly", cron="*/20 1-5/2 1,15 * MON")[".scrontab"]
    assert is_taken(scrontab)
    assert not is_taken(scrontab.replace("0,20,40", "*/20"))
    last = scrontab.splitlines()[-1]
    assert last.startswith(f"0,20,40 1,3,5 1,15 * 1 cd {tmp_path} && ")
    assert "#SCRON --job-name=nightly-start\n" in scrontab
    (tmp_path / "sbatch").write_text('#!/bin/sh\necho "$@" > "$0.said"\nenv >> "$0.said"\n')
    (tmp_path / "sbatch").chmod(0o755)
    command = LINE.fullmatch(last)
    assert command is not None
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/", "USER": "me", "SLURM_RESTART_COUNT": "7",
        "SLURM_CONF": "/etc/a b.conf",
    }  # fmt: skip
    subprocess.run(["sh", "-c", command[1]], env=environment, check=True)
    first, *rest = (tmp_path / "sbatch.said").read_text().splitlines()
    assert first == f"--dependency=singleton {tmp_path}/nightly.sh"
    assert [each for each in rest if each.startswith("SLURM_")] == ["SLURM_CONF=/etc/a b.conf"]


def test_the_script_is_that_of_submit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from segray.cli import main

    script = written(tmp_path, "slurm", *ALL)[".sh"]
    job = ("annotate", "s3://bucket/photos", "--output", "s3://bucket/labels")
    capsys.readouterr()
    assert main(["submit", "--slurm", *ALL, "--dry-run", *job]) == 0
    assert script == capsys.readouterr().out
