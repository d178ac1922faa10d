"""A line that Debian's own `crontab` takes, and that a shell runs as it is meant."""

import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.debian import unpacked
from tests.schedule.made import fake_segray, written

ALONE = ("unshare", "--user", "--map-root-user", "--mount")
"""`crontab` looks for its spool, and makes it."""
CHECK = """
mount -t tmpfs tmpfs /var/spool
mkdir -p /var/spool/cron/crontabs
for file in "$@"; do if "$0" -n "$file" > /dev/null 2>&1; then echo taken; else echo refused; fi; done
"""


def taken(folder: Path, *tables: str) -> list[bool]:
    """Whether cron takes each of them."""
    program = unpacked("cron", ("cron",)) / "usr/bin/crontab"
    paths = [folder / f"table-{number}" for number, _ in enumerate(tables)]
    for path, table in zip(paths, tables, strict=True):
        path.write_text(table)
    done = subprocess.run(
        [*ALONE, "sh", "-ec", CHECK, program, *paths], capture_output=True, text=True, check=True
    )
    return [each == "taken" for each in done.stdout.split()]


def line_of(table: str) -> str:
    (line,) = (each for each in table.splitlines() if re.match(r"[\d*]", each))
    return line


@pytest.mark.usefixtures("apt")
def test_cron_takes_it_and_no_other(tmp_path: Path) -> None:
    tables = [
        written(tmp_path / str(number), "crontab", *options, cron=when)[".crontab"]
        for number, (when, options) in enumerate(
            [("0 3 * * *", ()), ("*/7 1-5/2 */2 * MON,7", ("--time-zone", "Asia/Tokyo", "--name", "x-1"))]
        )
    ]
    line = line_of(tables[0])
    wrong = [line[2:], f"60{line[1:]}", line.replace("0 3 * * *", "0 3 * * 8"), line.replace("3 *", "3 /")]
    assert taken(tmp_path, *tables, *(f"{each}\n" for each in wrong)) == [True] * 2 + [False] * 4
    assert line_of(tables[1]).startswith("0,7,14,21,28,35,42,49,56 1,3,5 */2 * 0,1 ")
    assert "\nCRON_TZ=Asia/Tokyo\n" in tables[1]


@pytest.mark.parametrize(("code", "ends", "mails"), [(0, 0, False), (4, 0, False)] + [
    (code, code, True) for code in (1, 2, 3, 5, 130)
])  # fmt: skip
def test_only_failures_are_mailed(
    code: int, ends: int, mails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cron mails what a command prints; its own `%` is a line break unless it is escaped."""
    here = tmp_path / "100 % of it's"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(fake_segray(tmp_path, code).parent))
    files = written(here / "made", "crontab")
    command = line_of(files[".crontab"]).removeprefix("0 3 * * * ")
    assert not re.search(r"(?<!\\)%", command)
    done = subprocess.run(
        ["sh", "-c", command.replace(r"\%", "%")],
        cwd="/", env={"PATH": "/usr/bin:/bin", "HOME": "/"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (ends, "")
    assert done.stdout == ("ran annotate --config\n" + files[".yaml"] if mails else "")
    assert yaml.safe_load(files[".yaml"]) == {
        "sources": ["s3://bucket/photos"], "output": "s3://bucket/labels",
    }  # fmt: skip


def test_without_a_folder_the_home_folder_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    from segray.cli import main

    assert main(["schedule", "annotate", "a", "--output", "b", "--cron", "0 3 * * *", "--as", "crontab"]) == 0
    out = capsys.readouterr().out
    first, second = re.findall(r"^# file: (.*)", out, re.MULTILINE)
    assert (first, second) == ("~/segray/annotate.yaml", "~/segray/annotate.crontab")
    assert "~/segray/annotate.yaml" in shlex.split(line_of(out))
    assert f"- {Path('a').absolute()}\n" in out
